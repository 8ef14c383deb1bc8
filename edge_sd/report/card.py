"""The model card beside a bundle: the one inside, and the figures that were measured since, each with its conditions.

The card inside cannot hold them: it is one of the files whose hashes name the bundle that they are figures of.
"""

from collections.abc import Sequence
from pathlib import Path

from edge_sd.bundle.manifest import CARD
from edge_sd.devices import BenchResult
from edge_sd.evaluation.record import Evaluation
from edge_sd.files import write_text
from edge_sd.report.data import Subject
from edge_sd.report.front import where
from edge_sd.report.quantization import QuantizationReport
from edge_sd.runtimes.parity import ParityResult

_BEFORE = "\n## How to run it\n"


def card_path(bundle: Path) -> Path:
    """NAME.card.md beside NAME.edgesd."""
    return bundle.with_suffix(".card.md")


def write_card(bundle: Path, figures: Sequence[str]) -> None:
    """Write the card beside a bundle.

    Args:
        figures: sentences; see `figures_of`.
    """
    text = (bundle / CARD).read_text("utf-8")
    section = "\n## Figures\n\n" + "\n".join(f"* {line}" for line in figures) + "\n" if figures else ""
    before, found, after = text.partition(_BEFORE)
    write_text(card_path(bundle), before + section + found + after)


def figures_of(subject: Subject) -> list[str]:
    """All that was measured of a subject, in sentences with their conditions."""
    lines = [] if subject.quantization is None else quantization_figures(subject.quantization)
    lines += [line for evaluation in subject.evaluations for line in _evaluation(evaluation)]
    lines += [_parity(result) for result in subject.parity]
    return lines + [_latency(result) for result in subject.bench if result.latency is not None]


def quantization_figures(record: QuantizationReport) -> list[str]:
    """What quantization cost."""
    quality = record.quality
    return [
        f"Against full precision, {quality.images} images from seed {quality.seed}, simulated in torch: SNR of the prediction "
        f"{quality.mean_db:.1f} dB on average over the steps, {quality.step_db[quality.worst_step]:.1f} dB at step "
        f"{quality.worst_step}; of the final sample {quality.final_snr_db:.1f} dB; PSNR of the images "
        f"{quality.final_psnr_db:.1f} dB.",
        f"Weights: {record.weights_bytes:,} bytes, {record.weights_bytes / record.float_bytes:.3f} of float32.",
    ]


def _evaluation(evaluation: Evaluation) -> list[str]:
    origin = evaluation.origin
    drawn = (
        ""
        if origin.steps is None
        else f"{origin.steps} steps of {origin.solver} in {origin.runtime or 'torch'}, seed {origin.seed}, "
    )
    conditions = f"{drawn}against {evaluation.real.about} ({evaluation.real.split}), n = {evaluation.n}"
    shown = [one for one in evaluation.figures if not one.name.startswith("wavelet")]
    values = "; ".join(
        f"{one.name} {one.value:.4g}" + ("" if one.standard_error is None else f" ± {one.standard_error:.2g}") for one in shown
    )
    return [f"{values} (± standard error): {conditions}."]


def _parity(result: ParityResult) -> str:
    threads = "" if result.threads is None else f", {result.threads} threads"
    return (
        f"Parity of {result.verdict}; {result.trajectories} golden trajectories against {result.reference}, "
        f"{result.runtime_version}{threads}{', emulated' if result.emulated else ''}."
    )


def _latency(result: BenchResult) -> str:
    latency, measured, device = result.latency, result.measurement, result.device
    assert latency is not None  # noqa: S101 (whoever calls has looked)
    assert measured is not None  # noqa: S101
    marked = "" if result.times == "real" else f", {result.times}: says nothing of a real device"
    memory = ""
    if measured.peak_memory_bytes and measured.base_memory_bytes:
        memory = f" Memory of the program {(measured.peak_memory_bytes - measured.base_memory_bytes) / 2**20:.0f} MiB."
    warned = f" But: {'; '.join(result.warnings)}." if result.warnings else ""
    return (
        f"A call of the denoiser takes {latency.p50_ms:.2f} ms (p50; 95 % {latency.low_ms:.2f}–{latency.high_ms:.2f}; p90 "
        f"{latency.p90_ms:.2f}) in {where(result)} ({measured.runtime_version}{marked}), batch 1, "
        f"{len(measured.samples_ms)} calls on {device.processor}, {device.cores} cores, {device.system}.{memory}{warned}"
    )
