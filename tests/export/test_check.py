"""What an export refuses before it begins, and what it leaves behind when it ends badly: nothing."""

import contextlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from edge_sd.bundle.contract import Contract, PlanSummary, TensorSpec
from edge_sd.bundle.placement import MemoryForecast
from edge_sd.checkpoint import Checkpoint
from edge_sd.errors import EdgeSDError, ExitCode, UsageError
from edge_sd.export import (
    Check,
    ExportRequest,
    Source,
    TargetOptions,
    check_export,
    export_bundle,
    find_targets,
    parse_size,
    refuse,
    targets,
)
from edge_sd.export._check import check_target
from edge_sd.export.executorch import ExecuTorchTarget

MIB = 2**20


@pytest.fixture(scope="module")
def checkpoint(make_checkpoint: Callable[..., Checkpoint]) -> Checkpoint:
    """One level: torch.export takes a second."""
    return make_checkpoint(multipliers=(1,), attention=(), gating=False)


@pytest.fixture(scope="module")
def checks(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Check]]:
    folder = tmp_path_factory.mktemp("dry")
    yield check_export(checkpoint, None, ExportRequest(("all",), steps=4), folder / "x.edgesd")
    assert not list(folder.iterdir())


# A dry run


def test_a_dry_run_lists_every_target_and_finds_nothing_wrong(checks: list[Check]) -> None:
    assert [check.target for check in checks] == list(targets())
    for check in checks:
        assert (check.programs, check.problems) == (("denoiser",), ())
        assert check.rewrites == targets()[check.target].rewrites
        assert check.operators["conv2d"] > 10
        assert check.memory["denoiser"].weights_bytes > 0
        assert check.peak_bytes == check.memory["denoiser"].total_bytes
        assert list(check.operators.values()) == sorted(check.operators.values(), reverse=True)
    refuse(checks, ram_budget=10 * MIB)


def test_a_dry_run_asks_no_target_to_export(checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*arguments: Any) -> Any:
        raise AssertionError("an export in a dry run")

    for target in targets().values():
        monkeypatch.setattr(type(target), "export", forbidden)
    (check,) = check_export(checkpoint, None, ExportRequest(("onnx",), steps=4), tmp_path / "x.edgesd")
    assert not check.problems
    assert not list(tmp_path.iterdir())


def test_a_dry_run_over_an_existing_bundle_leaves_it(checkpoint: Checkpoint, tmp_path: Path) -> None:
    out = tmp_path / "x.edgesd"
    out.mkdir()
    (out / "mine").write_text("mine")
    check_export(checkpoint, None, ExportRequest(("onnx",), steps=4), out)
    assert [path.name for path in tmp_path.rglob("*")] == ["x.edgesd", "mine"]


def test_the_weights_of_the_forecast_are_those_of_the_denoiser(checks: list[Check], checkpoint: Checkpoint) -> None:
    """Without time layers, and without what folding removes (keys' and values' biases, each norm's γ and β in attention).

    In ONNX a norm's affine map is a batch norm, which has a mean and a variance beside γ and β.
    """
    weights = {name: value.size for name, value in checkpoint.weights.items() if not name.startswith("temporal_net")}
    folded = sum(
        (size // 3) * 2 if name.endswith("qkv.bias") else size
        for name, size in weights.items()
        if re.search(r"attention\.(qkv\.bias|norm\.(weight|bias))$", name)
    )
    assert folded > 0
    found = {check.target: check.memory["denoiser"].weights_bytes for check in checks}
    statistics = sum(2 * size for name, size in weights.items() if re.search(r"(block\.norm\d|norm_out)\.weight$", name))
    assert found["coreml"] == 4 * (sum(weights.values()) - folded) // 2  # in float16
    assert found["onnx"] == 4 * (sum(weights.values()) - folded + statistics)
    assert found["executorch"] >= 2 * found["coreml"]  # and a constant matrix a norm


# Refusals


@pytest.mark.parametrize(("opset", "why"), [(11, "too old"), (17, "too old"), (24, "too new"), (99, "too new")])
def test_an_opset_that_cannot_be_written(opset: int, why: str, checkpoint: Checkpoint, tmp_path: Path) -> None:
    request = ExportRequest(("onnx",), TargetOptions(onnx_opset=opset), steps=4)
    (check,) = check_export(checkpoint, None, request, tmp_path / "x.edgesd")
    with pytest.raises(UsageError, match=f"onnx: opset {opset} is {why}: 18 to 23"):
        refuse([check], None)
    with pytest.raises(UsageError, match=f"onnx: opset {opset} is {why}"):
        export_bundle(checkpoint, tmp_path / "x.edgesd", request)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("opset", [18, 23])
def test_the_ends_of_the_range_of_opsets(opset: int, checks: list[Check], checkpoint: Checkpoint, tmp_path: Path) -> None:
    request = ExportRequest(("onnx",), TargetOptions(onnx_opset=opset), steps=4)
    (check,) = check_export(checkpoint, None, request, tmp_path / "x.edgesd")
    assert not check.problems


@pytest.mark.parametrize("names", [("tflite",), ("onnx", "tflite"), ("ONNX",), ("",)])
def test_an_unknown_target(names: tuple[str, ...]) -> None:
    wrong = names[-1]
    said = rf"unknown target '{wrong}' .try: (onnx\? )?one of coreml, executorch, onnx, or all"
    with pytest.raises(UsageError, match=said) as refused:
        find_targets(names)
    assert refused.value.code == ExitCode.USAGE


def test_all_is_every_target_once() -> None:
    assert [target.name for target in find_targets(("onnx", "all"))] == sorted(targets())
    assert [target.name for target in find_targets(("onnx", "coreml", "onnx"))] == ["onnx", "coreml"]


@torch.library.custom_op("edge_sd_tests::wobble", mutates_args=())
def wobble(x: Tensor) -> Tensor:
    """Somebody's own kernel, which no format knows."""
    return x.sin()


@wobble.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


class Wobbling(nn.Module):
    def forward(self, sample: Tensor, time_features: Tensor) -> Tensor:
        out: Tensor = wobble(sample * 2) + time_features.sum()
        return out


class Plain(nn.Module):
    def forward(self, sample: Tensor, time_features: Tensor) -> Tensor:
        return sample * 2 + time_features.sum()


def source_of(module: nn.Module) -> Source:
    example = (torch.ones(1, 3, 4, 4), torch.ones(1, 5))
    sample = TensorSpec(name="sample", shape=(1, 3, 4, 4), layout="NCHW", range=(0, 1))
    rows = TensorSpec(name="time_features", shape=(1, 5), layout="NF", range=(0, 1))
    plan = PlanSummary(solver="ddim", steps=1, spacing="leading", prediction="v", timesteps=(0.0,), digest="0" * 64)
    outputs = (sample.model_copy(update={"name": "prediction"}),)
    contract = Contract(program="denoiser", inputs=(sample, rows), outputs=outputs, plan=plan)
    with torch.no_grad():
        return Source(torch.export.export(module, example), example, contract)


@pytest.mark.parametrize("name", targets())
def test_an_operator_without_a_counterpart_is_named(name: str) -> None:
    found = check_target(targets()[name], [source_of(Wobbling())], TargetOptions())
    (problem,) = found.problems
    assert problem.startswith("denoiser: operator ")
    assert "edge_sd_tests.wobble" in problem
    with pytest.raises(UsageError, match=rf"{name}: denoiser: operator edge_sd_tests\.wobble"):
        refuse([found], None)
    assert not check_target(targets()[name], [source_of(Plain())], TargetOptions()).problems


def check_of(name: str, **memory: tuple[int, int]) -> Check:
    held = {key: MemoryForecast(weights_bytes=a * MIB, activations_bytes=b * MIB) for key, (a, b) in memory.items()}
    return Check(target=name, rewrites=(), programs=tuple(held), operators={}, memory=held, problems=())


def test_a_budget_that_is_too_small_names_program_and_figures() -> None:
    checks = [check_of("onnx", denoiser=(10, 20)), check_of("executorch", denoiser=(30, 40), decoder=(5, 295))]
    refuse(checks, None)
    refuse(checks, 300 * MIB)
    with pytest.raises(EdgeSDError) as refused:
        refuse(checks, 299 * MIB)
    assert refused.value.message == (
        "executorch: the decoder needs about 300 MiB (5 MiB of weights, 295 MiB of activations), the budget is 299 MiB"
    )
    assert "--ram-budget" in refused.value.hint
    assert refused.value.code == ExitCode.FAILURE


def test_every_problem_of_every_target_is_told_at_once() -> None:
    checks = [check_of(name, denoiser=(1, 1)).model_copy(update={"problems": ("a", "b")}) for name in ("onnx", "coreml")]
    with pytest.raises(UsageError, match="onnx: a; onnx: b; coreml: a; coreml: b"):
        refuse(checks, None)


def test_an_export_over_the_budget_leaves_nothing(checkpoint: Checkpoint, checks: list[Check], tmp_path: Path) -> None:
    (onnx,) = (check for check in checks if check.target == "onnx")
    request = ExportRequest(("onnx",), steps=4, ram_budget=onnx.peak_bytes - 1)
    with pytest.raises(EdgeSDError, match=r"onnx: the denoiser needs about [\d.]+ MiB .*, the budget is [\d.]+ MiB"):
        export_bundle(checkpoint, tmp_path / "x.edgesd", request)
    assert not list(tmp_path.iterdir())


def test_a_disk_without_room_is_seen_before_anything_is_written(checkpoint: Checkpoint, tiny_disk: Path) -> None:
    """64 kB, really: less than the weights."""
    request, out = ExportRequest(("onnx",), steps=4), tiny_disk / "deeper" / "x.edgesd"
    with pytest.raises(EdgeSDError, match=r"no room on the disk of .*x\.edgesd: the bundle needs about \d"):
        check_export(checkpoint, None, request, out)
    assert not list(tiny_disk.iterdir())


def test_a_disk_with_room_for_one_target_and_not_for_all(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        free = 0

    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage)
    Usage.free = sum(value.nbytes for value in checkpoint.weights.values()) * 5 // 2  # the reference, one program
    check_export(checkpoint, None, ExportRequest(("onnx",), steps=4), tmp_path / "x.edgesd")
    for attempt in (check_export, lambda c, d, r, o: export_bundle(c, o, r)):
        with pytest.raises(EdgeSDError, match="no room on the disk"):
            attempt(checkpoint, None, ExportRequest(("onnx", "coreml", "executorch"), steps=4), tmp_path / "x.edgesd")
    assert not list(tmp_path.iterdir())


def test_too_much_outside_of_the_delegate(checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its rewrites every group norm is left to the portable kernels."""
    monkeypatch.setattr(ExecuTorchTarget, "rewrites", ())
    with pytest.raises(EdgeSDError) as refused:
        export_bundle(checkpoint, tmp_path / "x.edgesd", ExportRequest(("executorch",), steps=4, max_fallback=0.001))
    said = refused.value.message
    share = re.match(
        r"executorch: ([\d.]+)% of the denoiser's time is outside of xnnpack \((.*)\); --max-fallback is 0.1%$", said
    )
    assert share is not None, said
    assert 0.1 < float(share[1]) <= 100
    assert "group_norm" in share[2]
    assert not list(tmp_path.iterdir())


# Sizes

UNITS = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "KB": 10**3, "MB": 10**6, "GB": 10**9}


@given(st.integers(1, 2**20 - 1), st.sampled_from(sorted(UNITS)), st.sampled_from(["", " ", "  "]), st.booleans())
def test_sizes(number: int, unit: str, space: str, lower: bool) -> None:
    text = f"{space}{number}{space}{unit.lower() if lower else unit}{space}"
    assert parse_size(text) == number * UNITS[unit]


@given(st.integers(1, 9999), st.sampled_from(["MiB", "GB"]))
def test_sizes_with_decimals(tenths: int, unit: str) -> None:
    assert parse_size(f"{tenths / 10}{unit}") == pytest.approx(tenths * UNITS[unit] / 10, abs=1)


@given(st.text(max_size=12))
def test_whatever_else_is_given_is_a_size_or_refused(text: str) -> None:
    with contextlib.suppress(UsageError):
        assert parse_size(text) >= 0


BAD = ["", "512", "MiB", "0MiB", "-1GB", "nanGB", "infGB", "1e30GB", "1,5GB", "12 TB", "GB12", "1 2MB"]


@pytest.mark.parametrize("text", BAD)
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(UsageError, match=re.escape(f"{text!r} is not a size (try: for instance 512MiB or 2GB)")):
        parse_size(text)
