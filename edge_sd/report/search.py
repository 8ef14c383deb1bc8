"""The pictures of a search: how it went, what it found, and solvers over budgets of steps."""

from collections.abc import Sequence

import numpy as np

from edge_sd.diffusion.unified import SolverSchedule
from edge_sd.report.page import png, subplots
from edge_sd.search.compare import FOUND, Comparison
from edge_sd.search.record import SearchRecord, Trial

_TRIAL, _BEST, _CHOSEN, _KNOWN = "#9ecae1", "#1f77b4", "#d62728", "#555555"
_COLOURS = {"ddim": "#7f7f7f", "dpmpp-2m": "#1f77b4", "dpmpp-3m": "#17becf", "unipc-2": "#2ca02c", "unipc-3": "#9467bd"}


def search_picture(record: SearchRecord, trials: Sequence[Trial]) -> bytes:
    """Draw a search as PNG: trials in their order with the known solvers as levels; finalists on fresh noise; timesteps."""
    figure, (course, ranking, times) = subplots(3, 5.2)
    values = np.array([trial.value for trial in trials])
    course.plot(values, ".", color=_TRIAL, markersize=3, label="a trial")
    course.plot(np.minimum.accumulate(values), color=_BEST, linewidth=1.5, label="best so far")
    for known in record.known:
        course.axhline(known.value, color=_COLOURS.get(known.solver, _KNOWN), linewidth=0.8, linestyle="--", label=known.solver)
    shown = max(known.value for known in record.known)
    margin = 0.1 * (shown - values.min())
    settings = record.settings
    course.set(
        title=f"{settings.steps} steps, {len(trials)} trials on {settings.samples} samples",
        xlabel="trial", ylabel=record.settings.objective, ylim=(values.min() - margin, shown + margin),
    )  # fmt: skip
    course.legend(frameon=False, fontsize=7)
    for place, one in enumerate(record.finalists):
        colour = _KNOWN if one.trial == record.best_known else _CHOSEN if one.trial == record.chosen else _BEST
        ranking.plot([place], [one.searched], "x", color=colour, label="on the search's noise" if place == 0 else None)
        ranking.errorbar(
            [place], [one.value], yerr=[one.standard_error], fmt="o", color=colour, capsize=3,
            label="on fresh noise" if place == 0 else None,
        )  # fmt: skip
    names = [one.origin.partition(",")[0] or str(one.trial) for one in record.finalists]
    ranking.set_xticks(range(len(names)), names, fontsize=7)
    ranking.set(title=f"finalists on {record.fresh_samples} fresh samples", xlabel="trial", ylabel=settings.objective)
    ranking.legend(frameon=False, fontsize=7)
    _schedule(times, trials[record.best_known].schedule, _KNOWN, f"best known: {trials[record.best_known].origin}")
    if record.chosen != record.best_known:
        _schedule(times, trials[record.chosen].schedule, _CHOSEN, "chosen")
    times.set(title="timesteps; number: order, ring: corrector, hollow: ε", xlabel="step", ylabel="timestep")
    times.set_xticks(range(0, settings.steps, max(1, settings.steps // 10)))
    times.legend(frameon=False, fontsize=7)
    return png(figure)


def _schedule(ax: object, schedule: SolverSchedule, colour: str, label: str) -> None:
    decisions = schedule.decisions
    ax.plot([one.timestep for one in decisions], "-", color=colour, linewidth=1, label=label)  # type: ignore[attr-defined]
    for step, one in enumerate(decisions):
        face = colour if one.prediction == "x0" else "white"
        ax.plot([step], [one.timestep], "o", color=colour, markerfacecolor=face, markersize=5)  # type: ignore[attr-defined]
        if one.corrector != "none":
            ax.plot([step], [one.timestep], "o", color=colour, markerfacecolor="none", markersize=10)  # type: ignore[attr-defined]
        ax.annotate(  # type: ignore[attr-defined]
            str(one.order), (step, one.timestep), textcoords="offset points", xytext=(6, 5), fontsize=7, color=colour
        )


def comparison_picture(comparison: Comparison) -> bytes:
    """Draw quality over function evaluations as PNG, a line for each solver with its errors."""
    figure, (ax,) = subplots(1, 7.0)
    for solver in dict.fromkeys(row.solver for row in comparison.rows):
        rows = sorted((row for row in comparison.rows if row.solver == solver), key=lambda row: row.steps)
        found = solver == FOUND
        ax.errorbar(
            [row.steps for row in rows],
            [row.value for row in rows],
            yerr=[row.standard_error for row in rows],
            fmt="*-" if found else "o-",
            markersize=9 if found else 3.5,
            linewidth=1.6 if found else 1.0,
            capsize=2,
            color=_CHOSEN if found else _COLOURS.get(solver, _KNOWN),
            label="found by search" if found else f"{solver}, best spacing",
        )
    steps = sorted({row.steps for row in comparison.rows})
    ax.set(title=f"{comparison.about}, n {comparison.fresh_samples}", xlabel="function evaluations", xscale="log")
    ax.set_ylabel(comparison.settings.objective)
    if min(row.value for row in comparison.rows) > 0:
        ax.set_yscale("log")
    ax.set_xticks(steps, [str(n) for n in steps])
    ax.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
    ax.legend(frameon=False, fontsize=8)
    return png(figure)
