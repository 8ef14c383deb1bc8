"""The page and the Markdown, both from report.json and the pictures beside it."""

from collections.abc import Mapping
from pathlib import Path

from edge_sd.errors import EdgeSDError, UsageError
from edge_sd.files import read_model, write_bytes, write_model, write_text
from edge_sd.report import tables
from edge_sd.report.data import Gallery, Report
from edge_sd.report.figures import figures
from edge_sd.report.front import points, where
from edge_sd.report.page import data_url, template

JSON, HTML, MARKDOWN = "report.json", "report.html", "report.md"
# Of the figures, those that a pull request is about; the page has all.
_IN_MARKDOWN = ("front", "spectrum", "parity", "latency", "memory", "quantization", "loss", "gates")


def pictures_folder(page: Path) -> str:
    """Where a page's pictures lie, relative to it: report.html → report-figures."""
    return f"{page.stem}-figures"


def write_report(report: Report, pictures: Mapping[str, bytes], page: Path) -> None:
    """Write NAME.html (self-contained), NAME.md, NAME.json, and their pictures in NAME-figures.

    Args:
        pictures: PNG bytes by their names in the report.
        page: NAME.html.

    Raises:
        UsageError: the page's name does not end in .html.
        EdgeSDError: it cannot be written.
    """
    if page.suffix != ".html":
        raise UsageError(f"the report's name ends in .html, unlike {page.name}", f"-o {page.name}.html")
    drawn = figures(report)
    shared = {"report": report, "summary": tables.summary(report), "tables": tables, "points": points(report), "where": where}
    html = template("report.html.j2").render(**shared, panels=drawn, urls={name: data_url(png) for name, png in pictures.items()})
    folder = pictures_folder(page)
    shown = [panel for section, panels in drawn.items() if section.rpartition(".")[2] in _IN_MARKDOWN for panel in panels]
    for panel in shown:
        write_bytes(page.parent / folder / f"{panel.name}.png", panel.png())
    for name, png in pictures.items():
        write_bytes(page.parent / name, png)
    markdown = template("report.md.j2").render(**shared, figures={f"{folder}/{panel.name}.png": panel.alt for panel in shown})
    write_text(page, html)
    write_text(page.with_suffix(".md"), markdown)
    write_model(page.with_suffix(".json"), report)


def render(data: Path) -> Report:
    """Render a report again from its JSON and the pictures beside it.

    Raises:
        EdgeSDError: it is damaged, of another version, or a picture has gone.
    """
    report = read_model(Report, data)
    pictures = {name: _read_png(data.parent, name) for name in _picture_names(report)}
    write_report(report, pictures, data.with_suffix(".html"))
    return report


def _picture_names(report: Report) -> list[str]:
    galleries = [one for one in (report.gallery, *(subject.gallery for subject in report.subjects)) if one is not None]
    sheets = [sheet.file for subject in report.subjects for sheet in subject.sheets]
    return [*(name for one in galleries for name in _of_gallery(one)), *sheets]


def _of_gallery(gallery: Gallery) -> list[str]:
    return [name for drawn in gallery.drawn for name in (drawn.images, drawn.difference, drawn.log_spectrum) if name is not None]


def _read_png(folder: Path, name: str) -> bytes:
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise EdgeSDError(f"{name} lies outside of {folder}", "make the report again")
    try:
        return path.read_bytes()
    except OSError as error:
        raise EdgeSDError(
            f"cannot read {path}: {error.strerror}", "edge-sd report draws it again from the run or the bundle"
        ) from error
