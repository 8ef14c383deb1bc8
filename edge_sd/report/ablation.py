"""The report of an ablation: every figure with its interval over seeds, as JSON, a Markdown table and pictures."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from edge_sd.checkpoint import versions
from edge_sd.evaluation.record import Evaluation
from edge_sd.evaluation.recovery import Recovery
from edge_sd.files import write_bytes, write_model, write_text
from edge_sd.models.wavelets import SUBBANDS
from edge_sd.report.page import png, subplots
from edge_sd.validation import Record

JSON, MARKDOWN = "ablation.json", "ablation.md"
TEACHER = "teacher"
_COLOURS = {"teacher": "#1f77b4", "lite": "#7f7f7f", "all": "#d62728"}
# Two-sided 95 % quantiles of Student's t, by degrees of freedom.
_T95 = (math.nan, 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


class Summary(Record):
    """One figure of one variant over the seeds.

    Attributes:
        values: one a seed, in the seeds' order.
        half_width: of the 95 % t-interval of the mean; None of a single seed.
        difference, difference_half_width: to the baseline, seed by seed, with its interval.
    """

    values: tuple[float, ...]
    mean: float
    half_width: float | None
    difference: float | None = None
    difference_half_width: float | None = None

    @property
    def beyond(self) -> bool:
        """Whether the difference to the baseline is larger than its interval."""
        width = self.difference_half_width
        return self.difference is not None and width is not None and abs(self.difference) > width


class Row(Record):
    """A variant."""

    variant: str
    parts: tuple[str, ...]
    parameters: int
    macs: int
    train_seconds: float | None
    figures: dict[str, Summary]


class AblationReport(Record):
    """ablation.json."""

    schema_version: Literal[1] = 1
    kind: Literal["ablation-report"] = "ablation-report"
    name: str
    config: dict[str, Any]
    versions: dict[str, str]
    n: int = Field(ge=2)
    split: str
    data: str
    seeds: tuple[int, ...]
    definitions: dict[str, str]
    rows: tuple[Row, ...]


def summarise(values: Sequence[float], baseline: Sequence[float] | None = None) -> Summary:
    """Mean and interval of one figure over seeds, and of its difference to the baseline's, seed by seed."""
    mean, half = _interval(values)
    if baseline is None:
        return Summary(values=tuple(values), mean=mean, half_width=half)
    difference, difference_half = _interval([ours - theirs for ours, theirs in zip(values, baseline, strict=True)])
    return Summary(values=tuple(values), mean=mean, half_width=half, difference=difference, difference_half_width=difference_half)


def _interval(values: Sequence[float]) -> tuple[float, float | None]:
    freedom = len(values) - 1
    if freedom < 1:
        return float(values[0]), None
    quantile = _T95[min(freedom, len(_T95) - 1)]  # of more seeds a little too wide
    return float(np.mean(values)), float(quantile * np.std(values, ddof=1) / math.sqrt(len(values)))


def assemble_ablation(
    name: str,
    config: dict[str, Any],
    found: Sequence[tuple[str, int, Evaluation]],
    models: Mapping[str, tuple[tuple[str, ...], int, int]],
    seconds: Mapping[str, float],
    baseline: str,
) -> AblationReport:
    """From evaluations to a report.

    Args:
        found: (variant or "teacher", seed, evaluation).
        models: variant → (parts that are on, parameters, MACs).
        seconds: variant → what training it took, on average.
    """
    one = found[0][2]
    names = [figure.name for figure in one.figures]

    def values(variant: str, figure: str) -> list[float]:
        return [evaluation.figure(figure).value for role, _, evaluation in found if role == variant]

    rows = []
    for variant, (parts, parameters, macs) in models.items():
        against = None if variant in (baseline, TEACHER) else baseline
        figures = {
            figure: summarise(values(variant, figure), None if against is None else values(against, figure)) for figure in names
        }
        rows.append(
            Row(
                variant=variant,
                parts=parts,
                parameters=parameters,
                macs=macs,
                train_seconds=seconds.get(variant),
                figures=figures,
            )
        )
    return AblationReport(
        name=name,
        config=config,
        versions=versions(),
        n=one.n,
        split=one.real.split,
        data=one.real.about,
        seeds=tuple(dict.fromkeys(seed for _, seed, _ in found)),
        definitions={figure.name: figure.definition for figure in one.figures},
        rows=tuple(rows),
    )


def ablation_table(report: AblationReport, figures: Sequence[str]) -> str:
    """A Markdown table: mean ± half the 95 % interval; in brackets the difference to the baseline, bold beyond its interval."""
    lines = [
        f"{report.data}; n = {report.n} against {report.split}; seeds {', '.join(map(str, report.seeds))}. "
        "Mean ± 95 % t-interval over seeds; in brackets the difference to Lite, seed by seed, bold where it is "
        "beyond its interval (by chance 1 in 20 is).",
        "",
        "| variant | M params | MMACs | s a run | " + " | ".join(figures) + " |",
        "| --- | --- | --- | --- |" + " --- |" * len(figures),
    ]
    for row in report.rows:
        seconds = "–" if row.train_seconds is None else f"{row.train_seconds:.0f}"
        cells = [row.variant, f"{row.parameters / 1e6:.2f}", f"{row.macs / 1e6:.1f}", seconds]
        lines.append("| " + " | ".join([*cells, *(_cell(row.figures[figure]) for figure in figures)]) + " |")
    return "\n".join(lines) + "\n"


def _cell(summary: Summary) -> str:
    text = f"{summary.mean:.3f}" + ("" if summary.half_width is None else f" ± {summary.half_width:.3f}")
    if summary.difference is None:
        return text
    width = "" if summary.difference_half_width is None else f" ± {summary.difference_half_width:.3f}"
    difference = f"({summary.difference:+.3f}{width})"
    return f"{text} **{difference}**" if summary.beyond else f"{text} {difference}"


def headline(report: AblationReport) -> list[str]:
    """The figures that a table shows: the kernel distance if there is one, finest bands, spectrum, precision and recall."""
    names = list(report.definitions)
    wanted = ("-KID", "KID", "HH1", "HL1", "LH1", "SWD, mean", "spectrum gap dB", "precision", "recall")
    return list(dict.fromkeys(name for want in wanted for name in names if name.endswith(want)))


def write_ablation(report: AblationReport, pictures: Mapping[str, bytes], out: Path) -> None:
    """Write ablation.json, ablation.md and the pictures."""
    write_model(out / JSON, report)
    write_text(out / MARKDOWN, ablation_table(report, headline(report)))
    for name, data in pictures.items():
        write_bytes(out / f"{name}.png", data)


def ablation_figure(report: AblationReport) -> bytes:
    """Each variant's seeds, mean and interval, one panel a figure."""
    names = headline(report)[:6]
    figure, axes = subplots(len(names), 3.4)
    for ax, name in zip(axes, names, strict=True):
        for place, row in enumerate(report.rows):
            summary, colour = row.figures[name], _COLOURS.get(row.variant, "#2ca02c")
            ax.plot(summary.values, [place] * len(summary.values), ".", color=colour, alpha=0.6)
            ax.errorbar(
                [summary.mean], [place], xerr=[summary.half_width or 0.0], fmt="|", color=colour, capsize=3, markersize=12
            )
        ax.set_yticks(range(len(report.rows)), [row.variant for row in report.rows] if ax is axes[0] else [])
        ax.set(title=f"{name}, n {report.n}")
        ax.invert_yaxis()
    return png(figure)


def frequency_figure(
    gates: Mapping[str, np.ndarray],
    timesteps: np.ndarray,
    recoveries: Mapping[str, Recovery],
    spectra: Mapping[str, Evaluation],
) -> bytes:
    """The frequency picture.

    Args:
        gates: mean gate (N, 4) of each gated resampling at the plan's `timesteps` (N,).
        recoveries: role → what it recovers.
        spectra: role → an evaluation whose radial spectra are shown.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14.4, 6.8 if gates else 3.4), layout="constrained")
    rows = figure.subfigures(2 if gates else 1, 1, squeeze=False)[:, 0]
    shares, fronts, powers = rows[-1].subplots(1, 3)
    for ax, (name, values) in zip(np.atleast_1d(rows[0].subplots(1, len(gates))) if gates else (), gates.items(), strict=True):
        for band, label in enumerate(SUBBANDS):
            ax.plot(timesteps, values[:, band], label=label)
        ax.set(title=f"gates, {name}", xlabel="timestep", ylabel="mean gate", ylim=(0, 1))
        ax.invert_xaxis()
        ax.legend(frameon=False)
    _draw_recovery(shares, fronts, recoveries)
    for role, evaluation in spectra.items():
        curves = evaluation.spectra
        powers.plot(curves.frequencies, curves.gap_db, color=_COLOURS.get(role), label=role)
    powers.axhline(0, color="#222222", linewidth=1, label="real")
    powers.set(title="spectrum against real images", xlabel="cycles / pixel", ylabel="dB")
    powers.legend(frameon=False)
    return png(figure)


def _draw_recovery(shares: Any, fronts: Any, recoveries: Mapping[str, Recovery]) -> None:
    from edge_sd.evaluation.recovery import front

    first = next(iter(recoveries.values()))
    chosen = np.linspace(0, len(first.timesteps) - 1, 4).round().astype(int)
    for place, row in enumerate(chosen):
        colour = f"C{place}"
        shares.plot(first.frequencies, first.wiener[row], "--", color=colour, label=f"t {first.timesteps[row]}: Wiener")
        for role, found in recoveries.items():
            style = {"teacher": "-", "lite": ":"}.get(role, "-.")
            shares.plot(found.frequencies, found.measured[row], style, color=colour)
    shares.set(title="power recovered (– teacher, ·· lite, -· all)", xlabel="cycles / sample", ylim=(0, 1.3))
    shares.legend(frameon=False, fontsize="small")
    for role, found in recoveries.items():
        fronts.plot(found.timesteps, front(found.frequencies, found.measured), color=_COLOURS.get(role), label=role)
    fronts.plot(first.timesteps, first.front, "k--", label="Wiener, measured spectrum")
    fronts.plot(first.timesteps, first.power_law_front, "k:", label="power law, f₀·√(ᾱ/(1−ᾱ))")
    top = float(first.frequencies[-1])
    fronts.set(title="where half the power is recovered", xlabel="timestep", ylabel="cycles / sample", ylim=(0, top * 1.2))
    fronts.invert_xaxis()
    fronts.legend(frameon=False, fontsize="small")
