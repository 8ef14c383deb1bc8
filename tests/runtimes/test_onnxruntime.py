"""ONNX Runtime's execution providers: chosen, checked, and told."""

import pytest

from edge_sd.bundle import Bundle
from edge_sd.checkpoint import Checkpoint
from edge_sd.errors import UsageError
from edge_sd.export import ExportRequest, export_bundle
from edge_sd.runtimes.onnxruntime import PROVIDERS_VARIABLE, OnnxRuntime


@pytest.fixture(scope="module")
def bundle(tiny_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return export_bundle(
        tiny_checkpoint, tmp_path_factory.mktemp("onnx") / "tiny.edgesd", ExportRequest(("onnx",), steps=2, goldens=1)
    )


def test_the_cpu_is_always_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PROVIDERS_VARIABLE, raising=False)
    assert OnnxRuntime().providers == ["CPUExecutionProvider"]
    monkeypatch.setenv(PROVIDERS_VARIABLE, " CUDAExecutionProvider ,CoreMLExecutionProvider,")
    assert OnnxRuntime().providers == ["CUDAExecutionProvider", "CoreMLExecutionProvider", "CPUExecutionProvider"]
    assert OnnxRuntime(["CPUExecutionProvider", "X"]).providers == ["CPUExecutionProvider", "X"]
    assert "CUDAExecutionProvider" in OnnxRuntime().available().detail


def test_a_provider_that_is_not_there_is_refused(bundle: Bundle) -> None:
    with pytest.raises(UsageError, match="this ONNX Runtime has no NoExecutionProvider") as refused:
        OnnxRuntime(["NoExecutionProvider"]).load(bundle)
    assert "CPUExecutionProvider" in refused.value.hint


def test_the_session_runs_by_what_was_asked_for(bundle: Bundle) -> None:
    session = OnnxRuntime(["CPUExecutionProvider"]).load(bundle, threads=1)
    assert session._session.get_providers() == ["CPUExecutionProvider"]  # type: ignore[attr-defined]
    assert session._session.get_session_options().intra_op_num_threads == 1  # type: ignore[attr-defined]
