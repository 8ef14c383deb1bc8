"""From the files of a run to one report."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from edge_sd.bundle import open_bundle
from edge_sd.checkpoint import versions
from edge_sd.devices import BenchResult
from edge_sd.evaluation import psnr_db, radial_spectrum, spectral_slope, spectrum_gap_db
from edge_sd.files import read_tensors
from edge_sd.foreign import open_model
from edge_sd.models.count import count
from edge_sd.report.data import Curve, Gates, ModelRow, RunReport, Spectrum
from edge_sd.runtimes.parity import ParityResult
from edge_sd.training.state import read_metrics
from edge_sd.validation import Record

_CURVE_POINTS = 200


class SampleHeader(Record):
    """The metadata of a file of samples, or of gates."""

    schema_version: Literal[1] = 1
    kind: Literal["samples"] = "samples"
    role: str
    seed: int
    runtime: str


def assemble(
    name: str,
    config: dict[str, Any],
    checkpoints: Mapping[str, Path],
    metrics: Mapping[str, Path],
    bundle_path: Path,
    sample_paths: Mapping[str, Path],
    gates_path: Path,
    parity: Sequence[ParityResult],
    parity_pictures: Mapping[str, Path],
    bench: Sequence[BenchResult],
    seconds: Mapping[str, float],
) -> RunReport:
    """Read what the stages wrote."""
    samples = {role: read_tensors(SampleHeader, path)[1]["samples"] for role, path in sample_paths.items()}
    bundle = open_bundle(bundle_path)
    return RunReport(
        name=name,
        config=config,
        versions=versions(),
        models=[_model_row(role, path) for role, path in checkpoints.items()],
        curves={role: _curve(path) for role, path in metrics.items() if path.exists()},
        samples={role: f"{path.parent.name}/{path.stem}.png" for role, path in sample_paths.items()},
        sample_count=len(samples["student"]),
        spectra=[_spectrum(role, values, samples["real"]) for role, values in samples.items()],
        timesteps=bundle.plan.timestep.tolist(),
        gates=[Gates(name=gate, values=values.tolist()) for gate, values in read_tensors(SampleHeader, gates_path)[1].items()],
        exported_psnr_db=psnr_db(samples["student"], samples["exported"]),
        bundle=bundle_path.name,
        bundle_bytes={file: entry.bytes for file, entry in bundle.manifest.files.items()},
        parity=list(parity),
        parity_pictures={name: f"{path.parent.name}/{path.name}" for name, path in parity_pictures.items()},
        bench=list(bench),
        seconds=dict(seconds),
    )


def _model_row(role: str, path: Path) -> ModelRow:
    header = open_model(path).checkpoint.header
    found = count(header.model)
    return ModelRow(
        role=role,
        parameters=found.parameters,
        macs=found.macs,
        macs_with_attention=found.macs + found.attention_macs,
        gating=header.model.gating,
        trained_steps=header.provenance.steps,
        images_seen=header.provenance.images_seen,
        data=header.provenance.data,
        weights_digest=header.digest,
    )


def _curve(path: Path) -> Curve:
    """Average the log over at most `_CURVE_POINTS` stretches."""
    records = read_metrics(path)
    terms = [key for key in records[0] if key not in ("step", "gradient_norm", "learning_rate", "images_per_s", "wait_share")]
    stretches = np.array_split(np.arange(len(records)), min(_CURVE_POINTS, len(records)))
    return Curve(
        steps=[int(records[stretch[-1]]["step"]) for stretch in stretches],
        terms={term: [float(np.mean([records[i][term] for i in stretch])) for stretch in stretches] for term in terms},
    )


def _spectrum(role: str, samples: np.ndarray, real: np.ndarray) -> Spectrum:
    frequencies, power = radial_spectrum(np.clip(samples, -1, 1))
    return Spectrum(
        role=role,
        frequencies=frequencies.tolist(),
        power=power.tolist(),
        slope=spectral_slope(frequencies, power),
        gap_db=spectrum_gap_db(real, np.clip(samples, -1, 1)),
    )
