"""NNCF's engine on a tiny model, with the real NNCF."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from edge_sd.bundle import Bundle
from edge_sd.bundle.contract import METADATA_KEY
from edge_sd.checkpoint import Checkpoint
from edge_sd.errors import EdgeSDError, InstallationError, UsageError
from edge_sd.evaluation.metrics import snr_db
from edge_sd.export import ExportRequest, TargetOptions, export_bundle
from edge_sd.quantize._quantize import plan_of
from edge_sd.quantize.calibration import Calibration, CalibrationRequest, capture
from edge_sd.quantize.nncf import calibration_feeds, nncf_quantize
from edge_sd.quantize.recipe import Recipe, default_layers

STEPS = 4


@pytest.fixture(scope="module")
def bundle(tiny_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp("nncf") / "float.edgesd"
    return export_bundle(tiny_checkpoint, out, ExportRequest(("onnx",), steps=STEPS, goldens=1))


@pytest.fixture(scope="module")
def denoiser(bundle: Bundle) -> Path:
    return bundle.path / bundle.program("onnx").file


@pytest.fixture(scope="module")
def calibration(tiny_checkpoint: Checkpoint) -> Calibration:
    recipe = Recipe(model=tiny_checkpoint.header.model, steps=STEPS, layers=default_layers(tiny_checkpoint.header.model, 8, 8))
    request = CalibrationRequest(trajectories=6)
    return capture(tiny_checkpoint.build(), plan_of(tiny_checkpoint, recipe), request, tiny_checkpoint.header.digest)


@pytest.fixture(scope="module")
def quantized(denoiser: Path, calibration: Calibration, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("nncf") / "int8.onnx"
    nncf_quantize(denoiser, calibration, out)
    return out


def run(path: Path, feeds: list[dict[str, np.ndarray]]) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, feed)[0] for feed in feeds])


def test_it_computes_nearly_the_same_in_a_third_of_the_bytes(denoiser: Path, quantized: Path, calibration: Calibration) -> None:
    feeds = calibration_feeds(calibration)
    assert len(feeds) == 6 * STEPS
    assert 15 < snr_db(run(denoiser, feeds), run(quantized, feeds)) < 60
    weights = [
        {tensor.name: tensor for tensor in onnx.load(path).graph.initializer if np.prod(tensor.dims) > 256}
        for path in (denoiser, quantized)
    ]
    float_bytes, int_bytes = (sum(len(tensor.raw_data) for tensor in of.values()) for of in weights)
    assert int_bytes < 0.3 * float_bytes


def test_minmax_holds_steps_that_the_mean_of_ranges_clips(denoiser: Path, calibration: Calibration, tmp_path: Path) -> None:
    """One step in four is ten times as large as the rest."""
    scale = np.where(calibration.rows == 0, 10, 1).astype(np.float32)[:, None, None, None]
    uneven = dataclasses.replace(calibration, samples=calibration.samples * scale)
    feeds = calibration_feeds(uneven)
    large = [feed for feed, row in zip(feeds, uneven.rows, strict=True) if row == 0]
    found = {}
    for ranges in ("mean", "minmax"):
        nncf_quantize(denoiser, uneven, tmp_path / f"{ranges}.onnx", ranges=ranges)  # type: ignore[arg-type]
        found[ranges] = snr_db(run(denoiser, large), run(tmp_path / f"{ranges}.onnx", large))
    assert found["minmax"] > found["mean"] + 6


def test_its_contract_is_that_of_the_float_program(denoiser: Path, quantized: Path) -> None:
    inside = [{entry.key: entry.value for entry in onnx.load(path).metadata_props} for path in (denoiser, quantized)]
    assert inside[1][METADATA_KEY] == inside[0][METADATA_KEY]
    sessions = [onnxruntime.InferenceSession(str(path)) for path in (denoiser, quantized)]
    assert len({str([(value.name, value.shape, value.type) for value in session.get_inputs()]) for session in sessions}) == 1


def test_inputs_are_of_every_step(calibration: Calibration) -> None:
    feeds = calibration_feeds(calibration, STEPS)
    of = [int(np.flatnonzero((calibration.samples == feed["sample"]).all((1, 2, 3)))[0]) for feed in feeds]
    assert sorted(calibration.rows[of].tolist()) == list(range(STEPS))
    with pytest.raises(UsageError, match="at least one"):
        calibration_feeds(calibration, 0)


@pytest.mark.parametrize(("bits", "activations"), [(4, 8), (8, 16), (8, None), (4, 16)])
def test_bits_that_it_does_not_have(
    denoiser: Path, calibration: Calibration, tmp_path: Path, bits: int, activations: int | None
) -> None:
    with pytest.raises(UsageError, match="NNCF has no W") as caught:
        nncf_quantize(denoiser, calibration, tmp_path / "out.onnx", bits=bits, activations=activations)
    assert ("convolutions" in caught.value.message) == (bits == 4)


def test_what_is_not_finite_is_refused_and_named(denoiser: Path, calibration: Calibration, tmp_path: Path) -> None:
    samples = calibration.samples.copy()
    samples[7, 0, 0, 0] = np.nan
    with pytest.raises(UsageError, match=r"input 7 \(step 1\): sample holds a NaN"):
        nncf_quantize(denoiser, dataclasses.replace(calibration, samples=samples), tmp_path / "out.onnx")
    assert not any(tmp_path.iterdir())


def test_another_models_inputs_are_refused(denoiser: Path, calibration: Calibration, tmp_path: Path) -> None:
    other = dataclasses.replace(calibration, samples=calibration.samples[:, :, :8])
    with pytest.raises(UsageError, match="the calibration inputs are"):
        nncf_quantize(denoiser, other, tmp_path / "out.onnx")


def test_files_that_it_cannot_take(
    tiny_checkpoint: Checkpoint, quantized: Path, calibration: Calibration, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="quantized already"):
        nncf_quantize(quantized, calibration, tmp_path / "out.onnx")
    (tmp_path / "text.onnx").write_text("no program")
    with pytest.raises(EdgeSDError, match="cannot read"):
        nncf_quantize(tmp_path / "text.onnx", calibration, tmp_path / "out.onnx")
    request = ExportRequest(("onnx",), TargetOptions(onnx_opset=21), steps=STEPS, goldens=1)
    new = export_bundle(tiny_checkpoint, tmp_path / "new.edgesd", request)
    with pytest.raises(UsageError, match="opset 21"):
        nncf_quantize(new.path / new.program("onnx").file, calibration, tmp_path / "out.onnx")


def test_a_missing_package_is_named_with_its_remedy(
    denoiser: Path, calibration: Calibration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(InstallationError, match="NNCF") as caught:
        nncf_quantize(denoiser, calibration, tmp_path / "out.onnx")
    assert caught.value.hint == 'pip install "edge-sd[nncf]"'


def test_it_says_nothing_and_reports_nowhere(denoiser: Path, calibration: Calibration, tmp_path: Path) -> None:
    """In a process of its own: NNCF also keeps still where it sees pytest."""
    script = """
import sys
from pathlib import Path
import numpy as np
from edge_sd.quantize.calibration import Calibration
from edge_sd.quantize.nncf import nncf_quantize
data = np.load(sys.argv[2])
nncf_quantize(Path(sys.argv[1]), Calibration(None, data["samples"], data["rows"], data["features"]), Path(sys.argv[3]), inputs=2)
from unittest.mock import MagicMock
from nncf.telemetry import telemetry
assert isinstance(telemetry, MagicMock), telemetry
import os
assert "NNCF_CI" not in os.environ
"""
    np.savez(tmp_path / "data.npz", samples=calibration.samples, rows=calibration.rows, features=calibration.features)
    home = tmp_path / "home"
    home.mkdir()
    environment = {name: value for name, value in os.environ.items() if name not in ("CI", "NNCF_CI")} | {"HOME": str(home)}
    result = subprocess.run(
        [sys.executable, "-c", script, denoiser, tmp_path / "data.npz", tmp_path / "out.onnx"],
        env=environment, cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert not (home / "intel").exists()
