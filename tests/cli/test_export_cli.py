"""The verbs around a bundle: export, plan, inspect and sample, by what they print, write and return."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edge_sd.bundle import open_bundle
from edge_sd.checkpoint import Checkpoint, Provenance
from edge_sd.diffusion import SCHEDULES, compile_plan
from edge_sd.models.unet import SpectralUNet
from edge_sd.runtimes.parity import check_parity
from verbs import call, refused


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def checkpoint(make_model: Callable[..., SpectralUNet], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes, 8 px."""
    path = tmp_path_factory.mktemp("model") / "checkpoint.safetensors"
    model = make_model(5, image_size=8, gating=False, num_classes=3)
    Checkpoint.of(model, SCHEDULES["cosine"], "v", Provenance(made_by="train")).save(path)
    return path


@pytest.fixture(scope="module")
def labelled(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bundle") / "labelled.edgesd"
    done = call("export", checkpoint, "--target", "onnx", "--steps", 4, "--goldens", 2, "-o", out)
    assert done.code == 0, done
    return out


@pytest.fixture
def bundle(make_model: Callable[..., SpectralUNet], tmp_path: Path) -> Path:
    """Without classes, for torch alone: nothing to wait for, and one for each test to change."""
    from edge_sd.export import ExportRequest, export_bundle

    checkpoint = Checkpoint.of(make_model(6, image_size=8), SCHEDULES["cosine"], "v", Provenance(made_by="train"))
    return export_bundle(checkpoint, tmp_path / "own" / "own.edgesd", ExportRequest((), steps=4, goldens=2)).path


# export


def test_a_dry_run_writes_nothing_and_lists_every_target(checkpoint: Path, tmp_path: Path) -> None:
    before = contents(checkpoint.parent)
    done = call("export", checkpoint, "--target", "all", "--dry-run", "-o", tmp_path / "x.edgesd")
    assert done.code == 0, done
    assert contents(checkpoint.parent) == before
    assert not list(tmp_path.iterdir())
    for said in ("coreml", "executorch", "onnx", "denoiser", "temporal", "ready"):
        assert said in done.out


def test_a_dry_run_as_json(checkpoint: Path, tmp_path: Path) -> None:
    done = call("export", checkpoint, "--target", "onnx", "--dry-run", "--format", "json", "-o", tmp_path / "x.edgesd")
    assert (done.code, done.err) == (0, "")
    (check,) = json.loads(done.out)
    assert (check["target"], check["programs"], check["problems"]) == ("onnx", ["denoiser", "temporal"], [])


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
@pytest.mark.parametrize(("opset", "why"), [(11, "too old"), (99, "too new")])
def test_an_opset_that_cannot_be_written(opset: int, why: str, more: tuple[str, ...], checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.edgesd"
    done = call("export", checkpoint, "--target", "onnx", "--onnx-opset", opset, *more, "-o", out)
    refused(done, 2, f"onnx: opset {opset} is {why}")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("option", "value", "code", "said"),
    [
        ("--delegate", "qnn", 2, ("options of the target: executorch_delegate", "xnnpack")),
        ("--coreml-precision", "int4", 2, ("options of the target: coreml_precision", "fp16")),
        ("--coreml-os", "iOS11", 2, ("options of the target: coreml_os", "iOS17")),
        ("--ram-budget", "much", 2, ("'much' is not a size", "512MiB")),
        ("--ram-budget", "1KiB", 1, ("needs about", "--ram-budget")),
        ("--solver", "euler", 2, ("unknown solver 'euler'",)),
        ("--target", "tflite", 2, ("unknown target 'tflite'", "or all")),
    ],
)
def test_what_export_refuses(option: str, value: str, code: int, said: tuple[str, ...], checkpoint: Path, tmp_path: Path) -> None:
    done = call("export", checkpoint, "--target", "onnx", option, value, "--steps", 3, "-o", tmp_path / "x.edgesd")
    refused(done, code, *said)
    assert not list(tmp_path.iterdir())


def test_an_existing_bundle_is_left_alone(bundle: Path, checkpoint: Path) -> None:
    before = contents(bundle.parent)
    refused(call("export", checkpoint, "--target", "onnx", "-o", bundle), 2, f"{bundle} exists", "--overwrite")
    assert contents(bundle.parent) == before


def test_an_existing_bundle_survives_an_overwriting_export_that_is_refused(bundle: Path, checkpoint: Path) -> None:
    before = contents(bundle.parent)
    refused(call("export", checkpoint, "--target", "onnx", "--onnx-opset", 11, "--overwrite", "-o", bundle), 2, "too old")
    assert contents(bundle.parent) == before


# plan


def test_another_plan(labelled: Path, tmp_path: Path) -> None:
    before, out = contents(labelled.parent), tmp_path / "x.edgesd"
    done = call("plan", "swap", labelled, "--solver", "unipc", "--steps", 8, "-o", out)
    assert done.code == 0, done
    assert f"wrote {out}: unipc, 8 steps" in done.err
    assert contents(labelled.parent) == before
    opened = open_bundle(out)
    assert (opened.plan.header.solver, len(opened.plan), len(opened.golden.trajectories)) == ("unipc", 8, 2)
    assert check_parity(opened, "onnxruntime")[0].passed


def test_another_plan_in_place(bundle: Path) -> None:
    done = call("plan", "swap", bundle, "--solver", "ddim", "--eta", 0.5, "--steps", 3, "--goldens", 1)
    assert done.code == 0, done
    opened = open_bundle(bundle)
    assert (opened.plan.header.solver, len(opened.plan), opened.plan.stochastic) == ("ddim", 3, True)
    assert len(opened.golden.trajectories) == 1
    assert [path.name for path in bundle.parent.iterdir()] == [bundle.name]


def test_a_plan_from_a_file(bundle: Path, tmp_path: Path) -> None:
    """Also one that has rows of its own, as a bundle's has: they are made again for this model."""
    plan = compile_plan(SCHEDULES["cosine"], 5, solver="unipc", prediction="v")
    plan.with_features(np.ones((5, 3), np.float32)).save(tmp_path / "plan.safetensors")
    width = open_bundle(bundle).plan.header.feature_width
    done = call("plan", "swap", bundle, "--plan", tmp_path / "plan.safetensors")
    assert done.code == 0, done
    opened = open_bundle(bundle)
    assert (len(opened.plan), opened.plan.header.feature_width) == (5, width)
    np.testing.assert_array_equal(opened.plan.columns["b"], plan.columns["b"])


@pytest.mark.parametrize(("schedule", "prediction"), [("ldm", "v"), ("cosine", "epsilon")])
def test_a_plan_of_another_schedule(schedule: str, prediction: Any, bundle: Path, tmp_path: Path) -> None:
    compile_plan(SCHEDULES[schedule], 4, solver="ddim", prediction=prediction).save(tmp_path / "plan.safetensors")
    before = contents(bundle.parent)
    done = call("plan", "swap", bundle, "--plan", tmp_path / "plan.safetensors")
    refused(done, 1, "of another schedule or prediction", "edge-sd plan make")
    assert contents(bundle.parent) == before


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--solver", "euler"), 2, "unknown solver 'euler'"),
        (("--steps", 0), 2, "0 steps"),
        (("--plan", "nowhere.safetensors"), 1, "nowhere.safetensors does not exist"),
        (("-o", "other.zip"), 2, "a bundle's name ends in .edgesd"),
    ],
)
def test_what_plan_refuses(arguments: tuple[object, ...], code: int, said: str, bundle: Path) -> None:
    before = contents(bundle.parent)
    refused(call("plan", "swap", bundle, *arguments), code, said)
    assert contents(bundle.parent) == before


def test_a_new_bundle_is_not_written_over_another(bundle: Path, labelled: Path) -> None:
    before = contents(bundle.parent)
    refused(call("plan", "swap", labelled, "-o", bundle), 2, f"{bundle} exists", "--overwrite")
    assert contents(bundle.parent) == before


# inspect


def test_inspect_names_every_program(labelled: Path) -> None:
    done = call("inspect", labelled)
    assert (done.code, done.err) == (0, "")
    opened = open_bundle(labelled)
    for program in opened.manifest.programs:
        assert program.name in done.out
        assert program.target == "torch" or program.file in done.out
        assert all(rewrite in done.out for rewrite in program.rewrites)
    for contract in opened.manifest.contracts:
        assert all(spec.name in done.out for spec in (*contract.inputs, *contract.outputs))
    for said in (
        "3 classes",
        "dpmpp, 4 steps",
        "classes 0, 1",
        "gating off",
        opened.manifest.weights_digest[:16],
        "v-prediction",
    ):
        assert said in done.out


def test_inspect_as_json_is_the_manifest(labelled: Path) -> None:
    done = call("inspect", labelled, "--format", "json")
    assert (done.code, done.err) == (0, "")
    assert json.loads(done.out) == json.loads((labelled / "manifest.json").read_text())


def test_inspect_checks_every_hash(bundle: Path) -> None:
    (bundle / "README.md").write_text("another")
    refused(call("inspect", bundle), 1, "README.md has changed")


def test_inspect_of_what_is_no_bundle(tmp_path: Path) -> None:
    refused(call("inspect", tmp_path), 2, "is not a bundle")


# sample


def picture(model: Path, folder: Path, *arguments: object) -> np.ndarray:
    out = folder / f"{len(list(folder.iterdir()))}.png"
    done = call("sample", model, "-n", 2, "--seed", 4, "-o", out, *arguments)
    assert done.code == 0, done
    return np.asarray(Image.open(out)).astype(int)


@pytest.mark.parametrize("own_plan", [True, False])
def test_each_class_is_drawn_from_a_bundle_as_from_the_checkpoint(
    own_plan: bool, labelled: Path, checkpoint: Path, tmp_path: Path
) -> None:
    plan = () if own_plan else ("--solver", "ddim", "--steps", 3)
    drawn = []
    for label in range(3):
        ours = picture(labelled, tmp_path, "--label", label, *plan)
        theirs = picture(checkpoint, tmp_path, "--label", label, *(plan or ("--steps", 4)))
        assert np.abs(ours - theirs).max() <= 1
        drawn.append(ours)
    assert min(np.abs(drawn[a] - drawn[b]).max() for a, b in ((0, 1), (0, 2), (1, 2))) > 5


@pytest.mark.parametrize(("arguments", "said"), [((), "not None"), (("--label", 3), "not 3")])
@pytest.mark.parametrize("from_bundle", [True, False])
def test_a_class_that_is_missing_or_unknown(
    from_bundle: bool, arguments: tuple[object, ...], said: str, labelled: Path, checkpoint: Path, tmp_path: Path
) -> None:
    model = labelled if from_bundle else checkpoint
    refused(call("sample", model, "-o", tmp_path / "x.png", *arguments), 2, f"one of 3 classes, {said}", "--label 0")
    assert not list(tmp_path.iterdir())


def test_a_class_where_there_are_none(bundle: Path, tmp_path: Path) -> None:
    done = call("sample", bundle, "--runtime", "torch", "--label", 0, "-o", tmp_path / "x.png")
    refused(done, 2, "knows no classes", "leave --label out")
