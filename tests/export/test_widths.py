"""Programs of several widths: one a width over one file of weights, the same in every runtime, chosen by the plan's rows."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_sd.bundle import Bundle, open_bundle
from edge_sd.bundle.manifest import WEIGHTS
from edge_sd.checkpoint import Checkpoint, Provenance
from edge_sd.diffusion import SCHEDULES, compile_plan, load_plan
from edge_sd.errors import UsageError
from edge_sd.export import ExportRequest, export_bundle, swap_plan
from edge_sd.export._shared import pieces_of
from edge_sd.models.slim import StepAwareUNet
from edge_sd.runtimes.parity import check_parity
from edge_sd.sampling import plan_features, sample_model
from verbs import call

STEPS = (8, 8, 24, 24)
SCHEDULE = SCHEDULES["cosine"]


@pytest.fixture(scope="module")
def slimmable(make_model) -> Checkpoint:  # type: ignore[no-untyped-def]
    model = make_model(3, width=24, slim_widths=(8, 16), head_channels=None, heads=1)
    return Checkpoint.of(model, SCHEDULE, "v", Provenance(made_by="train"))


@pytest.fixture(scope="module")
def bundle(slimmable: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    plan = compile_plan(SCHEDULE, len(STEPS), prediction="v").with_widths(STEPS)
    out = tmp_path_factory.mktemp("widths") / "slim.edgesd"
    return export_bundle(slimmable, out, ExportRequest(targets=("onnx", "executorch"), plan=plan, goldens=2))


def test_there_is_one_program_a_width(bundle: Bundle) -> None:
    header = load_plan(bundle.path / "plan.safetensors").header
    assert (header.programs, header.widths) == (("denoiser", "denoiser.1"), (8, 24))
    assert bundle.plan.program.tolist() == [0, 0, 1, 1]
    for target in ("onnx", "executorch", "torch"):
        assert {program.name for program in bundle.manifest.programs if program.target == target} == set(header.programs)


def test_the_goldens_are_what_the_networks_draw(bundle: Bundle, slimmable: Checkpoint) -> None:
    """Each row by a network of its width, put together by hand."""
    model, golden = slimmable.build(), bundle.golden.trajectories[0]
    import torch

    from edge_sd.models.slim import SlimUNet

    features = torch.from_numpy(plan_features(model, bundle.plan))
    for row, width in enumerate(STEPS):
        network = model if width == 24 else SlimUNet(model, width).load(model).eval()
        with torch.no_grad():
            out = network.denoise(torch.from_numpy(golden.samples[row][None]), features[row : row + 1])
        np.testing.assert_allclose(out[0].numpy(), golden.predictions[row], rtol=1e-4, atol=1e-5)
    drawn = sample_model(StepAwareUNet(model, (8, 24)), bundle.plan, seed=bundle.golden.header.seed, count=1)
    np.testing.assert_allclose(drawn[0], golden.final, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("runtime", ["torch", "onnxruntime", "executorch", "executorch-runner"])
def test_every_runtime_draws_the_same(bundle: Bundle, runtime: str) -> None:
    result, _ = check_parity(bundle, runtime)
    assert result.passed, result


def test_the_weights_are_stored_once(bundle: Bundle) -> None:
    """Both widths in less than a tenth over what the wider takes; most of the narrow one's weights are slices."""
    files = bundle.manifest.files
    widest = onnx.load(bundle.path / "denoiser.1.onnx")
    alone = sum(len(tensor.raw_data) for tensor in widest.graph.initializer)
    assert files[WEIGHTS].bytes < 1.1 * alone
    narrow = onnx.load(bundle.path / "denoiser.onnx", load_external_data=False)
    onnx.checker.check_model(str(bundle.path / "denoiser.onnx"))
    assert sum(node.op_type == "Slice" and node.input[0].endswith(".whole") for node in narrow.graph.node) > 10


def test_a_plan_of_other_widths_is_refused(bundle: Bundle, slimmable: Checkpoint, tmp_path: Path) -> None:
    plain = compile_plan(SCHEDULE, 3, prediction="v")
    with pytest.raises(UsageError, match="have widths 8 and 24, and the plan wants one"):
        swap_plan(bundle, plain, tmp_path / "other.edgesd")
    with pytest.raises(UsageError, match="the plan wants width 12, and the model's weights work at widths 8, 16, 24"):
        export_bundle(slimmable, tmp_path / "x.edgesd", ExportRequest(targets=("onnx",), plan=plain.with_widths((12, 12, 24))))
    swapped = swap_plan(bundle, plain.with_widths((24, 8, 8), (8, 24)), tmp_path / "swapped.edgesd")
    assert open_bundle(swapped.path).plan.program.tolist() == [1, 0, 0]
    assert check_parity(swapped, "onnxruntime")[0].passed


def test_the_command_line_takes_such_a_plan(slimmable: Checkpoint, tmp_path: Path) -> None:
    model, plan = tmp_path / "slim.safetensors", tmp_path / "plan.safetensors"
    slimmable.save(model)
    compile_plan(SCHEDULE, 4, prediction="v").with_widths(STEPS).save(plan)
    drawn = call("sample", model, "--plan", plan, "-n", 2, "-o", tmp_path / "a.png")
    assert drawn.code == 0, drawn
    again = call("sample", model, "--steps", 4, "-n", 2, "-o", tmp_path / "b.png")
    assert again.code == 0, again
    assert (tmp_path / "a.png").read_bytes() != (tmp_path / "b.png").read_bytes()


@st.composite
def cut_weights(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, list[list[int]]]:
    """A weight, the part of it that is kept, and which indices of each dimension that is, the first among them."""
    shape = (*draw(st.tuples(st.integers(2, 12), st.integers(2, 12))), *draw(st.sampled_from([(), (1, 1), (3, 3)])))
    wide = np.random.default_rng(draw(st.integers(0, 99))).standard_normal(shape).astype(np.float32)
    kept = [sorted({0, *draw(st.sets(st.integers(0, size - 1)))}) for size in shape[:2]]
    kept += [list(range(size)) for size in shape[2:]]
    return wide, wide[np.ix_(*kept)], kept


@settings(max_examples=60, deadline=None)
@given(cut_weights())
def test_where_a_part_lies_is_found(case: tuple[np.ndarray, np.ndarray, list[list[int]]]) -> None:
    wide, narrow, kept = case
    found = pieces_of(narrow, wide)
    if narrow.shape == wide.shape:
        assert found is None
    else:
        assert found is not None
        assert [[index for start, stop in pieces for index in range(start, stop)] for pieces in found] == kept
        other = narrow.copy()
        other.flat[-1] += 1
        assert pieces_of(other, wide) is None
