"""Another plan for a finished bundle: the programs stay, to the byte where their format allows; the old bundle is never lost."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from edge_sd.bundle import Bundle, Manifest, file_entries, open_bundle
from edge_sd.bundle.contract import METADATA_KEY, Contract, PlanSummary
from edge_sd.bundle.manifest import CARD, MANIFEST
from edge_sd.checkpoint import load_checkpoint
from edge_sd.diffusion import SCHEDULES, Plan, compile_plan
from edge_sd.errors import EdgeSDError
from edge_sd.export import swap_plan
from edge_sd.export.onnx import OnnxTarget
from edge_sd.files import write_model
from edge_sd.runtimes.parity import check_parity
from edge_sd.sampling import plan_features, sample_model

CHANGING = {"plan.safetensors", "golden.safetensors", "README.md"}


def another_plan(bundle: Bundle, solver: str = "unipc", steps: int = 5) -> Plan:
    manifest = bundle.manifest
    return compile_plan(manifest.noise_schedule, steps, solver=solver, prediction=manifest.prediction)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def copy_of(bundle: Bundle, folder: Path) -> Bundle:
    return open_bundle(Path(shutil.copytree(bundle.path, folder / bundle.path.name)))


def without_contract(file: Path) -> bytes:
    model = onnx.load(file)
    (entry,) = (entry for entry in model.metadata_props if entry.key == METADATA_KEY)
    model.metadata_props.remove(entry)
    return bytes(model.SerializeToString(deterministic=True))


@pytest.fixture(scope="module")
def swapped(latent: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The latent bundle for every target, under a new name and with three trajectories in place of two."""
    before = contents(latent.path)
    out = tmp_path_factory.mktemp("swapped") / "new.edgesd"
    result = swap_plan(latent, another_plan(latent), out, goldens=3)
    assert contents(latent.path) == before
    return result


# A new bundle


def test_the_new_bundle_is_whole(swapped: Bundle, latent: Bundle) -> None:
    again = open_bundle(swapped.path)
    assert again.manifest == swapped.manifest
    assert swapped.manifest.name == "new"
    assert {path.name for path in swapped.path.parent.iterdir()} == {"new.edgesd"}
    assert set(swapped.manifest.files) == set(latent.manifest.files)
    assert swapped.manifest.programs == latent.manifest.programs
    assert "unipc, 5 steps" in (swapped.path / CARD).read_text()


def test_the_plan_is_the_new_one_with_the_models_rows(swapped: Bundle) -> None:
    plan, model = another_plan(swapped), load_checkpoint(swapped.path / "reference.safetensors").build()
    assert all(np.array_equal(swapped.plan.columns[name], column) for name, column in plan.columns.items())
    np.testing.assert_array_equal(swapped.plan.features, plan_features(model, plan))
    assert {contract.plan for contract in swapped.manifest.contracts} == {PlanSummary.of(swapped.plan)}


def test_the_goldens_are_drawn_again_from_the_same_noise(swapped: Bundle, latent: Bundle) -> None:
    model = load_checkpoint(latent.path / "reference.safetensors").build()
    expected = sample_model(model, another_plan(latent), seed=3, count=3, batch_size=1)
    trajectories = swapped.golden.trajectories
    np.testing.assert_array_equal(np.stack([trajectory.final for trajectory in trajectories]), expected)
    assert swapped.golden.header.seed == 3
    for old, new in zip(latent.golden.trajectories, trajectories, strict=False):
        np.testing.assert_array_equal(old.samples[0], new.samples[0])
        assert not np.array_equal(old.final, new.final)
    assert all(trajectory.image is not None and trajectory.image.shape == (3, 16, 16) for trajectory in trajectories)


def test_ranges_of_the_contracts_are_those_of_the_new_goldens(swapped: Bundle) -> None:
    values = np.stack([trajectory.samples for trajectory in swapped.golden.trajectories])
    spec = swapped.manifest.contract().inputs[0]
    assert (spec.name, spec.range) == ("sample", (float(values.min()), float(values.max())))


def test_the_programs_are_the_same_but_for_their_contracts(swapped: Bundle, latent: Bundle) -> None:
    old, new = latent.manifest.files, swapped.manifest.files
    differing = {name for name in old if old[name] != new[name]}
    package = "programs.mlpackage/Data/com.apple.CoreML/model.mlmodel"
    assert differing == {*CHANGING, "denoiser.onnx", "temporal.onnx", "decoder.onnx", package}
    assert old["programs.pte"] == new["programs.pte"]
    for name in ("denoiser.onnx", "temporal.onnx", "decoder.onnx"):
        assert without_contract(latent.path / name) == without_contract(swapped.path / name)
        (inside,) = (entry.value for entry in onnx.load(swapped.path / name).metadata_props if entry.key == METADATA_KEY)
        assert Contract.model_validate_json(inside) == swapped.manifest.contract(name.removesuffix(".onnx"))


def test_core_mls_package_has_the_new_contracts_and_the_old_program(swapped: Bundle, latent: Bundle) -> None:
    import json

    from coremltools.proto import Model_pb2

    specs = []
    for bundle in (latent, swapped):
        file = bundle.path / "programs.mlpackage/Data/com.apple.CoreML/model.mlmodel"
        spec = Model_pb2.Model.FromString(file.read_bytes())
        inside = {entry["program"]: entry for entry in json.loads(spec.description.metadata.userDefined.pop(METADATA_KEY))}
        assert inside == {contract.program: contract.model_dump(mode="json") for contract in bundle.manifest.contracts}
        specs.append(spec.SerializeToString(deterministic=True))
    assert specs[0] == specs[1]


@pytest.mark.parametrize("runtime", ["torch", "onnxruntime", "executorch"])
def test_every_runtime_is_at_par_along_the_new_plan(runtime: str, swapped: Bundle) -> None:
    result, _ = check_parity(swapped, runtime)
    assert result.passed, result.verdict
    assert (len(result.steps), result.trajectories) == (5, 3)
    assert result.temporal is not None
    assert result.decoder is not None


def test_classes_stay(by_context: Bundle, tmp_path: Path) -> None:
    """Rows that depend on the class are no part of the new plan either."""
    result = swap_plan(by_context, another_plan(by_context, "ddpm"), tmp_path / "x.edgesd")
    assert result.golden.header.labels == (0, 1, 2, 0)
    assert (result.plan.header.feature_width, result.plan.header.solver) == (0, "ddpm")
    model = load_checkpoint(result.path / "reference.safetensors").build()
    np.testing.assert_array_equal(result.golden.trajectories[2].features, plan_features(model, result.plan, 2))
    assert check_parity(result, "onnxruntime")[0].passed


# In place


def test_in_place(onnx_bundle: Bundle, tmp_path: Path) -> None:
    bundle = copy_of(onnx_bundle, tmp_path)
    before = contents(bundle.path)
    result = swap_plan(bundle, another_plan(bundle), bundle.path)
    after = contents(bundle.path)
    assert [path.name for path in tmp_path.iterdir()] == [bundle.path.name]
    assert (result.path, result.plan.header.solver, len(result.golden.trajectories)) == (bundle.path, "unipc", 2)
    assert {name for name in before if before[name] != after[name]} == {*CHANGING, "denoiser.onnx", MANIFEST}
    assert check_parity(open_bundle(bundle.path), "onnxruntime")[0].passed


def test_there_and_back_again(onnx_bundle: Bundle, tmp_path: Path) -> None:
    """The first plan's contracts, goldens and rows come back to the byte: nothing of a swap stays behind."""
    bundle = copy_of(onnx_bundle, tmp_path)
    first = compile_plan(bundle.manifest.noise_schedule, 4, prediction="epsilon", solver="dpmpp")
    back = swap_plan(swap_plan(bundle, another_plan(bundle), bundle.path), first, bundle.path)
    same = {"plan.safetensors", "golden.safetensors", "reference.safetensors"}
    assert all(back.manifest.files[name] == onnx_bundle.manifest.files[name] for name in same)
    assert back.manifest.contracts == onnx_bundle.manifest.contracts
    assert without_contract(back.path / "denoiser.onnx") == without_contract(onnx_bundle.path / "denoiser.onnx")


def test_the_new_bundle_cannot_change_the_old_one(onnx_bundle: Bundle, tmp_path: Path) -> None:
    """Files that are equal may be one file under two names; nothing that is written later goes into it."""
    bundle = copy_of(onnx_bundle, tmp_path)
    before = contents(bundle.path)
    new = swap_plan(bundle, another_plan(bundle), tmp_path / "new.edgesd")
    for name in {*CHANGING, "denoiser.onnx"}:
        assert not (new.path / name).samefile(bundle.path / name)
    again = swap_plan(new, another_plan(new, "ddim", 3), new.path)
    assert len(again.plan) == 3
    shutil.rmtree(new.path)
    assert contents(bundle.path) == before
    open_bundle(bundle.path)


# Refusals and accidents


@pytest.mark.parametrize(("schedule", "prediction"), [("cosine", "epsilon"), ("ldm", "v"), ("cosine", "v")])
@pytest.mark.parametrize("in_place", [True, False])
def test_a_plan_of_another_model(schedule: str, prediction: str, in_place: bool, onnx_bundle: Bundle, tmp_path: Path) -> None:
    bundle = copy_of(onnx_bundle, tmp_path)
    before = contents(tmp_path)
    plan = compile_plan(SCHEDULES[schedule], 4, solver="ddim", prediction=prediction)
    with pytest.raises(EdgeSDError, match="the plan is of another schedule or prediction than the model") as refused:
        swap_plan(bundle, plan, bundle.path if in_place else tmp_path / "new.edgesd")
    assert f"({plan.header.noise_schedule.kind}, {prediction}; the model's are" in refused.value.message
    assert contents(tmp_path) == before


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("accident", [OSError(28, "No space left on device"), KeyboardInterrupt(), EdgeSDError("no", "do")])
def test_a_swap_that_fails_leaves_the_old_bundle(
    accident: BaseException, in_place: bool, onnx_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = copy_of(onnx_bundle, tmp_path)
    before = contents(tmp_path)

    def fail(*arguments: object) -> None:
        raise accident

    monkeypatch.setattr(OnnxTarget, "stamp", fail)
    with pytest.raises((EdgeSDError, KeyboardInterrupt)):
        swap_plan(bundle, another_plan(bundle), bundle.path if in_place else tmp_path / "new.edgesd")
    assert contents(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == [bundle.path.name]


KILLED = """
import os, signal, sys
from pathlib import Path
from edge_sd.bundle import open_bundle
from edge_sd.diffusion import compile_plan
from edge_sd.export import swap_plan
from edge_sd.export.onnx import OnnxTarget

stamp = OnnxTarget.stamp
def killed(*arguments):
    stamp(*arguments)
    os.kill(os.getpid(), signal.SIGKILL)

OnnxTarget.stamp = killed
bundle = open_bundle(Path(sys.argv[1]))
swap_plan(bundle, compile_plan(bundle.manifest.noise_schedule, 3, solver="ddim", prediction="epsilon"), bundle.path)
"""


def test_a_swap_that_is_killed_leaves_the_old_bundle(onnx_bundle: Bundle, tmp_path: Path) -> None:
    bundle = copy_of(onnx_bundle, tmp_path)
    before = contents(bundle.path)
    done = subprocess.run([sys.executable, "-c", KILLED, bundle.path], env=os.environ, cwd=tmp_path, timeout=120)
    assert done.returncode == -signal.SIGKILL
    assert contents(bundle.path) == before
    result = swap_plan(open_bundle(bundle.path), another_plan(bundle), bundle.path)
    assert check_parity(result, "onnxruntime")[0].passed


def test_programs_of_a_target_that_is_not_installed(onnx_bundle: Bundle, tmp_path: Path) -> None:
    """Its files may hold a contract, and nobody here could replace it."""
    bundle = copy_of(onnx_bundle, tmp_path)
    programs = [
        program.model_copy(update={"target": "tflite"}) if program.target == "onnx" else program
        for program in bundle.manifest.programs
    ]
    manifest = Manifest.model_validate(bundle.manifest.model_copy(update={"programs": tuple(programs)}).model_dump())
    write_model(bundle.path / MANIFEST, manifest.model_copy(update={"files": file_entries(bundle.path)}).sealed())
    before = contents(tmp_path)
    with pytest.raises(EdgeSDError, match="holds programs of the unknown target tflite"):
        swap_plan(open_bundle(bundle.path), another_plan(bundle), bundle.path)
    assert contents(tmp_path) == before
