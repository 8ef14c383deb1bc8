"""The parity of a bundle's runtimes as pictures: curves by step, heat maps of step and subband, images and their differences."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from edge_sd.bundle import Golden
from edge_sd.data import grid, png_bytes, rgb
from edge_sd.files import write_bytes, write_model, write_text
from edge_sd.report.page import data_url, png, template
from edge_sd.runtimes.evidence import Evidence
from edge_sd.runtimes.parity import ParityResult, pictures_of
from edge_sd.validation import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

JSON, HTML = "parity.json", "parity.html"
_COLUMNS = 3
_GAIN = 8  # of the differences in the pictures: what the eye would not see at once
_FAILED = "#d62728"


class ParityReport(Record):
    """parity.json: one result a runtime, and the picture of each, relative to the file."""

    schema_version: Literal[1] = 1
    kind: Literal["parity-report"] = "parity-report"
    results: list[ParityResult]
    pictures: dict[str, str]


def write_parity(folder: Path, results: Sequence[ParityResult], sheets: Mapping[str, bytes]) -> None:
    """Write parity.json, parity.html (self-contained) and a PNG a runtime.

    Args:
        sheets: PNG of `difference_sheet`, by the result's title.
    """
    pictures = {name: f"{file_name(name)}.png" for name in sheets}
    for name, sheet in sheets.items():
        write_bytes(folder / pictures[name], sheet)
    report = ParityReport(results=list(results), pictures=pictures)
    context = {
        "parity": report.results,
        "curves": data_url(curves(results)),
        "heat": data_url(heat_maps(results)),
        "pictures": {name: data_url(sheet) for name, sheet in sheets.items()},
    }
    write_text(folder / HTML, template("parity_page.html.j2").render(**context))
    write_model(folder / JSON, report)


def file_name(title: str) -> str:
    """A plain file name for a title, whatever a device's address holds."""
    return "".join(letter if letter.isascii() and (letter.isalnum() or letter in ".-") else "-" for letter in title)[:120]


def difference_sheet(golden: Golden, evidence: Sequence[Evidence]) -> bytes:
    """PNG with a row a trajectory: the reference's image, the runtime's, and 8 × their difference around grey."""
    shown: list[NDArray[np.uint8]] = []
    for reference, found in zip(golden.trajectories, evidence, strict=True):
        pair = pictures_of(reference, found)
        values = [np.nan_to_num(value, nan=1.0, posinf=1.0, neginf=-1.0) for value in pair]
        shown += list(rgb(np.stack([*values, (values[1] - values[0]) * _GAIN])))
    size = shown[0].shape[0]
    return png_bytes(grid(np.stack(shown), columns=3, scale=max(1, 128 // size)))


def curves(results: Sequence[ParityResult]) -> bytes:
    """Decibels by step: teacher-forced, free-running, the noise floor and the gate; a panel a runtime."""
    figure, axes = _panels(len(results), 3.0)
    for ax, result in zip(axes, results, strict=False):
        rows = [step.row for step in result.steps]
        ax.plot(rows, [step.forced.value_db for step in result.steps], "o-", markersize=4, label="teacher-forced prediction")
        ax.plot(rows, [step.free_running_db for step in result.steps], "s--", markersize=3, label="free-running sample")
        ax.plot(rows, [step.forced.floor_db for step in result.steps], color="#777777", linewidth=1, label="noise floor")
        gates = [step.forced.gate_db for step in result.steps]
        ax.plot(rows, gates, color=_FAILED, linewidth=1, label="budget" if result.quantized else "gate")  # type: ignore[arg-type]
        ax.set(title=f"{result.title}{' (emulated)' if result.emulated else ''}: {result.outcome}", xlabel="step", ylabel="dB")
        ax.set_ylim(bottom=min(0.0, *(step.forced.value_db for step in result.steps)))
    axes[0].legend(frameon=False, fontsize="small")
    return png(figure)


def heat_maps(results: Sequence[ParityResult]) -> bytes:
    """Teacher-forced decibels by step and wavelet subband; a cell below its gate has a red frame."""
    from matplotlib.patches import Rectangle

    figure, axes = _panels(len(results), 2.8)
    for ax, result in zip(axes, results, strict=False):
        names = list(result.steps[0].bands)
        if not names:
            ax.set_axis_off()
            ax.text(0.5, 0.5, f"{result.title}: too small for subbands", ha="center")
            continue
        values = np.array([[step.bands[name].value_db for step in result.steps] for name in names])
        image = ax.imshow(values, aspect="auto", cmap="viridis", interpolation="nearest")
        figure.colorbar(image, ax=ax, label="dB")
        ax.set(title=result.title, xlabel="step", yticks=range(len(names)), yticklabels=names)
        ax.grid(visible=False)
        for column, step in enumerate(result.steps):
            for line, name in enumerate(names):
                if step.bands[name].outcome == "failed":
                    ax.add_patch(Rectangle((column - 0.5, line - 0.5), 1, 1, fill=False, edgecolor=_FAILED, linewidth=1.5))
    return png(figure)


def _panels(count: int, height: float) -> "tuple[Figure, list[Axes]]":
    from matplotlib.figure import Figure

    columns = min(max(count, 1), _COLUMNS)
    rows = -(-max(count, 1) // columns)
    figure = Figure(figsize=(max(4.4 * columns, 6.0), height * rows), layout="constrained")
    axes = [figure.add_subplot(rows, columns, index + 1) for index in range(max(count, 1))]
    for ax in axes:
        ax.grid(alpha=0.3)
        ax.spines[["top", "right"]].set_visible(False)
    return figure, axes
