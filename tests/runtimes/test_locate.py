"""Faults planted in what is exported must be found in what was exported, by the name of the module, in every format."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from edge_sd.bundle import Bundle
from edge_sd.checkpoint import Checkpoint
from edge_sd.errors import EdgeSDError
from edge_sd.export import ExportRequest, TargetOptions, _observed, _programs, export_bundle
from edge_sd.models.gating import WaveletDown
from edge_sd.models.rewrites import rewritten
from edge_sd.models.wavelet_forms import DepthwiseWaveletDown
from edge_sd.runtimes import find_runtime
from edge_sd.runtimes._matching import best_match
from edge_sd.runtimes.locate import Location, first_divergence, locate
from edge_sd.runtimes.parity import check_parity

Plant = Callable[[nn.Module], None]
RUNTIMES = {"onnx": "onnxruntime", "executorch": "executorch", "coreml": "coreml-reference"}
NORM, CONV, DOWN = "up.1.block.norm2", "up.0.block.conv1", "down.1"


def wrong_epsilon(module: nn.Module) -> None:
    """1e-2 in place of 1e-5, in one group norm."""
    module.get_submodule(f"model.{NORM}").eps = 1e-2  # type: ignore[assignment]


def zeroed_channel(module: nn.Module) -> None:
    conv = module.get_submodule(f"model.{CONV}")
    weight = conv.get_parameter("weight").detach().clone()
    weight[3] = 0
    conv.weight = nn.Parameter(weight)


def swapped_subbands(module: nn.Module) -> None:
    """LH and HL of one transform."""
    down = module.get_submodule(f"model.{DOWN}")
    assert isinstance(down, DepthwiseWaveletDown)
    swap(down)


def swap(down: DepthwiseWaveletDown) -> None:
    ll, lh, hl, hh = down.kernels
    down.kernels = nn.ParameterList([ll, hl, lh, hh])


FAULTS: dict[str, tuple[Plant, str]] = {
    "epsilon": (wrong_epsilon, NORM), "channel": (zeroed_channel, CONV), "subband": (swapped_subbands, DOWN),
}  # fmt: skip


def exported(checkpoint: Checkpoint, path: Path, target: str) -> Bundle:
    return export_bundle(checkpoint, path, ExportRequest((target,), TargetOptions(coreml_precision="fp32"), steps=3, goldens=1))


def located(bundle: Bundle, target: str) -> Location:
    result, _ = check_parity(bundle, RUNTIMES[target])
    return locate(bundle, target, result)


@pytest.mark.parametrize("fault", list(FAULTS))
@pytest.mark.parametrize("target", list(RUNTIMES))
def test_a_planted_fault_is_found_and_named(
    target: str, fault: str, make_checkpoint: Callable[..., Checkpoint], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The programs are exported from a faulty model, the reference and its trajectories are of the right one."""
    plant, name = FAULTS[fault]

    def faulty(module: nn.Module, names: tuple[str, ...]) -> nn.Module:
        made = rewritten(module, names)
        plant(made)
        return made

    monkeypatch.setattr(_programs, "rewritten", faulty)
    monkeypatch.setattr(_observed, "rewritten", faulty)  # ExecuTorch's program is lowered anew, by the same faulty converter
    bundle = exported(make_checkpoint(), tmp_path / "faulty.edgesd", target)
    result, _ = check_parity(bundle, RUNTIMES[target])
    assert result.outcome == "failed", result.verdict
    found = locate(bundle, target, result)
    assert found.where == "program"
    assert found.module is not None
    assert found.module.name == name or found.module.name.startswith(f"{name}."), found.verdict
    assert found.module.name in found.verdict
    assert found.module.found_db < found.module.gate_db


@pytest.mark.parametrize("target", ["onnx", "coreml"])
def test_nothing_is_found_where_nothing_is_wrong(target: str, make_checkpoint: Callable[..., Checkpoint], tmp_path: Path) -> None:
    found = located(exported(make_checkpoint(), tmp_path / "right.edgesd", target), target)
    assert (found.where, found.module, found.after) == ("", None, None)
    assert len(found.modules) > 30
    assert "every module agrees" in found.verdict


def test_a_rewrite_that_is_wrong_is_told_from_a_converter(
    make_checkpoint: Callable[..., Checkpoint], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = DepthwiseWaveletDown.__init__

    def wrong(self: DepthwiseWaveletDown, source: WaveletDown) -> None:
        right(self, source)
        swap(self)

    monkeypatch.setattr(DepthwiseWaveletDown, "__init__", wrong)
    target = "coreml"
    bundle = exported(make_checkpoint(), tmp_path / "wrong.edgesd", target)
    assert "depthwise-wavelet-down" in bundle.program(target).rewrites
    found = located(bundle, target)
    assert found.where == "rewrite"
    assert found.module is not None
    assert found.module.name.startswith(DOWN)


def test_programs_that_cannot_be_looked_into(torch_bundle: Bundle) -> None:
    result, _ = check_parity(torch_bundle, "torch")
    with pytest.raises(EdgeSDError, match="programs of torch cannot be looked into") as refused:
        locate(torch_bundle, find_runtime("torch").target, result)
    assert "coreml, executorch, onnx" in refused.value.hint


@given(st.integers(0, 12), st.integers(1, 12), st.data())
def test_the_split_is_where_agreement_ends(before: int, after: int, data: st.DataObject) -> None:
    """With at most one exception on the longer side, which does not move it."""
    agrees = [True] * before + [False] * after
    assert first_divergence(agrees) == before
    if before > 3:
        agrees[data.draw(st.integers(0, before - 3))] = False  # fused away
        assert first_divergence(agrees) == before


def test_no_divergence_and_nothing_but() -> None:
    assert first_divergence([]) == 0
    assert first_divergence([True] * 5) == 5
    assert first_divergence([True, False, True, True]) == 4
    assert first_divergence([False] * 3) == 0


@given(st.permutations(range(3)), st.integers(0, 2**32 - 1))
def test_a_value_is_found_in_any_layout(order: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    value = rng.standard_normal((1, 3, 4, 5)).astype(np.float32)
    others = {f"other {i}": rng.standard_normal((60,)).astype(np.float32) for i in range(3)}
    turned = value[0].transpose(order)
    merged = turned.reshape(turned.shape[0], -1)[None]
    db, name = best_match(value, {**others, "it": merged, "ids": np.zeros(60, np.int64), "nan": np.full(60, np.nan, np.float32)})
    assert (db, name) == (200.0, "it")
    assert best_match(value, {"short": np.zeros(59, np.float32)}) == (-200.0, "")
    assert torch.from_numpy(value).numel() == merged.size
