"""From a checkpoint to a bundle: the goldens are the reference's own, the contract is true, and ONNX computes what torch does."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_sd.bundle import Bundle, trace
from edge_sd.bundle.contract import Contract, PlanSummary
from edge_sd.bundle.manifest import CARD
from edge_sd.bundle.placement import Placement
from edge_sd.checkpoint import Checkpoint, Provenance
from edge_sd.diffusion import SCHEDULES, compile_plan, solvers
from edge_sd.errors import InstallationError, UsageError
from edge_sd.evaluation import snr_db
from edge_sd.export import ExportRequest, Source, Target, TargetOptions, export_bundle, targets
from edge_sd.export._target import Exported
from edge_sd.export.onnx import OnnxTarget
from edge_sd.runnable import Availability
from edge_sd.runtimes import runtimes
from edge_sd.runtimes.parity import check_parity
from edge_sd.sampling import plan_features, sample_model

# What an exporter can trip over, beside the gated model of the fixtures: 8 px, so that tracing is all that takes time.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "gated": {"gating": True},
    "plain": {"gating": False},
    "block": {"resample": "block", "gating": False, "scale_shift": True, "blocks": 2},
    "gated block": {"resample": "block", "gating": True, "wavelet": "db2", "in_channels": 4, "out_channels": 4},
    "classes": {"num_classes": 3},
}
MakeModel = Callable[..., Any]


@pytest.fixture(scope="session")
def torch_bundle(tiny_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """For torch alone: 6 steps, 3 trajectories."""
    path = tmp_path_factory.mktemp("torch") / "tiny.edgesd"
    return export_bundle(tiny_checkpoint, path, ExportRequest((), steps=6, seed=9, goldens=3))


@pytest.fixture(scope="session")
def labelled(make_model: MakeModel) -> Checkpoint:
    """A model that draws one of three classes."""
    return Checkpoint.of(make_model(num_classes=3), SCHEDULES["cosine"], "v", Provenance(made_by="train"))


def same_files(one: Bundle, other: Bundle) -> bool:
    return one.manifest.files == other.manifest.files


# Plan, goldens, contract


@pytest.mark.parametrize("solver", sorted(solvers()))
def test_goldens_end_where_sampling_the_model_ends(solver: str, tiny_checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Noise of stochastic solvers included, to the bit."""
    bundle = export_bundle(tiny_checkpoint, tmp_path / "x.edgesd", ExportRequest((), solver=solver, steps=6, seed=9, goldens=2))
    plan = compile_plan(tiny_checkpoint.header.noise_schedule, 6, solver=solver, prediction="v")
    samples = sample_model(tiny_checkpoint.build(), plan, seed=9, count=2, batch_size=1)
    np.testing.assert_array_equal(samples, np.stack([trajectory.final for trajectory in bundle.golden.trajectories]))


def test_the_plan_holds_the_models_own_features(torch_bundle: Bundle, tiny_checkpoint: Checkpoint) -> None:
    np.testing.assert_array_equal(torch_bundle.plan.features, plan_features(tiny_checkpoint.build(), torch_bundle.plan))
    assert len(torch_bundle.plan) == 6


def test_ranges_of_the_contract_are_those_of_the_goldens(torch_bundle: Bundle) -> None:
    contract, trajectories = torch_bundle.manifest.contract(), torch_bundle.golden.trajectories
    values = {
        "sample": np.stack([trajectory.samples for trajectory in trajectories]),
        "time_features": torch_bundle.plan.features,
        "prediction": np.stack([trajectory.predictions for trajectory in trajectories]),
    }
    found = {spec.name: spec.range for spec in (*contract.inputs, *contract.outputs)}
    assert found == {name: (float(value.min()), float(value.max())) for name, value in values.items()}
    assert [(spec.name, spec.shape, spec.layout) for spec in contract.inputs] == [
        ("sample", (1, 3, 16, 16), "NCHW"), ("time_features", (1, torch_bundle.plan.header.feature_width), "NF"),
    ]  # fmt: skip
    assert [(spec.name, spec.shape, spec.layout) for spec in contract.outputs] == [("prediction", (1, 3, 16, 16), "NCHW")]
    assert {spec.dtype for spec in (*contract.inputs, *contract.outputs)} == {"float32"}


def test_the_contract_says_along_which_plan(torch_bundle: Bundle) -> None:
    (contract,) = torch_bundle.manifest.contracts
    assert contract.plan == PlanSummary.of(torch_bundle.plan)
    summary = contract.plan
    assert (summary.solver, summary.steps, summary.prediction) == ("dpmpp", 6, "v")
    assert summary.timesteps == tuple(torch_bundle.plan.timestep)


def test_the_card_says_where_it_comes_from(torch_bundle: Bundle, tiny_checkpoint: Checkpoint) -> None:
    card = (torch_bundle.path / CARD).read_text()
    for said in ("16×16×3", "gating on", "v-prediction", "3 steps", "Trained on: nothing", "dpmpp, 6 steps"):
        assert said in card
    assert tiny_checkpoint.header.digest in card


def test_the_same_export_writes_the_same_bytes(torch_bundle: Bundle, tiny_checkpoint: Checkpoint, tmp_path: Path) -> None:
    again = export_bundle(tiny_checkpoint, tmp_path / "tiny.edgesd", ExportRequest((), steps=6, seed=9, goldens=3))
    assert again.manifest == torch_bundle.manifest
    other = export_bundle(tiny_checkpoint, tmp_path / "other" / "tiny.edgesd", ExportRequest((), steps=6, seed=10, goldens=3))
    assert not same_files(other, torch_bundle)


# Programs


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_onnx_predicts_what_torch_predicts_at_every_step(name: str, make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model(3, **{"image_size": 8, **ARCHITECTURES[name]})
    checkpoint = Checkpoint.of(model, SCHEDULES["ldm"], "epsilon", Provenance(made_by="train"))
    bundle = export_bundle(checkpoint, tmp_path / "x.edgesd", ExportRequest(("onnx",), solver="ddim", steps=5, goldens=2))
    result, _ = check_parity(bundle, "onnxruntime")
    assert len(result.steps) == 5
    assert result.passed, result.verdict
    assert min(result.final.snr_db, result.lowest_free_db) > 80
    assert (result.temporal is None) == (model.config.num_classes is None)
    session, features = runtimes()["onnxruntime"].load(bundle), bundle.golden.trajectories[1].features[4:]
    sample = np.random.default_rng(0).uniform(-4, 4, (1, *model.config.sample_shape)).astype(np.float32)
    reference = runtimes()["torch"].load(bundle)(sample, features)
    assert snr_db(reference, session(sample, features)) > 80


class Counting(Target):
    """A third party's target: a file that says what it was given."""

    name = "counting"
    about = "counts"
    rewrites = ("folded-attention", "butterfly-wavelet-up")

    def __init__(self) -> None:
        self.calls, self.checks = 0, 0

    def available(self) -> Availability:
        return Availability(True, "always")

    def check(self, sources: Sequence[Source], options: TargetOptions) -> list[str]:
        self.checks += 1
        return []

    def export(self, sources: Sequence[Source], options: TargetOptions, folder: Path) -> dict[str, Exported]:
        self.calls += 1
        (source,) = sources
        assert options.onnx_opset == 19
        assert [tuple(tensor.shape) for tensor in source.example] == [spec.shape for spec in source.contract.inputs]
        (folder / "counting").mkdir()
        answer = source.exported.module()(*source.example).detach().numpy()
        (folder / "counting" / "weights.bin").write_bytes(answer.tobytes())
        place = Placement(delegate="fingers", delegate_calls=10)
        return {source.name: Exported("counting", "main", {"base": "10"}, place)}

    def stamp(self, file: Path, contracts: Sequence[Contract]) -> None:
        raise AssertionError("nothing is swapped here")


def test_a_target_may_write_a_folder_and_is_asked_once(
    tiny_checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, stages = Counting(), list[str]()
    monkeypatch.setitem(targets(), "counting", target)
    request = ExportRequest(("counting", "counting"), options=TargetOptions(onnx_opset=19), steps=4, goldens=1)
    bundle = export_bundle(tiny_checkpoint, tmp_path / "x.edgesd", request, observe=stages.append)
    assert (target.calls, target.checks, stages) == (1, 1, ["golden trajectories", "torch.export", "counting"])
    program = bundle.program("counting")
    assert (program.file, "counting/weights.bin" in bundle.manifest.files) == ("counting", True)
    assert (program.entry, program.options, program.rewrites) == ("main", {"base": "10"}, Counting.rewrites)
    assert program.placement == Placement(delegate="fingers", delegate_calls=10)
    assert program.memory is not None
    assert program.memory.weights_bytes > 0
    written = np.frombuffer((bundle.path / "counting" / "weights.bin").read_bytes(), np.float32)
    assert snr_db(bundle.golden.trajectories[0].predictions[0].ravel(), written) > 100


# Classes


def test_trajectories_of_a_model_with_classes_go_round_the_classes(labelled: Checkpoint, tmp_path: Path) -> None:
    """Rows that depend on the class are no part of the plan: `temporal` makes them."""
    bundle = export_bundle(labelled, tmp_path / "x.edgesd", ExportRequest((), steps=4, seed=9, goldens=5))
    assert bundle.golden.header.labels == (0, 1, 2, 0, 1)
    assert (bundle.manifest.labelled, bundle.plan.header.feature_width) == (True, 0)
    temporal, denoiser = runtimes()["torch"].load(bundle, program="temporal"), runtimes()["torch"].load(bundle)
    model = labelled.build()
    for index, trajectory in enumerate(bundle.golden.trajectories):
        features = plan_features(model, bundle.plan, index % 3)
        np.testing.assert_array_equal(trajectory.features, features)
        np.testing.assert_array_equal(trace(bundle.plan, denoiser, 9, index, features).final, trajectory.final)
        label = np.array([index % 3], dtype=np.int32)
        rows = [temporal(np.array([t], dtype=np.float32), label) for t in bundle.plan.timestep]
        assert snr_db(features, np.concatenate(rows)) > 120
    first, second = (trajectory.features for trajectory in bundle.golden.trajectories[:2])
    assert snr_db(first, second) < 40


def test_the_contract_of_temporal(labelled: Checkpoint, tmp_path: Path) -> None:
    bundle = export_bundle(labelled, tmp_path / "x.edgesd", ExportRequest((), steps=4, goldens=2))
    contract, denoiser = bundle.manifest.contract("temporal"), bundle.manifest.contract()
    times = (float(bundle.plan.timestep.min()), float(bundle.plan.timestep.max()))
    assert [(spec.name, spec.shape, spec.dtype, spec.range) for spec in contract.inputs] == [
        ("timestep", (1,), "float32", pytest.approx(times)), ("label", (1,), "int32", (0, 1)),
    ]  # fmt: skip
    assert contract.outputs == denoiser.inputs[1:]
    assert contract.plan == denoiser.plan
    assert bundle.program("torch", "temporal").file == bundle.program("torch").file


def test_a_model_without_classes_has_temporal_where_it_is_asked_for(tiny_checkpoint: Checkpoint, tmp_path: Path) -> None:
    bundle = export_bundle(tiny_checkpoint, tmp_path / "x.edgesd", ExportRequest((), steps=4, goldens=1, temporal=True))
    assert [contract.program for contract in bundle.manifest.contracts] == ["denoiser", "temporal"]
    assert [spec.name for spec in bundle.manifest.contract("temporal").inputs] == ["timestep"]
    temporal = runtimes()["torch"].load(bundle, program="temporal")
    rows = [temporal(np.array([t], dtype=np.float32)) for t in bundle.plan.timestep]
    assert snr_db(bundle.plan.features, np.concatenate(rows)) > 120


# Refusals


@pytest.mark.parametrize("changes", [{}, {"num_classes": 3}])
def test_a_model_that_wants_a_context_is_refused_before_anything_is_written(
    changes: dict[str, Any], make_model: MakeModel, tmp_path: Path
) -> None:
    """A prompt, for instance: nothing here could make its tokens."""
    checkpoint = Checkpoint.of(make_model(context_dim=8, **changes), SCHEDULES["cosine"], "v", Provenance(made_by="train"))
    with pytest.raises(UsageError, match="this model wants context tokens of its own"):
        export_bundle(checkpoint, tmp_path / "x.edgesd", ExportRequest(("onnx",), steps=4))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("choices", "complaint"),
    [
        ({"targets": ("onnx", "tflite")}, rf"unknown target 'tflite' .try: one of {', '.join(targets())}"),
        ({"solver": "euler"}, "unknown solver 'euler'"),
        ({"spacing": "wide"}, "unknown spacing 'wide'"),
        ({"steps": 0}, "0 steps: a plan needs at least 1"),
        ({"steps": 1001}, "1001 steps"),
        ({"goldens": 0}, "at least one golden trajectory"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_written(
    choices: dict[str, Any], complaint: str, tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=complaint):
        export_bundle(tiny_checkpoint, tmp_path / "x.edgesd", ExportRequest(**{"targets": (), "steps": 4, **choices}))
    assert not list(tmp_path.iterdir())


def test_a_target_whose_packages_are_missing_says_how_to_get_them(
    tiny_checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OnnxTarget, "available", lambda self: Availability(False, "onnx is not installed", "pip install onnx"))
    with pytest.raises(InstallationError, match=re.escape("target onnx: onnx is not installed (try: pip install onnx)")):
        export_bundle(tiny_checkpoint, tmp_path / "x.edgesd", ExportRequest(("onnx",), steps=4))
    assert not list(tmp_path.iterdir())
