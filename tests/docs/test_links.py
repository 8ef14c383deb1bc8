"""Links lead somewhere: to files, images and headings. Every page is reached from the README, every picture of docs/ is shown."""

from pathlib import Path

import pytest

from documents import PAGES, ROOT, anchors_of, links_of, name_of


def targets(page: Path) -> list[tuple[Path, str]]:
    """(file, anchor) of each link that is no address."""
    inside = [link for link in links_of(page) if "://" not in link and not link.startswith("mailto:")]
    parts = [link.partition("#") for link in inside]
    return [((page.parent / path).resolve() if path else page, anchor) for path, _, anchor in parts]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_resolve(page: Path) -> None:
    for file, anchor in targets(page):
        assert file.exists(), f"{name_of(page)} links to {file}, which is not there"
        assert ROOT in file.parents, f"{name_of(page)} links out of the repository: {file}"
        if anchor:
            assert anchor in anchors_of(file), (
                f"{name_of(page)} links to #{anchor}; {name_of(file)} has {sorted(anchors_of(file))}"
            )


def test_every_page_is_reached_from_the_readme() -> None:
    reached, waiting = set[Path](), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page not in reached:
            reached.add(page)
            waiting += [file for file, _ in targets(page) if file.suffix == ".md"]
    assert not {name_of(page) for page in PAGES} - {name_of(page) for page in reached if ROOT in page.parents}


def test_every_picture_is_shown() -> None:
    shown = {file for page in PAGES for file, _ in targets(page)}
    pictures = {path for path in (ROOT / "docs").rglob("*") if path.suffix in {".png", ".svg", ".jpg"}}
    assert pictures
    assert not {name_of(path) for path in pictures - shown}
