"""From a checkpoint to a bundle: the goldens are the reference's own, the contract is true, and ONNX computes what torch does."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from edge_sd.bundle import Bundle
from edge_sd.bundle.manifest import CARD, Contract
from edge_sd.checkpoint import Checkpoint, Provenance
from edge_sd.diffusion import SCHEDULES, compile_plan, solvers
from edge_sd.errors import InstallationError, UsageError
from edge_sd.evaluation import snr_db
from edge_sd.export import Target, export_bundle, targets
from edge_sd.export._target import DenoiserProgram
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
}
MakeModel = Callable[..., Any]


@pytest.fixture(scope="session")
def torch_bundle(tiny_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """For torch alone: 6 steps, 3 trajectories."""
    path = tmp_path_factory.mktemp("torch") / "tiny.edgesd"
    return export_bundle(tiny_checkpoint, path, [], steps=6, seed=9, goldens=3)


def same_files(one: Bundle, other: Bundle) -> bool:
    return one.manifest.files == other.manifest.files


# Plan, goldens, contract


@pytest.mark.parametrize("solver", sorted(solvers()))
def test_goldens_end_where_sampling_the_model_ends(solver: str, tiny_checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Noise of stochastic solvers included, to the bit."""
    bundle = export_bundle(tiny_checkpoint, tmp_path / "x.edgesd", [], solver=solver, steps=6, seed=9)
    plan = compile_plan(tiny_checkpoint.header.noise_schedule, 6, solver=solver, prediction="v")
    samples = sample_model(tiny_checkpoint.build(), plan, seed=9, count=2, batch_size=1)
    np.testing.assert_array_equal(samples, np.stack([trajectory.final for trajectory in bundle.golden.trajectories]))


def test_the_plan_holds_the_models_own_features(torch_bundle: Bundle, tiny_checkpoint: Checkpoint) -> None:
    np.testing.assert_array_equal(torch_bundle.plan.features, plan_features(tiny_checkpoint.build(), torch_bundle.plan))
    assert len(torch_bundle.plan) == 6


def test_ranges_of_the_contract_are_those_of_the_goldens(torch_bundle: Bundle) -> None:
    contract, trajectories = torch_bundle.manifest.contract, torch_bundle.golden.trajectories
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


def test_the_card_says_where_it_comes_from(torch_bundle: Bundle, tiny_checkpoint: Checkpoint) -> None:
    card = (torch_bundle.path / CARD).read_text()
    for said in ("16×16×3", "gating on", "v-prediction", "3 steps on nothing", "dpmpp, 6 steps", tiny_checkpoint.header.digest):
        assert said in card


def test_the_same_export_writes_the_same_bytes(torch_bundle: Bundle, tiny_checkpoint: Checkpoint, tmp_path: Path) -> None:
    again = export_bundle(tiny_checkpoint, tmp_path / "tiny.edgesd", [], steps=6, seed=9, goldens=3)
    assert again.manifest == torch_bundle.manifest
    other = export_bundle(tiny_checkpoint, tmp_path / "other" / "tiny.edgesd", [], steps=6, seed=10, goldens=3)
    assert not same_files(other, torch_bundle)


# Programs


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_onnx_predicts_what_torch_predicts_at_every_step(name: str, make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model(3, **{"image_size": 8, **ARCHITECTURES[name]})
    checkpoint = Checkpoint.of(model, SCHEDULES["ldm"], "epsilon", Provenance(made_by="train"))
    bundle = export_bundle(checkpoint, tmp_path / "x.edgesd", ["onnx"], solver="ddim", steps=5)
    result = check_parity(bundle, "onnxruntime")
    assert len(result.steps) == 5
    assert result.passed, result.verdict
    assert min(result.final_snr_db, *(step.free_running_db for step in result.steps)) > 80
    session = runtimes()["onnxruntime"].load(bundle)
    sample = np.random.default_rng(0).uniform(-4, 4, (1, *model.config.sample_shape)).astype(np.float32)
    reference = runtimes()["torch"].load(bundle)(sample, bundle.plan.features[4:])
    assert snr_db(reference, session(sample, bundle.plan.features[4:])) > 80


class Counting(Target):
    """A third party's target: a file that says what it was given."""

    name = "counting"
    about = "counts"

    def __init__(self) -> None:
        self.calls = 0

    def available(self) -> Availability:
        return Availability(True, "always")

    def export(self, program: DenoiserProgram, example: tuple[Tensor, Tensor], contract: Contract, folder: Path) -> str:
        self.calls += 1
        assert not program.training
        assert [tuple(tensor.shape) for tensor in example] == [spec.shape for spec in contract.inputs]
        (folder / "counting").mkdir()
        (folder / "counting" / "weights.bin").write_bytes(program(*example).detach().numpy().tobytes())
        return "counting"


def test_a_target_may_write_a_folder_and_is_asked_once(
    tiny_checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, stages = Counting(), list[str]()
    monkeypatch.setitem(targets(), "counting", target)
    bundle = export_bundle(
        tiny_checkpoint, tmp_path / "x.edgesd", ["counting", "counting"], steps=4, observe=stages.append, goldens=1
    )
    assert (target.calls, stages) == (1, ["golden trajectories", "counting"])
    assert (bundle.program("counting").file, "counting/weights.bin" in bundle.manifest.files) == ("counting", True)
    written = np.frombuffer((bundle.path / "counting" / "weights.bin").read_bytes(), np.float32)
    assert snr_db(bundle.golden.trajectories[0].predictions[0].ravel(), written) > 100


# Refusals


@pytest.mark.parametrize("changes", [{"num_classes": 3}, {"context_dim": 8}])
def test_a_conditional_model_is_refused_before_anything_is_written(
    changes: dict[str, Any], make_model: MakeModel, tmp_path: Path
) -> None:
    checkpoint = Checkpoint.of(make_model(**changes), SCHEDULES["cosine"], "v", Provenance(made_by="train"))
    with pytest.raises(UsageError, match="conditional model has no features that depend on time alone"):
        export_bundle(checkpoint, tmp_path / "x.edgesd", ["onnx"], steps=4)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("choices", "complaint"),
    [
        ({"target_names": ["onnx", "tflite"]}, rf"unknown target 'tflite' .try: one of {', '.join(targets())}"),
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
        export_bundle(tiny_checkpoint, tmp_path / "x.edgesd", **{"target_names": [], "steps": 4, **choices})
    assert not list(tmp_path.iterdir())


def test_a_target_whose_packages_are_missing_says_how_to_get_them(
    tiny_checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OnnxTarget, "available", lambda self: Availability(False, "onnx is not installed", "pip install onnx"))
    with pytest.raises(InstallationError, match=re.escape("target onnx: onnx is not installed (try: pip install onnx)")):
        export_bundle(tiny_checkpoint, tmp_path / "x.edgesd", ["onnx"], steps=4)
    assert not list(tmp_path.iterdir())
