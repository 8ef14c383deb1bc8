"""The page as a person sees it: in a browser that selenium drives, as wide as a desktop's window and as a phone's."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from chromium import picture
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

from edge_sd.bundle import Bundle
from edge_sd.devices import Job
from edge_sd.devices._chromium import find
from edge_sd.devices._serve import Site
from edge_sd.devices.browser import RUNTIME, page_report

JOB = Job(runtime=RUNTIME, threads=2, least_warmup=2, most_warmup=6, iterations=20, images=1, most_seconds=10)
SECONDS = 120
# Names that a browser is told to look up nowhere: the page comes as from another computer, unencrypted.
ELSEWHERE = "elsewhere.test"
Drive = Callable[..., webdriver.Chrome]


@pytest.fixture
def drive(tmp_path: Path) -> Iterator[Drive]:
    """(width, dark, more flags) → a browser."""
    with ExitStack() as stack:

        def start(width: int = 1200, dark: bool = False, *flags: str) -> webdriver.Chrome:
            options = webdriver.ChromeOptions()
            program = find()
            assert program is not None, "chromium is missing: apt-get install -y chromium chromium-driver"
            driver = shutil.which("chromedriver")
            assert driver is not None, "chromedriver is missing: apt-get install -y chromium-driver"
            options.binary_location = program
            shared = ["--headless", "--no-first-run", "--disable-background-networking", "--disable-component-update"]
            for flag in (*shared, *(["--no-sandbox"] if os.geteuid() == 0 else []), *flags):
                options.add_argument(flag)
            options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
            browser = webdriver.Chrome(options=options, service=Service(driver))
            stack.callback(browser.quit)
            size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
            browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
            scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
            browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})
            return browser

        yield start


def serve(bundle: Bundle, host: str = "127.0.0.1") -> Site:
    setup = {
        "mode": "page",
        "name": bundle.manifest.name,
        "digest": bundle.manifest.digest,
        "job": JOB.model_dump(mode="json"),
        "backend": "wasm",
    }
    return Site(setup, bundle, ("failure", "result"), host=host)


def text(browser: webdriver.Chrome, name: str) -> str:
    return str(browser.find_element(By.ID, name).text)


def run_it(browser: webdriver.Chrome, url: str) -> str:
    """Open the page, press Run and wait for the verdict; its class."""
    browser.get(url)
    wait = WebDriverWait(browser, SECONDS)
    wait.until(lambda _: text(browser, "doing") == "Ready.")
    browser.find_element(By.ID, "run").click()
    wait.until(lambda _: browser.find_element(By.ID, "verdict").is_displayed())
    return str(browser.find_element(By.ID, "verdict").get_attribute("class"))


def complaints(browser: webdriver.Chrome) -> list[Any]:
    return [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]  # type: ignore[no-untyped-call]


@pytest.mark.parametrize(("width", "dark"), [(1200, False), (390, True)])
def test_a_person_runs_it(width: int, dark: bool, drive: Drive, bundle: Bundle, tmp_path: Path) -> None:
    browser = drive(width, dark)
    with serve(bundle) as site:
        assert run_it(browser, site.url) == "good"
        assert text(browser, "sentence").startswith("This browser draws what the reference draws. A picture takes ")
        assert text(browser, "name") == bundle.manifest.name
        assert "every SHA-256 checked" in text(browser, "facts")
        assert "(wasm, 2 threads, clock " in text(browser, "runtime")
        assert len(browser.find_elements(By.CSS_SELECTOR, "#steps tr")) == len(bundle.plan)
        assert len(browser.find_elements(By.CSS_SELECTOR, "#samples canvas")) == 2 * len(bundle.golden.trajectories)
        drawn = "return [...document.querySelectorAll('#samples canvas')].map((canvas) => canvas.toDataURL())"
        pictures = browser.execute_script(drawn)  # type: ignore[no-untyped-call]
        assert len(set(pictures)) == len(bundle.golden.trajectories), "ours are the reference's, and differ from each other"
        names = [element.text for element in browser.find_elements(By.TAG_NAME, "dt")]
        assert names == ["load", "first call", "p50", "p90", "p99", "decoder", "whole image"]
        assert len(browser.find_elements(By.CSS_SELECTOR, "#chart .call")) == 20
        assert page_report(site.posts.get(timeout=20)).startswith("onnxruntime-web ")
        # Nothing is cut at the side, nothing overlaps.
        too_wide = "return document.documentElement.scrollWidth > document.documentElement.clientWidth"
        assert not browser.execute_script(too_wide)  # type: ignore[no-untyped-call]
        places = [element.rect for element in browser.find_elements(By.CSS_SELECTOR, "main > *") if element.is_displayed()]
        assert len(places) == 6
        assert all(above["y"] + above["height"] <= below["y"] for above, below in pairwise(places))
        picture(browser, tmp_path / f"page-{width}.png")
        assert complaints(browser) == []
        # And again, without loading the page anew.
        browser.find_element(By.ID, "run").click()
        WebDriverWait(browser, SECONDS).until(lambda _: text(browser, "doing") == "Done.")
        assert len(browser.find_elements(By.CSS_SELECTOR, "#steps tr")) == len(bundle.plan)


def test_it_can_be_stopped(drive: Drive, bundle: Bundle) -> None:
    browser = drive()
    with serve(bundle) as site:
        browser.get(site.url)
        wait = WebDriverWait(browser, SECONDS)
        wait.until(lambda _: text(browser, "doing") == "Ready.")
        browser.find_element(By.ID, "run").click()
        browser.find_element(By.ID, "stop").click()
        assert text(browser, "doing") == "Stopped."
        assert browser.find_element(By.ID, "run").is_enabled()
        assert not browser.find_element(By.ID, "stop").is_displayed()


def test_a_damaged_bundle_is_refused_in_words(drive: Drive, bundle: Bundle, tmp_path: Path) -> None:
    copy = replace(bundle, path=tmp_path / "copy.edgesd")
    shutil.copytree(bundle.path, copy.path)
    data = bytearray((copy.path / "denoiser.onnx").read_bytes())
    data[len(data) // 3] ^= 4
    (copy.path / "denoiser.onnx").write_bytes(data)
    browser = drive()
    with serve(copy) as site:
        assert run_it(browser, site.url) == "bad"
        assert text(browser, "sentence") == "denoiser.onnx has changed since it was exported (its SHA-256 differs)"
        assert text(browser, "detail") == "Try: copy or export the bundle again"
        assert not browser.find_element(By.ID, "pictures").is_displayed()
        assert page_report(site.posts.get(timeout=20)).startswith("failed: denoiser.onnx has changed")


def test_from_another_computer_hashes_are_checked_all_the_same(drive: Drive, bundle: Bundle, tmp_path: Path) -> None:
    """Neither WebCrypto nor threads nor WebGPU there: it is no secure context."""
    browser = drive(390, False, f"--host-resolver-rules=MAP {ELSEWHERE} 127.0.0.1")
    with serve(bundle, "0.0.0.0") as site:  # noqa: S104 (what the test is about)
        assert run_it(browser, f"http://{ELSEWHERE}:{site.port}{site.path}") == "good"
        state = "return [isSecureContext, crossOriginIsolated, typeof crypto.subtle]"
        assert browser.execute_script(state) == [False, False, "undefined"]  # type: ignore[no-untyped-call]
        assert "every SHA-256 checked" in text(browser, "facts")
        assert "(wasm, 1 thread, clock " in text(browser, "runtime")
        assert "one thread only, and hashes by our own SHA-256" in text(browser, "limits")
        assert not browser.find_element(By.CSS_SELECTOR, "[value=webgpu]").is_enabled()
    copy = replace(bundle, path=tmp_path / "copy.edgesd")
    shutil.copytree(bundle.path, copy.path)
    with (copy.path / "golden.safetensors").open("r+b") as file:
        file.seek(-3, 2)
        file.write(b"\1")
    with serve(copy, "0.0.0.0") as site:  # noqa: S104
        assert run_it(browser, f"http://{ELSEWHERE}:{site.port}{site.path}") == "bad"
        assert text(browser, "sentence").startswith("golden.safetensors has changed since it was exported")


def test_the_page_may_load_nothing_from_elsewhere(drive: Drive, bundle: Bundle) -> None:
    """Its own policy keeps it from that, in the page and in its worker."""
    browser = drive()
    with serve(bundle) as site, serve(bundle) as other:
        browser.get(site.url)
        tries = (
            "const done = arguments[arguments.length - 1];"
            f"Promise.allSettled([fetch('{other.url}'), import('{other.url}noise.mjs'), fetch('https://example.org/')])"
            ".then((all) => done(all.map(({status}) => status)))"
        )
        assert browser.execute_async_script(tries) == ["rejected"] * 3  # type: ignore[no-untyped-call]
        assert any("Content Security Policy" in entry["message"] for entry in complaints(browser))
