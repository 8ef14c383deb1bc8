"""Core ML's own runtime, as far as it can be tested where there is no Mac: what it asks Core ML for, and what it refuses."""

import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_sd.bundle import Bundle
from edge_sd.checkpoint import Checkpoint
from edge_sd.errors import EdgeSDError, UsageError
from edge_sd.export import ExportRequest, TargetOptions, export_bundle
from edge_sd.quiet import quiet
from edge_sd.runtimes import find_runtime
from edge_sd.runtimes.coreml import UNITS_VARIABLE, CoreMLRuntime
from edge_sd.runtimes.mil import load_evaluator

with quiet():
    import coremltools


@pytest.fixture(scope="module")
def bundle(tiny_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """For iOS 18: several functions in a package."""
    options = TargetOptions(coreml_os="iOS18", coreml_precision="fp32")
    request = ExportRequest(("coreml",), options, steps=2, goldens=1, temporal=True)
    return export_bundle(tiny_checkpoint, tmp_path_factory.mktemp("coreml") / "tiny.edgesd", request)


def test_core_ml_is_not_on_linux_and_what_is_instead(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    available = CoreMLRuntime().available()
    assert not available.ok
    assert "this is Linux" in available.detail
    assert "coreml-reference" in available.remedy
    with pytest.raises(EdgeSDError, match="part of Apple's systems"):
        find_runtime("coreml")
    with pytest.raises(EdgeSDError, match="part of Apple's systems"):
        CoreMLRuntime().load(bundle)


# What the runtime is given, what the variable says, and what comes of it.
UNITS_CASES = [(None, None, "ALL"), (None, "CPU_ONLY", "CPU_ONLY"), ("CPU_AND_NE", "ALL", "CPU_AND_NE")]


class FakeModel:
    """coremltools' MLModel on a Mac, as far as a runtime uses it; what it predicts is evaluated."""

    opened: list[tuple[Any, Any]] = []  # noqa: RUF012 (seen by the test)

    def __init__(self, path: str, compute_units: Any, function_name: str | None) -> None:
        self.opened.append((compute_units, function_name))
        self._path, self._evaluator = Path(path), load_evaluator(Path(path), function_name or "")

    def get_spec(self) -> Any:
        with quiet():
            return coremltools.utils.load_spec(str(self._path))

    def predict(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return self._evaluator(inputs)


@pytest.mark.parametrize(("asked", "variable", "units"), UNITS_CASES)
def test_core_ml_is_called_as_a_mac_would_have_it(
    asked: str | None, variable: str | None, units: str, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compute units, the function inside of the package, names of inputs; no Mac takes part, and none of its numbers."""
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setattr(coremltools.models, "MLModel", FakeModel)
    monkeypatch.setattr(FakeModel, "opened", [])
    if variable is not None:
        monkeypatch.setenv(UNITS_VARIABLE, variable)
    runtime = CoreMLRuntime(asked)
    assert runtime.available().detail.endswith(units)
    session = runtime.load(bundle)
    (golden,) = bundle.golden.trajectories
    prediction = session(golden.samples[:1], golden.features[:1])
    assert np.abs(prediction - golden.predictions[:1]).max() <= 1e-5
    assert FakeModel.opened == [(coremltools.ComputeUnit[units], "denoiser")]


def test_unknown_compute_units_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="'TPU'"):
        _ = CoreMLRuntime("TPU").units
    monkeypatch.setenv(UNITS_VARIABLE, "gpu")
    with pytest.raises(UsageError, match="'gpu'"):
        _ = CoreMLRuntime().units
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    available = CoreMLRuntime().available()
    assert (available.ok, "'gpu'" in available.detail, "CPU_ONLY" in available.remedy) == (False, True, True)


def test_what_core_ml_cannot_load_is_an_error_of_ours(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*arguments: Sequence[Any], **options: Any) -> None:
        raise RuntimeError("Error compiling model")

    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setattr(coremltools.models, "MLModel", fails)
    with pytest.raises(EdgeSDError, match=r"cannot load .*Error compiling"):
        CoreMLRuntime().load(bundle)
