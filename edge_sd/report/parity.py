"""The parity of a bundle's runtimes as pictures: curves by step, heat maps of step and subband, images and their differences."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edge_sd.bundle import Golden
from edge_sd.data import grid, png_bytes, rgb
from edge_sd.files import plain_name, write_bytes, write_model, write_text
from edge_sd.report.page import BLUE, GREY, ORANGE, RED, Panel, data_url, legend, panel, template
from edge_sd.runtimes.evidence import Evidence
from edge_sd.runtimes.parity import ParityResult, pictures_of
from edge_sd.validation import Record

JSON, HTML = "parity.json", "parity.html"
_GAIN = 8  # of the differences in the pictures: what the eye would not see at once


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
    pictures = {name: f"{plain_name(name)}.png" for name in sheets}
    for name, sheet in sheets.items():
        write_bytes(folder / pictures[name], sheet)
    report = ParityReport(results=list(results), pictures=pictures)
    context = {
        "results": report.results,
        "panels": parity_panels(results, "p"),
        "sheets": {name: data_url(sheet) for name, sheet in sheets.items()},
    }
    write_text(folder / HTML, template("parity_page.html.j2").render(**context))
    write_model(folder / JSON, report)


def difference_sheet(golden: Golden, evidence: Sequence[Evidence]) -> bytes:
    """PNG with a row a trajectory: the reference's image, the runtime's, and 8 × their difference around grey."""
    shown: list[NDArray[np.uint8]] = []
    for reference, found in zip(golden.trajectories, evidence, strict=True):
        pair = pictures_of(reference, found)
        values = [np.nan_to_num(value, nan=1.0, posinf=1.0, neginf=-1.0) for value in pair]
        shown += list(rgb(np.stack([*values, (values[1] - values[0]) * _GAIN])))
    size = shown[0].shape[0]
    return png_bytes(grid(np.stack(shown), columns=3, scale=max(1, 128 // size)))


def parity_panels(results: Sequence[ParityResult], own: str) -> list[Panel]:
    """Of each runtime: decibels by step, and decibels by step and wavelet subband.

    Args:
        own: prefix of the panels' names.
    """
    return [
        panel
        for index, result in enumerate(results)
        for panel in (_curve(result, f"{own}-{index}"), _heat(result, f"{own}-{index}"))
    ]


def _curve(result: ParityResult, own: str) -> Panel:
    """Teacher-forced, free-running, the noise floor and the gate."""
    figure, ax = panel()
    rows = [step.row for step in result.steps]
    asked = "budget" if result.quantized else "gate"
    ax.plot(
        rows, [step.forced.value_db for step in result.steps], "o-", markersize=4, color=BLUE, label="teacher-forced prediction"
    )
    ax.plot(rows, [step.free_running_db for step in result.steps], "s--", markersize=3, color=ORANGE, label="free-running sample")
    ax.plot(rows, [step.forced.floor_db for step in result.steps], color=GREY, linewidth=1, label="noise floor")
    ax.plot(rows, [step.forced.gate_db for step in result.steps], color=RED, linewidth=1, label=asked)  # type: ignore[arg-type]
    ax.set(xlabel="step", ylabel="dB")
    ax.set_ylim(bottom=min(0.0, *(step.forced.value_db for step in result.steps)))
    legend(figure)
    emulated = " (emulated)" if result.emulated else ""
    alt = f"Signal-to-noise ratio by step in {result.title}{emulated}. {result.verdict}"
    return Panel(f"{own}-parity", f"{result.title}{emulated}: {result.outcome}", alt, figure)


def _heat(result: ParityResult, own: str) -> Panel:
    """Teacher-forced; a cell below its gate has a red frame."""
    from matplotlib.patches import Rectangle

    figure, ax = panel()
    names = list(result.steps[0].bands)
    title = f"{result.title}: by step and subband"
    if not names:
        ax.set_axis_off()
        ax.text(0.5, 0.5, "too small for subbands", ha="center")
        return Panel(f"{own}-bands", title, f"{result.title}: the samples are too small for subbands", figure)
    values = np.array([[step.bands[name].value_db for step in result.steps] for name in names])
    image = ax.imshow(values, aspect="auto", cmap="viridis", interpolation="nearest")
    figure.colorbar(image, ax=ax, label="dB")
    ax.set(xlabel="step", yticks=range(len(names)), yticklabels=names)
    ax.grid(visible=False)
    failed = []
    for column, step in enumerate(result.steps):
        for line, name in enumerate(names):
            if step.bands[name].outcome == "failed":
                failed.append(f"{name} at step {step.row}")
                ax.add_patch(Rectangle((column - 0.5, line - 0.5), 1, 1, fill=False, edgecolor=RED, linewidth=1.5))
    below = f"below the gate: {', '.join(failed)}" if failed else "none is below its gate"
    alt = f"Teacher-forced signal-to-noise ratio by step and subband, {values.min():.1f} to {values.max():.1f} dB; {below}"
    return Panel(f"{own}-bands", title, alt, figure)
