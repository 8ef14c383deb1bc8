"""`edge-sd evaluate`: figures of a checkpoint, a bundle, a folder and a file of samples, and what it says when it cannot."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edge_sd.checkpoint import Checkpoint
from edge_sd.data import dead_leaves
from edge_sd.evaluation.draw import load_samples
from edge_sd.evaluation.record import Evaluation
from edge_sd.export import ExportRequest, export_bundle
from edge_sd.files import read_model
from verbs import Outcome, call

N = 12
DATA = ("--count", 20, "-n", N)
MEASURED = ("--features", "measured_features:Pooled", "--kid-subset-size", 6)
FEATURES = """
import torch

class Pooled(torch.nn.Module):
    size = 8

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Conv2d(3, 6, 3)

    def forward(self, images):
        return self.layer(images).relu().mean((2, 3))
"""


def evaluate(*arguments: object) -> Outcome:
    """`edge-sd evaluate …` in this process."""
    return call("evaluate", *arguments)


@pytest.fixture(scope="module")
def work(tiny_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model.safetensors, model.edgesd, photos/ of 20 images and a module with features."""
    work = tmp_path_factory.mktemp("evaluate")
    tiny_checkpoint.save(work / "model.safetensors")
    export_bundle(tiny_checkpoint, work / "model.edgesd", ExportRequest(targets=("onnx",), steps=2, goldens=1), overwrite=True)
    (work / "photos").mkdir()
    for index in range(20):
        Image.fromarray(dead_leaves(7, index, 16, 1.0)).save(work / "photos" / f"{index:02d}.png")
    (work / "measured_features.py").write_text(FEATURES)
    return work


@pytest.fixture(autouse=True)
def _here(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(work)


def test_help_has_an_example() -> None:
    done = evaluate("--help")
    assert done.code == 0
    assert re.search(r"^\s*Example:\s+edge-sd\s+evaluate\b", done.out, re.MULTILINE)


def test_a_checkpoint_gets_a_table_a_record_a_picture_and_its_samples(work: Path, tmp_path: Path) -> None:
    kept = [tmp_path / name for name in ("evaluation.json", "evaluation.png", "samples.safetensors")]
    done = evaluate(
        "model.safetensors", *DATA, *MEASURED, "--steps", 2, "-o", kept[0], "--figure", kept[1], "--save-samples", kept[2]
    )
    assert done.code == 0, done
    result = read_model(Evaluation, kept[0])
    digest = result.figure("Pooled-KID").features
    assert digest is not None
    for row in ("Pooled-KID", "Pooled-FD", "Pooled precision", "wavelet SWD HH1", "spectrum gap dB"):
        (line,) = [line for line in done.out.splitlines() if f" {row} " in line and "=" not in line]
        of = f"Pooled {digest.digest[:12]}" if row.startswith("Pooled") else "pixels"
        assert re.search(rf"│ {N} +│ all +│ {of}", line), line
    assert "dpmpp, 2 evaluations, in torch, seed 0" in done.out
    assert f"{N} of 20" in done.out
    assert (result.n, result.size, result.origin.nfe) == (N, 16, 2)
    assert {"reference", "sampling", "measuring"} == result.seconds.keys()
    with Image.open(kept[1]) as picture:
        assert picture.width > 1000
    assert load_samples(kept[2])[0].shape == (N, 3, 16, 16)
    again = evaluate(kept[2], *DATA, *MEASURED, "--format", "json")
    found = Evaluation.model_validate_json(again.out)
    assert (found.figures, found.origin) == (result.figures, result.origin)


def test_a_bundle_in_any_runtime_draws_what_its_checkpoint_draws() -> None:
    common = (*DATA, *MEASURED, "--format", "json", "--batch-size", 6)
    found = [
        Evaluation.model_validate_json(evaluate(*arguments, *common).out)
        for arguments in (
            ("model.safetensors", "--steps", 2),
            ("model.edgesd",),
            ("model.edgesd", "--runtime", "torch", "--steps", 2, "--solver", "dpmpp"),
            ("model.edgesd", "--processes", 2),
        )
    ]
    assert [result.origin.kind for result in found] == ["checkpoint", "bundle", "bundle", "bundle"]
    assert [result.origin.runtime for result in found] == ["torch", "onnxruntime", "torch", "onnxruntime"]
    assert {result.origin.nfe for result in found} == {2}
    assert found[3].figures == found[1].figures
    for result in found[1:]:
        for ours, theirs in zip(result.figures, found[0].figures, strict=True):
            assert ours.name == theirs.name
            assert ours.value == pytest.approx(theirs.value, abs=2e-2), ours.name


def test_a_folder_of_images_is_measured_at_its_size() -> None:
    done = evaluate("photos", *DATA, "--features", "none", "--format", "json")
    result = Evaluation.model_validate_json(done.out)
    assert (result.origin.kind, result.origin.name, result.size) == ("folder", "photos", 16)
    assert result.origin.solver == ""
    assert all(figure.features is None for figure in result.figures)
    smaller = evaluate("photos", *DATA, "--features", "none", "--size", 8, "--resize", "--format", "json")
    assert Evaluation.model_validate_json(smaller.out).size == 8


def test_the_size_is_that_of_the_images_which_are_read(work: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mix"
    shutil.copytree(work / "photos", folder)
    Image.new("RGB", (40, 40)).save(folder / "0thumb.gif")
    Image.new("RGB", (40, 40)).save(folder / ".0.png")
    done = evaluate(folder, *DATA, "--features", "none", "--format", "json")
    assert done.code == 0, done
    assert Evaluation.model_validate_json(done.out).size == 16


def test_shards_do_not_say_how_large_their_images_are(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"")
    assert "--size" in evaluate(tmp_path, *DATA, "--features", "none").error


def test_no_more_is_read_than_the_limit() -> None:
    done = evaluate("photos", "--data", "photos", "--limit", N, "-n", N, "--features", "none", "--format", "json")
    assert Evaluation.model_validate_json(done.out).real.available == N
    assert (
        "data holds 12 images, not 13"
        in evaluate("photos", "--data", "photos", "--limit", N, "-n", N + 1, "--features", "none").error
    )


def test_the_same_images_on_both_sides_are_no_distance_apart() -> None:
    done = evaluate("photos", "--data", "photos", "-n", 20, "--features", "none", "--format", "json")
    assert {figure["value"] for figure in json.loads(done.out)["figures"]} == {0.0}


def test_the_features_can_be_named() -> None:
    done = evaluate("photos", *DATA, *MEASURED, "--features-name", "Mine")
    assert "Mine-KID" in done.out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("photos", "--count", 20, "-n", 21), r"data holds 20 images, not 21.*-n 20"),
        (("model.safetensors", *DATA, "--features", "measured_features:Pooled"),
         r"12 images are too few for Pooled-KID over subsets of 1000"),
        (("photos", *DATA, *MEASURED, "--neighbours", 12), r"too few for precision and recall over 12 neighbours"),
        (("photos", "-n", 25, "--count", 30), r"data holds 20 images, not 25"),
        (("photos", *DATA, "--features", "nowhere:Pooled"), r"no module 'nowhere'"),
        (("photos", *DATA, "--features-name", "Mine"), r"no name"),
        (("photos", *DATA, "--steps", 3), r"are there already.*--steps"),
        (("photos", *DATA, "--runtime", "torch"), r"are there already"),
        (("model.safetensors", *DATA, "--runtime", "onnxruntime"), r"a checkpoint runs in torch.*edge-sd export"),
        (("model.safetensors", *DATA, "--size", 8), r"has its own size"),
        (("model.safetensors", *DATA, "--label", 1), r"knows no classes"),
        (("model.safetensors", *DATA, "--solver", "magic"), r"unknown solver 'magic'"),
        (("model.edgesd", *DATA, "--runtime", "magic"), r"unknown runtime 'magic'"),
        (("nothing", *DATA), r"nothing does not exist"),
        (("empty", *DATA), r"holds no images, and no model"),
        (("photos", *DATA, "--wavelet", "magic"), r"unknown wavelet 'magic'"),
        (("photos", *DATA, "--size", 8), r"--resize"),
    ],
)  # fmt: skip
def test_what_cannot_be_measured_is_two_lines(work: Path, arguments: tuple[object, ...], said: str) -> None:
    (work / "empty").mkdir(exist_ok=True)
    (work / "empty" / "notes.txt").write_text("no image")
    features = () if "--features" in arguments else ("--features", "none")
    done = evaluate(*arguments, *features)
    assert done.code in (1, 2)
    assert re.search(said, done.error), done.error


@pytest.mark.parametrize("option", ["-o", "--figure", "--save-samples"])
def test_a_file_that_is_there_is_kept_unless_it_may_be_replaced(tmp_path: Path, option: str) -> None:
    path = tmp_path / "kept"
    path.write_bytes(b"mine")
    arguments = ("photos", *DATA, "--features", "none", option, path)
    assert "--overwrite" in evaluate(*arguments).error
    assert path.read_bytes() == b"mine"
    assert evaluate(*arguments, "--overwrite").code == 0
    assert path.read_bytes() != b"mine"


def test_inception_weights_come_from_a_path_or_say_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(b"not weights")
    done = evaluate("photos", *DATA, "--kid-subset-size", 6, "--inception-weights", path)
    assert done.code == 1
    assert "weights.pth" in done.error


def test_images_of_one_colour_still_get_a_table_and_a_picture(tmp_path: Path) -> None:
    folder = tmp_path / "grey"
    folder.mkdir()
    for index in range(N):
        Image.fromarray(np.full((16, 16, 3), 128, np.uint8)).save(folder / f"{index}.png")
    done = evaluate(folder, *DATA, *MEASURED, "--figure", tmp_path / "grey.png")
    assert done.code == 0, done
    assert (tmp_path / "grey.png").stat().st_size > 10_000
