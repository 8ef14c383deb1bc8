"""What a person reads of a quantization: its figures as JSON, ranges by layer and group of steps, size against quality."""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from pydantic import Field

from edge_sd.quantize.checkpoint import BlockRecord
from edge_sd.quantize.grid import ActivationGrid
from edge_sd.quantize.quality import Quality
from edge_sd.quantize.ranges import Observations, groups_of
from edge_sd.report.page import png
from edge_sd.validation import Record


class PointCoverage(Record):
    """One point in one group of steps.

    Attributes:
        low, high: what was met.
        grid_low, grid_high: what its grid spans.
        clipped: share of the values met that lie outside of it.
    """

    point: str
    group: int
    low: float
    high: float
    grid_low: float
    grid_high: float
    clipped: float


class Allocation(Record):
    """One point of the front of size and quality."""

    bytes: float
    predicted_db: float
    wide: int = Field(ge=0)  # layers with 8 bits
    chosen: bool = False


class QuantizationReport(Record):
    """quantize.json.

    Attributes:
        digest: of the weights that came out; with NNCF, which makes a program and no weights, of the bundle. Empty in records of
            before they held one.
        engine: whose roundings these are.
        starts: the step with which each group of steps begins.
        group_errors: error of the prediction, relative to its power, with activations alone quantized in 1, 2, … groups of steps.
        quality: of the simulation against full precision.
        weights_bytes, float_bytes: of the denoiser's weights, as they are stored in the checkpoint and in float32.
        effective_bits: stored bits a weight of the quantized layers.
    """

    schema_version: Literal[1] = 1
    kind: Literal["quantization"] = "quantization"
    digest: str = ""
    engine: str
    model: str
    starts: tuple[int, ...]
    group_errors: tuple[float, ...]
    quality: Quality
    blocks: tuple[BlockRecord, ...]
    coverage: tuple[PointCoverage, ...]
    weights_bytes: int
    float_bytes: int
    effective_bits: float
    front: tuple[Allocation, ...] = ()
    budget: str = ""
    calibration: str
    seconds: dict[str, float] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict)


def coverage(
    observed: Observations, grids: Mapping[str, Sequence[ActivationGrid]], starts: Sequence[int]
) -> tuple[PointCoverage, ...]:
    """What each point met in each group of steps, and what its grid leaves out."""
    groups = groups_of(starts, len(observed.ranges.low))
    found = []
    for name, of_groups in grids.items():
        for group, (rows, grid) in enumerate(zip(groups, of_groups, strict=True)):
            values = np.concatenate([observed.values[name][row] for row in rows])
            low, high = grid.range
            half = grid.scale / 2  # what rounds to the last integer is not clipped
            clipped = float(np.mean((values < low - half) | (values > high + half)))
            found.append(
                PointCoverage(
                    point=name, group=group, low=float(values.min()), high=float(values.max()),
                    grid_low=low, grid_high=high, clipped=clipped,
                )
            )  # fmt: skip
    return tuple(found)


def coverage_picture(report: QuantizationReport) -> bytes:
    """Heat maps, points by groups of steps: the width of the range that was met, and the share that its grid clips. PNG."""
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(entry.point for entry in report.coverage))
    widths, clipped = np.zeros((2, len(names), len(report.starts)))
    for entry in report.coverage:
        row = names.index(entry.point)
        widths[row, entry.group] = entry.high - entry.low
        clipped[row, entry.group] = 100 * entry.clipped
    figure = Figure(figsize=(9, max(2.5, 0.16 * len(names) + 1)), layout="constrained")
    ends = [*report.starts[1:], len(report.quality.step_db)]
    groups = [f"{start}–{end - 1}" for start, end in zip(report.starts, ends, strict=True)]
    panels = (("width of the range", widths, LogNorm()), ("clipped, %", clipped, None))
    for index, (title, values, norm) in enumerate(panels):
        ax = figure.add_subplot(1, 2, index + 1)
        image = ax.imshow(values, aspect="auto", norm=norm, cmap="viridis", interpolation="nearest")
        ax.set(title=title, xlabel="steps", xticks=range(len(groups)), xticklabels=groups)
        ax.set_yticks(range(len(names)), names if index == 0 else [], fontsize=5)
        figure.colorbar(image, ax=ax)
    return png(figure)


def front_picture(report: QuantizationReport) -> bytes:
    """Size of the weights against predicted quality, the chosen point marked, and what it came to when measured. PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.6), layout="constrained")
    ax = figure.add_subplot()
    sizes, decibels = [point.bytes / 1e6 for point in report.front], [point.predicted_db for point in report.front]
    ax.plot(sizes, decibels, "-", color="#1f77b4", linewidth=1.2, label="predicted, rounded to nearest")
    for point in report.front:
        if point.chosen:
            ax.plot([point.bytes / 1e6], [point.predicted_db], "o", color="#d62728", label=f"chosen: {report.budget}")
            measured = f"measured, reconstructed: {report.quality.mean_db:.1f} dB"
            ax.plot([point.bytes / 1e6], [report.quality.mean_db], "*", markersize=11, color="#2ca02c", label=measured)
    ax.set(xlabel="weights and scales, MB", ylabel="SNR of the prediction, dB")
    ax.grid(alpha=0.3)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False)
    return png(figure)
