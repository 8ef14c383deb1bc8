"""A page as a person sees it: in a Chromium without a window, as wide as a desktop's or a phone's, in light or dark colours."""

import base64
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver.chrome.service import Service

from edge_sd.devices._chromium import find

_FLAGS = ("--headless", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--allow-file-access")

# What a person could not read or reach, as a list of words. Contrast is that of WCAG 2.1, 1.4.3.
FAULTS = """
const faults = [];
const luminance = (colour) => {
  const [r, g, b] = colour.match(/[\\d.]+/g).slice(0, 3).map((value) => value / 255)
    .map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const ground = (element) => {
  for (let at = element; at; at = at.parentElement) {
    const colour = getComputedStyle(at).backgroundColor;
    if (!/rgba\\(.*, 0\\)|transparent/.test(colour)) return colour;
  }
  return "rgb(255, 255, 255)";
};
const shown = (element) => element.getClientRects().length > 0;
let texts = 0;
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const element = walker.currentNode.parentElement;
  if (!walker.currentNode.data.trim() || !shown(element) || element.closest("style, script")) continue;
  texts += 1;
  const style = getComputedStyle(element);
  const colour = element.closest("svg") ? style.fill : style.color;
  const [low, high] = [luminance(colour), luminance(ground(element))].sort((a, b) => a - b);
  const contrast = (high + 0.05) / (low + 0.05);
  if (contrast < 4.5) faults.push(`contrast ${contrast.toFixed(2)} of "${walker.currentNode.data.trim().slice(0, 40)}"`);
}
if (texts < 20) faults.push(`only ${texts} texts`);
for (const image of document.querySelectorAll("img")) {
  if (!image.alt.trim()) faults.push("an image without words");
  if (!image.complete || !image.naturalWidth) faults.push(`an image that does not load: ${image.alt}`);
}
for (const plot of document.querySelectorAll("svg")) {
  if (plot.getAttribute("role") !== "img" || !plot.getAttribute("aria-label")) faults.push("a plot without words");
}
let level = 0;
const headings = [...document.querySelectorAll("h1, h2, h3, h4, h5, h6")];
for (const heading of headings) {
  const next = Number(heading.tagName[1]);
  if (next > level + 1) faults.push(`heading ${heading.textContent} skips a level`);
  level = next;
}
if (headings.filter((heading) => heading.tagName === "H1").length !== 1) faults.push("not one first heading");
const names = [...document.querySelectorAll("[id]")].map((element) => element.id);
for (const name of new Set(names.filter((one, index) => names.indexOf(one) !== index))) faults.push(`two of id ${name}`);
for (const link of document.querySelectorAll("a[href^='#'], use")) {
  if (!document.getElementById(link.getAttribute("href").slice(1))) faults.push(`nothing at ${link.getAttribute("href")}`);
}
if (document.documentElement.scrollWidth > window.innerWidth) faults.push("the page is wider than the window");
for (const element of document.querySelectorAll("main *:not(svg *)")) {
  if (!shown(element) || element.closest(".box > *, pre > *")) continue;
  const box = element.getBoundingClientRect();
  if (box.right > window.innerWidth + 1 || box.left < -1) faults.push(`${element.tagName} is cut at the side`);
}
// Blocks below or beside each other, not over each other.
for (const parent of document.querySelectorAll("main, section, figure, .panels, .pictures, nav ul, tbody, details[open]")) {
  const boxes = [...parent.children].filter(shown).map((child) => [child, child.getBoundingClientRect()]);
  boxes.forEach(([child, a], index) => {
    for (const [other, b] of boxes.slice(index + 1)) {
      const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left);
      const high = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
      if (wide > 1 && high > 1) faults.push(`${child.tagName} and ${other.tagName} overlap in ${parent.tagName}`);
    }
  });
}
// Letters of a plot may not lie on each other, nor leave it.
for (const plot of document.querySelectorAll("svg")) {
  const [frame, name] = [plot.getBoundingClientRect(), (plot.getAttribute("aria-label") || "").slice(0, 50)];
  const texts = [...plot.querySelectorAll("text")].filter((text) => text.textContent.trim());
  const boxes = texts.map((text) => [text.textContent.trim(), text.getBoundingClientRect()]);
  boxes.forEach(([text, a], index) => {
    if (a.left < frame.left - 2 || a.right > frame.right + 2 || a.top < frame.top - 2 || a.bottom > frame.bottom + 2) {
      faults.push(`"${text}" leaves the plot ${name}`);
    }
    for (const [other, b] of boxes.slice(index + 1)) {
      const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left);
      const high = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
      // Boxes are as high as a line, letters are not.
      if (wide > 1 && high > 0.35 * Math.min(a.height, b.height)) {
        faults.push(`"${text}" and "${other}" lie on each other in ${name}`);
      }
    }
  });
}
return [...new Set(faults)];
"""


@contextmanager
def browser() -> Iterator[webdriver.Chrome]:
    """A browser that writes down what its console says and what it asks the network for."""
    options = webdriver.ChromeOptions()
    program, driver = find(), shutil.which("chromedriver")
    assert program is not None, "chromium is missing: apt-get install -y chromium chromium-driver"
    assert driver is not None, "chromedriver is missing: apt-get install -y chromium-driver"
    options.binary_location = program
    for flag in (*_FLAGS, *(["--no-sandbox"] if os.geteuid() == 0 else [])):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    opened = webdriver.Chrome(options=options, service=Service(driver))
    try:
        yield opened
    finally:
        opened.quit()


def look(opened: webdriver.Chrome, page: Path, width: int, *, dark: bool) -> tuple[list[str], list[str], list[str]]:
    """Open a page: what is wrong with it, what the console said, and all addresses that were asked for beside the page's own."""
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})
    _log(opened, "performance")
    opened.get(page.as_uri())
    opened.execute_script("document.querySelectorAll('details').forEach((one) => { one.open = true; })")  # type: ignore[no-untyped-call]
    faults: list[str] = opened.execute_script(FAULTS)  # type: ignore[no-untyped-call]
    asked = [
        message["params"]["request"]["url"]
        for message in (json.loads(entry["message"])["message"] for entry in _log(opened, "performance"))
        if message["method"] == "Network.requestWillBeSent"
    ]
    others = [url for url in asked if url != page.as_uri() and not url.startswith("data:")]
    assert page.as_uri() in asked, "the log of the network shows nothing"
    return faults, [entry["message"] for entry in _log(opened, "browser")], others


def picture(opened: webdriver.Chrome, path: Path) -> None:
    """The whole page as PNG."""
    height = opened.execute_script("return document.documentElement.scrollHeight")  # type: ignore[no-untyped-call]
    width = opened.execute_script("return document.documentElement.clientWidth")  # type: ignore[no-untyped-call]
    clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
    shot = opened.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip})
    path.write_bytes(base64.b64decode(shot["data"]))


def _log(opened: webdriver.Chrome, kind: str) -> list[Any]:
    return list(opened.get_log(kind))  # type: ignore[no-untyped-call]


def write_page(folder: Path, body: str, style: str = "") -> Path:
    """A page with twenty-odd lines of text, and `body`."""
    text = "".join(f"<p>line {number}</p>" for number in range(25))
    head = f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>t</title><style>{style}</style></head>'
    body = f"<body><main><h1>Title</h1>{body}<section>{text}</section></main></body></html>"
    (folder / "page.html").write_text(head + body, "utf-8")
    return folder / "page.html"
