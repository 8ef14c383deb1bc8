"""The report's figures, one panel each, so that a page can lay them side by side or below each other."""

from collections.abc import Sequence

import numpy as np

from edge_sd.devices import BenchResult
from edge_sd.files import plain_name
from edge_sd.models.wavelets import SUBBANDS
from edge_sd.report.data import Gates, Report, Spectrum, Subject
from edge_sd.report.front import Point, Quality, points, quality_of, where
from edge_sd.report.page import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, SERIES, Panel, legend, panel
from edge_sd.report.parity import parity_panels

Panels = dict[str, list[Panel]]

_ROLES = {"real": GREY, "teacher": BLUE, "student": RED, "exported": GREEN}
_POINTS = 400  # of a panel's scattered dots: more cannot be told apart


def figures(report: Report) -> Panels:
    """Draw everything that there are data for: section → panels; of a subject's own sections "PLACE.SECTION"."""
    found: Panels = {}
    for place, subject in enumerate(report.subjects):
        own = f"s{place}"
        found |= {f"{place}.{section}": panels for section, panels in _of_subject(subject, own).items()}
    timed = [(subject.name, result) for subject in report.subjects for result in subject.bench if result.latency is not None]
    if timed:
        found["latency"] = _latency(timed, several=report.several)
        found["memory"] = _memory(timed, several=report.several)
        found["sustained"] = [
            _sustained(result, f"sustained-{index}", f"{name}: " if report.several else "")
            for index, (name, result) in enumerate(timed) if result.sustained
        ]  # fmt: skip
    if report.gallery is not None:
        found["spectrum"] = _spectra(report.gallery.spectra, report.gallery.count, "all")
    quality = quality_of(report) if report.several else None
    if quality is not None:
        found["front"] = _front(points(report), quality, report.chosen)
    return {section: panels for section, panels in found.items() if panels}


def _of_subject(subject: Subject, own: str) -> Panels:
    found = {
        "loss": [_loss(role, subject, own) for role in subject.curves],
        "gates": [_gates(gates, subject, own) for gates in subject.gates],
        "parity": parity_panels(subject.parity, own),
    }
    if subject.gallery is not None:
        found["spectrum"] = _spectra(subject.gallery.spectra, subject.gallery.count, own)
    if subject.quantization is not None:
        found["quantization"] = _quantization(subject, own)
    found["evaluation"] = _evaluations(subject, own)
    return found


def _loss(role: str, subject: Subject, own: str) -> Panel:
    figure, ax = panel()
    curve = subject.curves[role]
    colours = iter(SERIES)
    for term, values in curve.terms.items():
        if term != "loss" or len(curve.terms) > 2:
            colour = "black" if term == "loss" else next(colours)
            ax.plot(curve.steps, values, label=term, linewidth=1.2, color=colour)
    ax.set(xlabel="step", yscale="log")
    legend(figure)
    last = ", ".join(f"{term} {values[-1]:.3g}" for term, values in curve.terms.items())
    return Panel(
        f"{own}-loss-{role}",
        f"{role}: loss, weighted terms",
        f"Loss of the {role} over {curve.steps[-1]} steps; at the end {last}",
        figure,
    )


def _spectra(spectra: Sequence[Spectrum], count: int, own: str) -> list[Panel]:
    """Power by frequency, and the ratio to the first."""
    colours = dict(zip((one.role for one in spectra), SERIES, strict=False)) | _ROLES
    power, left = panel()
    ratio, right = panel()
    first = spectra[0]
    for one in spectra:
        style = {"color": colours.get(one.role, GREY), "linestyle": "--" if one.role == "exported" else "-"}
        left.plot(one.frequencies, one.power, label=f"{one.role}, slope {one.slope:.2f}", **style)  # type: ignore[arg-type]
        if one.frequencies == first.frequencies:
            floor = max(*first.power, *one.power, 1e-300) * 1e-16  # images of one colour have no power at all
            decibels = 10 * np.log10(np.maximum(one.power, floor) / np.maximum(first.power, floor))
            right.plot(one.frequencies, decibels, label=f"{one.role}, {one.gap_db:.2f} dB off", **style)  # type: ignore[arg-type]
    for ax, label in ((left, "power"), (right, "dB")):
        ax.set(xlabel="cycles / pixel", ylabel=label)
    if min(min(one.power) for one in spectra) > 0:
        left.set(xscale="log", yscale="log")
        left.tick_params(axis="x", which="minor", labelbottom=False)
    legend(power)
    slopes = ", ".join(f"{one.role} {one.slope:.2f}" for one in spectra)
    found = [
        Panel(f"{own}-spectrum", f"power spectrum, {count} images each", f"Power falls with frequency; slopes: {slopes}", power)
    ]
    if len(spectra) > 1:
        legend(ratio)
        gaps = ", ".join(f"{one.role} {one.gap_db:.2f} dB" for one in spectra[1:])
        found.append(Panel(f"{own}-gap", f"power against that of {first.role}", f"Mean distance to {first.role}: {gaps}", ratio))
    return found


def _gates(gates: Gates, subject: Subject, own: str) -> Panel:
    figure, ax = panel()
    for band, (name, colour) in enumerate(zip(SUBBANDS, SERIES, strict=False)):
        ax.plot(subject.timesteps, [row[band] for row in gates.values], label=name, color=colour)
    ax.set(xlabel="timestep", ylabel="mean gate", ylim=(0, 1))
    ax.invert_xaxis()
    legend(figure, 4)
    ends = ", ".join(f"{name} {gates.values[0][band]:.2f} → {gates.values[-1][band]:.2f}" for band, name in enumerate(SUBBANDS))
    return Panel(
        f"{own}-gates-{plain_name(gates.name)}", f"gates of {gates.name}", f"Mean gate from noise to image: {ends}", figure
    )


# Latency and memory


def _label(name: str, result: BenchResult, several: bool) -> str:
    marked = "" if result.times == "real" else f" ({result.times})"
    return (f"{name}: " if several else "") + where(result) + marked


def _latency(timed: Sequence[tuple[str, BenchResult]], *, several: bool) -> list[Panel]:
    """All calls of each result with quartiles and the median's interval, and the calls in the order of time."""
    rows, left = panel(height=1.4 + 0.42 * len(timed))
    order, right = panel()
    said = []
    for place, (name, result) in enumerate(timed):
        measurement, latency = result.measurement, result.latency
        assert measurement is not None  # noqa: S101 (whoever has a latency has it)
        assert latency is not None  # noqa: S101
        label, colour = _label(name, result, several), SERIES[place % len(SERIES)]
        calls = np.array(measurement.samples_ms)
        shown = calls[:: max(1, len(calls) // _POINTS)]
        jitter = 0.3 * (np.random.default_rng(place).random(len(shown)) - 0.5)
        left.plot(shown, place + jitter, ".", color=colour, markersize=2.5, alpha=0.5)
        q1, q3 = np.percentile(calls, (25, 75))
        left.plot([q1, q3], [place, place], color="black", linewidth=1.2, label="quartiles" if place == 0 else None)
        left.plot(
            [latency.low_ms, latency.high_ms], [place, place], color="black", linewidth=5, solid_capstyle="butt", alpha=0.55,
            label="95 % interval of the median" if place == 0 else None,
        )  # fmt: skip
        left.plot([latency.p50_ms], [place], "|", color="black", markersize=11, label="median" if place == 0 else None)
        right.plot(range(0, len(calls), max(1, len(calls) // _POINTS)), shown, linewidth=0.8, color=colour, label=label)
        said.append(f"{label} {latency.p50_ms:.2f} ms (95 % {latency.low_ms:.2f}–{latency.high_ms:.2f})")
    top = max(np.percentile(result.measurement.samples_ms, 99) for _, result in timed if result.measurement is not None)
    left.set(xlabel="ms a call of the denoiser", xlim=(0, 1.15 * top), ylim=(len(timed) - 0.5, -0.5))
    names = [_label(name, result, several) for name, result in timed]
    left.set_yticks(range(len(timed)), [name.replace(": ", ":\n").replace(", ", ",\n") for name in names], fontsize="x-small")
    right.set(xlabel="call", ylabel="ms", ylim=(0, None))
    legend(rows, 3)
    legend(order, 1)
    words = "Medians: " + "; ".join(said)
    return [
        Panel("latency-distribution", "single calls of the denoiser", words, rows),
        Panel("latency-order", "the calls in the order of time", f"Times of calls one after the other. {words}", order),
    ]


def _memory(timed: Sequence[tuple[str, BenchResult]], *, several: bool) -> list[Panel]:
    known = []
    for name, result in timed:
        found, forecast = result.measurement, result.forecast_memory_bytes
        if found is not None and found.peak_memory_bytes and found.base_memory_bytes and forecast is not None:
            known.append((_label(name, result, several), forecast, found.peak_memory_bytes - found.base_memory_bytes))
    if not known:
        return []
    figure, ax = panel(height=1.2 + 0.5 * len(known))
    for place, (_, forecast, measured) in enumerate(known):
        ax.barh(place - 0.2, forecast / 2**20, 0.36, color=BLUE, label="forecast" if place == 0 else None)
        ax.barh(
            place + 0.2, measured / 2**20, 0.36, color=ORANGE, label="measured: peak − before loading" if place == 0 else None
        )
    ax.set(xlabel="MiB", ylim=(len(known) - 0.5, -0.5))
    ax.set_yticks(range(len(known)), [name.replace(": ", ":\n").replace(", ", ",\n") for name, _, _ in known], fontsize="x-small")
    legend(figure)
    said = "; ".join(f"{name} {forecast / 2**20:.1f} MiB, {measured / 2**20:.1f} MiB" for name, forecast, measured in known)
    return [Panel("memory", "forecast and measured", f"Memory of the program, forecast and measured: {said}", figure)]


def _sustained(result: BenchResult, name: str, whose: str) -> Panel:
    figure, ax = panel()
    assert result.measurement is not None  # noqa: S101 (what is sustained was measured)
    curve = result.measurement.sustained
    minutes = [moment.seconds / 60 for moment in curve]
    ax.plot(minutes, [moment.p50_ms for moment in curve], color=BLUE, label="p50")
    ax.plot(minutes, [moment.p90_ms for moment in curve], color=ORANGE, linewidth=0.9, label="p90")
    ax.set(xlabel="minutes", ylabel="ms", ylim=(0, None))
    legend(figure)
    return Panel(name, f"sustained: {whose}{where(result)}", f"Calls without a pause, {whose}{result.sustained}", figure)


# Size, quality, latency


def _front(found: Sequence[Point], quality: Quality, chosen: str) -> list[Panel]:
    """Quality over size, and over latency; a ring around what no other point beats, a star for what was chosen."""
    names = list(dict.fromkeys(point.subject for point in found))
    by_size, left = panel()
    by_time, right = panel()
    for point in found:
        colour = SERIES[names.index(point.subject) % len(SERIES)]
        star = point.subject == chosen
        style = {"color": colour, "marker": "*" if star else "o", "markersize": 12 if star else 6, "linestyle": "none"}
        label = f"{point.subject}{', chosen' if star else ''}"
        for ax, x, spread in ((left, point.size / 1e6, None), (right, point.p50, _spread(point))):
            if x is not None:
                ax.errorbar([x], [point.quality], xerr=spread, yerr=[point.error], capsize=2, label=label, **style)  # type: ignore[arg-type]
                if point.best:
                    ax.plot([x], [point.quality], "o", markersize=16, markerfacecolor="none", color="black", label="not beaten")
    for ax, label in ((left, "size of the programs, MB"), (right, "ms a step, p50 with its 95 % interval")):
        ax.set_xlabel(label)
        ax.set_ylabel("\n".join(_wrapped(quality.name, 34)), fontsize="small")
        ax.set_xlim(left=0)
        ax.margins(0.12)
    said = "; ".join(
        f"{point.subject} ({point.where}): {point.size / 1e6:.2f} MB, {point.quality:.3g}"
        + ("" if point.p50 is None else f", {point.p50:.2f} ms") for point in found
    )  # fmt: skip
    legend(by_size)
    panels = [Panel("front-size", "quality over size (lower is better)", f"{quality.name} by size: {said}", by_size)]
    if any(point.p50 is not None for point in found):
        legend(by_time)
        panels.append(
            Panel("front-latency", "quality over latency (lower is better)", f"{quality.name} by latency: {said}", by_time)
        )
    return panels


def _spread(point: Point) -> list[list[float]] | None:
    if point.p50 is None or point.low is None or point.high is None:
        return None
    return [[max(point.p50 - point.low, 0)], [max(point.high - point.p50, 0)]]


def _wrapped(text: str, width: int) -> list[str]:
    import textwrap

    return textwrap.wrap(text, width)


# Quantization and evaluation


def _quantization(subject: Subject, own: str) -> list[Panel]:
    record = subject.quantization
    assert record is not None  # noqa: S101 (asked for)
    figure, ax = panel()
    quality = record.quality
    ax.plot(quality.step_db, "o-", markersize=3.5, color=PURPLE)
    for start in record.starts[1:]:
        ax.axvline(start - 0.5, color=GREY, linewidth=0.8, linestyle="--")
    ax.set(xlabel="step (dashed: groups of steps)", ylabel="SNR of the prediction, dB", ylim=(min(0.0, *quality.step_db), None))
    worst = quality.step_db[quality.worst_step]
    lowest = f"lowest {worst:.1f} dB at step {quality.worst_step}"
    alt = f"SNR of the quantized model's prediction by step: mean {quality.mean_db:.1f} dB, {lowest}"
    found = [Panel(f"{own}-quality", "against full precision, by step", alt, figure)]
    if record.front:
        figure, ax = panel()
        ax.plot(
            [one.bytes / 1e6 for one in record.front],
            [one.predicted_db for one in record.front],
            color=BLUE,
            label="predicted, rounded to nearest",
        )
        for one in record.front:
            if one.chosen:
                ax.plot([one.bytes / 1e6], [one.predicted_db], "o", color=RED, label=f"chosen: {record.budget}")
                ax.plot(
                    [one.bytes / 1e6],
                    [quality.mean_db],
                    "*",
                    markersize=11,
                    color=GREEN,
                    label=f"measured: {quality.mean_db:.1f} dB",
                )
        ax.set(xlabel="weights and scales, MB", ylabel="SNR of the prediction, dB")
        legend(figure, 1)
        found.append(
            Panel(
                f"{own}-bits",
                "bits by layer: size against quality",
                f"Front of {len(record.front)} allocations; budget {record.budget}, measured {quality.mean_db:.1f} dB",
                figure,
            )
        )
    return found


def _evaluations(subject: Subject, own: str) -> list[Panel]:
    """Of each evaluation the distance in every wavelet band, where it has it."""
    found = []
    for index, evaluation in enumerate(subject.evaluations):
        bands = [one for one in evaluation.figures if one.name.startswith("wavelet SWD ")]
        if not bands:
            continue
        figure, ax = panel()
        names = [one.name.removeprefix("wavelet SWD ") for one in bands]
        ax.bar(
            names,
            [one.value for one in bands],
            yerr=[one.standard_error or 0.0 for one in bands],
            color=BLUE,
            ecolor="black",
            capsize=2,
        )
        ax.tick_params(axis="x", rotation=60)
        ax.set(ylabel="real s.d.", ylim=(0, None))
        said = ", ".join(f"{name} {one.value:.3f}" for name, one in zip(names, bands, strict=True))
        origin = evaluation.origin.runtime or evaluation.origin.name
        found.append(
            Panel(f"{own}-bands-{index}", f"sliced Wasserstein by wavelet band, {origin}, n {evaluation.n}", said, figure)
        )
    return found
