"""The report's figures, as PNG bytes. matplotlib's object interface is used: no global state, no display."""

from typing import TYPE_CHECKING

from edge_sd.report.data import RunReport
from edge_sd.report.page import png
from edge_sd.report.parity import curves, heat_maps

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = {"real": "#222222", "teacher": "#1f77b4", "student": "#d62728", "exported": "#2ca02c"}
_BANDS = ("LL", "LH", "HL", "HH")


def figures(report: RunReport) -> dict[str, bytes]:
    """Draw everything: {"loss": PNG, "spectrum": PNG, "parity": PNG, "bands": PNG, "latency": PNG[, "gates": PNG]}."""
    drawn = {"loss": _loss(report), "spectrum": _spectrum(report), "latency": _latency(report)}
    drawn |= {"parity": curves(report.parity), "bands": heat_maps(report.parity)}
    if report.gates:
        drawn["gates"] = _gates(report)
    return drawn


def _subplots(columns: int, width: float = 4.6) -> "tuple[Figure, list[Axes]]":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, 3.2), layout="constrained")
    axes = [figure.add_subplot(1, columns, column + 1) for column in range(columns)]
    for ax in axes:
        ax.grid(alpha=0.3)
        ax.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _loss(report: RunReport) -> bytes:
    figure, axes = _subplots(max(len(report.curves), 1))
    for ax, (role, curve) in zip(axes, report.curves.items(), strict=False):
        for term, values in curve.terms.items():
            if term != "loss" or len(curve.terms) > 2:
                ax.plot(curve.steps, values, label=term, linewidth=1.2, color="black" if term == "loss" else None)
        ax.set(title=f"{role}: loss, weighted terms", xlabel="step", yscale="log")
        ax.legend(frameon=False)
    return png(figure)


def _spectrum(report: RunReport) -> bytes:
    figure, (left, right) = _subplots(2)
    real = next(spectrum for spectrum in report.spectra if spectrum.role == "real")
    for spectrum in report.spectra:
        style = {"color": _COLOURS[spectrum.role], "linestyle": "--" if spectrum.role == "exported" else "-"}
        left.plot(spectrum.frequencies, spectrum.power, label=f"{spectrum.role} (slope {spectrum.slope:.2f})", **style)  # type: ignore[arg-type]
        ratio = [ours / theirs for ours, theirs in zip(spectrum.power, real.power, strict=True)]
        right.plot(spectrum.frequencies, ratio, label=f"{spectrum.role} ({spectrum.gap_db:.2f} dB off)", **style)  # type: ignore[arg-type]
    left.set(title=f"power spectrum, {report.sample_count} samples each", xlabel="cycles / pixel", xscale="log", yscale="log")
    right.set(title="power against real images'", xlabel="cycles / pixel", yscale="log")
    for ax in (left, right):
        ax.legend(frameon=False)
    return png(figure)


def _latency(report: RunReport) -> bytes:
    figure, (left, right) = _subplots(2)
    names = [result.job.runtime for result in report.bench]
    samples = [() if result.measurement is None else result.measurement.samples_ms for result in report.bench]
    left.boxplot(samples, tick_labels=names, whis=(1, 99), showfliers=False)
    left.set(title="a call, ms (box: quartiles, whiskers: 1 %, 99 %)", ylim=(0, None))
    for name, calls in zip(names, samples, strict=True):
        right.plot(calls, linewidth=0.8, label=name)
    right.set(title="every timed call", xlabel="call", ylabel="ms", ylim=(0, None))
    right.legend(frameon=False)
    return png(figure)


def _gates(report: RunReport) -> bytes:
    figure, axes = _subplots(len(report.gates), 3.4)
    for ax, gates in zip(axes, report.gates, strict=True):
        for band, name in enumerate(_BANDS):
            ax.plot(report.timesteps, [row[band] for row in gates.values], label=name)
        ax.set(title=gates.name, xlabel="timestep", ylim=(0, 1))
        ax.invert_xaxis()
    axes[0].set_ylabel("mean gate")
    axes[0].legend(frameon=False)
    return png(figure)
