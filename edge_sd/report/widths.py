"""The picture of a search for widths: quality against arithmetic, time against arithmetic, and who is called when."""

import numpy as np

from edge_sd.report.page import png, subplots
from edge_sd.search.stepwise import SURE, WidthsRecord

_TRIAL, _POINT, _CHOSEN, _FULL = "#9ecae1", "#1f77b4", "#d62728", "#555555"


def widths_picture(record: WidthsRecord) -> bytes:
    """Draw it as PNG: trials and finalists over multiply-accumulates; the time they take; the widths of the chosen plan."""
    figure, (quality, time, steps) = subplots(3, 5.2)
    shares, values = np.array(record.trials).T
    full = record.finalists[-1]
    quality.plot(100 * shares, values, ".", color=_TRIAL, markersize=4, label="a trial, on the search's noise")
    for index, one in enumerate(record.finalists):
        colour = _CHOSEN if index == record.chosen else _FULL if one is full else _POINT
        quality.errorbar(
            [100 * one.macs_share], [one.value], yerr=[one.standard_error], fmt="o", color=colour, capsize=3, markersize=5,
            label="on fresh noise" if index == 0 else None,
        )  # fmt: skip
    quality.axhline(full.value, color=_FULL, linewidth=0.8, linestyle="--", label="full width")
    seen = [one.value for one in record.finalists]
    low, high = min(*seen, values.min()), max(np.quantile(seen, 0.8), full.value + 3 * SURE * full.standard_error)
    quality.set(
        title=f"{record.settings.steps} steps, {len(record.trials)} trials", xlabel="multiply-accumulates, % of the full width",
        ylabel=record.settings.objective, ylim=(low - 0.1 * (high - low), high + 0.1 * (high - low)),
    )  # fmt: skip
    quality.legend(frameon=False, fontsize=7)
    time.plot([0, 100], [0, 100], color=_FULL, linewidth=0.8, linestyle="--", label="as the arithmetic")
    macs, taken = np.array(record.macs) / record.macs[-1], np.array(record.milliseconds) / record.milliseconds[-1]
    time.plot(100 * macs, 100 * taken, "o-", color=_POINT, label="one call at a width")
    for width, x, y in zip(record.widths, macs, taken, strict=True):
        time.annotate(str(width), (100 * x, 100 * y), textcoords="offset points", xytext=(5, -10), fontsize=7)
    time.set(title="time in torch, one thread", xlabel="multiply-accumulates, %", ylabel="time, %", xlim=(0, 105), ylim=(0, 105))
    time.legend(frameon=False, fontsize=7)
    choice = record.choice
    steps.bar(range(len(choice.widths)), choice.widths, color=_CHOSEN)
    steps.axhline(record.widths[-1], color=_FULL, linewidth=0.8, linestyle="--")
    steps.set(title=f"chosen: {choice.macs_share:.0%} of the arithmetic", xlabel="step", ylabel="width, channels")
    return png(figure)
