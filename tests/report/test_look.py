"""Reports as a person sees them: on a desktop and on a phone, in the light, in the dark and on paper."""

from pathlib import Path

import pytest
from chromium import FAULTS, look, picture, write_page
from selenium import webdriver

from edge_sd.report.data import Report
from edge_sd.report.pictures import Files
from edge_sd.report.render import HTML, write_report

SIZES = [(1280, False), (1280, True), (390, False), (390, True)]


@pytest.fixture(scope="module")
def pages(
    compared: tuple[Report, Files], single: tuple[Report, Files], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Of a comparison, of a bundle, and of its parity alone."""
    folder = tmp_path_factory.mktemp("pages")
    for name, (report, files) in {"compared": compared, "single": single}.items():
        write_report(report, files, folder / name / HTML)
    return {name: folder / name / HTML for name in ("compared", "single")}


@pytest.mark.parametrize("name", ["compared", "single"])
def test_nothing_is_cut_covered_or_hard_to_read(
    name: str, pages: dict[str, Path], browser: webdriver.Chrome, tmp_path: Path
) -> None:
    for width, dark in SIZES:
        faults, said, asked = look(browser, pages[name], width, dark=dark)
        picture(browser, tmp_path / f"{name}-{width}-{'dark' if dark else 'light'}.png")  # for whoever wants to look
        assert (faults, said, asked) == ([], [], []), f"{width} px, {'dark' if dark else 'light'}"


def test_the_parity_page_is_as_good(exact: Path, browser: webdriver.Chrome) -> None:
    for width, dark in SIZES:
        assert look(browser, exact.parent / "parity" / "parity.html", width, dark=dark) == ([], [], [])


def test_dark_and_light_differ_in_grounds_letters_and_lines(pages: dict[str, Path], browser: webdriver.Chrome) -> None:
    seen = []
    for dark in (False, True):
        look(browser, pages["single"], 1280, dark=dark)
        script = """const style = getComputedStyle(document.body);
            const lines = [...document.querySelectorAll("svg path")].map((line) => getComputedStyle(line).stroke);
            return [style.backgroundColor, style.color, getComputedStyle(document.querySelector("svg text")).fill,
                    [...new Set(lines)].sort().join()];"""
        seen.append(browser.execute_script(script))  # type: ignore[no-untyped-call]
    light, night = seen
    assert all(one != other for one, other in zip(light, night, strict=True)), seen


@pytest.mark.parametrize("name", ["compared", "single"])
def test_on_paper_it_is_light_and_no_wider_than_the_sheet(name: str, pages: dict[str, Path], browser: webdriver.Chrome) -> None:
    sheet = {"width": 718, "height": 1040, "deviceScaleFactor": 1, "mobile": False}  # A4 within its margins, at 96 dpi
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", sheet)
    dark = [{"name": "prefers-color-scheme", "value": "dark"}]
    try:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": dark})
        browser.get(pages[name].as_uri())
        assert browser.execute_script(FAULTS) == []  # type: ignore[no-untyped-call]
        ground = browser.execute_script("return getComputedStyle(document.body).backgroundColor")  # type: ignore[no-untyped-call]
        assert ground == "rgb(255, 255, 255)"
        assert not browser.execute_script("return document.querySelector('nav').getClientRects().length")  # type: ignore[no-untyped-call]
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})


@pytest.mark.parametrize(
    ("body", "style", "said"),
    [
        ("", "", None),
        ("<p class='x'>pale</p>", ".x { color: #999; }", 'contrast 2.85 of "pale"'),
        ("<img src='data:image/gif;base64,R0lGODlhAQABAAAAACwAAAAAAQABAAA='>", "", "an image without words"),
        ("<h3>deep</h3>", "", "heading deep skips a level"),
        ("<h1>again</h1>", "", "not one first heading"),
        ("<p style='width: 3000px'>wide</p>", "", "the page is wider than the window"),
        ("<p>under</p><p style='margin-top: -30px'>over</p>", "", "P and P overlap"),
        ("<p id='a'>1</p><p id='a'>2</p>", "", "two of id a"),
        ("<a href='#b' style='color: #00c'>away</a>", "", "nothing at #b"),
        ("<svg viewBox='0 0 9 9' height='90'><text>x</text></svg>", "", "a plot without words"),
        (
            "<svg role='img' aria-label='p' width='99' height='90'><text x='9' y='30'>one</text>"
            "<text x='12' y='30'>two</text></svg>",
            "", '"one" and "two" lie on each other',
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_is_seen(body: str, style: str, said: str | None, browser: webdriver.Chrome, tmp_path: Path) -> None:
    """The tests above look with these eyes."""
    faults, _, asked = look(
        browser, write_page(tmp_path, body, f"body {{ color: #000; background: #fff; }} {style}"), 800, dark=False
    )
    assert asked == []
    assert faults == [] if said is None else any(said in fault for fault in faults), faults


def test_a_request_and_an_error_are_seen(browser: webdriver.Chrome, tmp_path: Path) -> None:
    body = "<img src='file:///nowhere.png' alt='x'><script>console.error('spoke')</script>"
    _, messages, asked = look(browser, write_page(tmp_path, body), 800, dark=False)
    assert asked == ["file:///nowhere.png"]
    assert any("spoke" in message for message in messages)
