"""The command line: what each verb does, what it says when it cannot, and the exit code that a script sees."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from PIL import Image

import edge_sd
from damage import reseal
from edge_sd.bundle import open_bundle
from edge_sd.checkpoint import load_checkpoint
from edge_sd.devices import BenchResult
from edge_sd.devices._compare import Comparison
from edge_sd.export import ExportRequest, export_bundle
from edge_sd.files import read_model, write_model
from edge_sd.report.parity import ParityReport
from verbs import Outcome, call

VERBS = (
    "init",
    "run",
    "train",
    "distill",
    "sample",
    "quantize",
    "export",
    "plan",
    "search",
    "widths",
    "inspect",
    "parity",
    "selftest",
    "bench",
    "compare",
    "serve",
    "emulator",
    "evaluate",
    "report",
    "doctor",
    "list",
    "train-autoencoder",
)
TINY = ("--size", "16", "--steps", "4", "--batch-size", "4", "--count", "8", "--sample-every", "0")


def call_outside(folder: Path, *arguments: object, **environment: str) -> Outcome:
    """`python -m edge_sd …` in a process of its own, in a folder that holds no edge_sd/ to be imported by accident."""
    done = subprocess.run(
        [sys.executable, "-m", "edge_sd", *map(str, arguments)],
        cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    return Outcome(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The happy path: teacher/, student/, student.edgesd and two grids, each made by its verb."""
    work = tmp_path_factory.mktemp("work")
    teacher, student = work / "teacher" / "checkpoint.safetensors", work / "student" / "checkpoint.safetensors"
    for arguments in (
        ("train", *TINY, "--preset", "tiny16", "-o", teacher.parent),
        ("distill", "--teacher", teacher, *TINY, "-o", student.parent),
        ("sample", student, "-n", 3, "--steps", 3, "--seed", 1, "-o", work / "student.png"),
        ("export", student, "--target", "onnx", "--steps", 3, "--seed", 1, "-o", work / "student.edgesd"),
        ("sample", work / "student.edgesd", "-n", 3, "--seed", 1, "-o", work / "bundle.png"),
    ):
        done = call(*arguments)
        assert done.code == 0, done
        assert "wrote" in done.err
        assert bool(done.out) == (arguments[0] == "export")  # a table of what was exported
    return work


@pytest.fixture
def checkpoint(work: Path) -> Path:
    return work / "student" / "checkpoint.safetensors"


@pytest.fixture
def bundle(work: Path) -> Path:
    return work / "student.edgesd"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own, full before a training of `TINY` ends."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", disk], check=True)
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


def images(folder: Path, *sizes: tuple[int, int]) -> Path:
    """A folder of as many pictures."""
    folder.mkdir()
    for number, (width, height) in enumerate(sizes):
        pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


# What it is


def test_the_version() -> None:
    assert call("--version") == Outcome(0, f"edge-sd {edge_sd.__version__}\n", "")


def test_the_module_is_the_command(tmp_path: Path) -> None:
    assert call_outside(tmp_path, "--version") == Outcome(0, f"edge-sd {edge_sd.__version__}\n", "")


def test_help_names_every_verb_and_every_exit_code() -> None:
    said = call("--help").out
    for verb in VERBS:
        assert re.search(rf"^  {verb} ", said, re.MULTILINE)
    for code in range(6):
        assert f"{code} " in said[said.index("Exit codes") :]


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb_has_an_example(verb: str) -> None:
    done = call(verb, "--help")
    assert done.code == 0
    assert re.search(rf"^\s*Example:\s+edge-sd\s+{verb}\b", done.out, re.MULTILINE)


# The happy path


def test_training_and_distilling_leave_checkpoints(work: Path) -> None:
    teacher = load_checkpoint(work / "teacher" / "checkpoint.safetensors").header
    student = load_checkpoint(work / "student" / "checkpoint.safetensors").header
    assert (teacher.provenance.made_by, teacher.provenance.steps, teacher.model.image_size) == ("train", 4, 16)
    assert (student.provenance.made_by, student.provenance.parents) == ("distill", {"teacher": teacher.digest})


def test_a_finished_training_given_again_changes_nothing(work: Path) -> None:
    file = work / "teacher" / "checkpoint.safetensors"
    before = file.stat()
    assert call("train", *TINY, "--preset", "tiny16", "-o", file.parent).code == 0
    assert file.stat() == before


def test_a_bundle_draws_what_its_checkpoint_draws(work: Path) -> None:
    ours, theirs = (np.asarray(Image.open(work / name)).astype(int) for name in ("bundle.png", "student.png"))
    assert ours.shape == (2 * 17 - 1, 2 * 17 - 1, 3)
    assert np.abs(ours - theirs).max() <= 1


def test_a_bundle_can_be_drawn_from_by_another_plan(bundle: Path, checkpoint: Path, tmp_path: Path) -> None:
    choice = ("--solver", "ddim", "--steps", 2, "--eta", 0.5, "-n", 1, "--scale", 2)
    assert call("sample", bundle, *choice, "-o", tmp_path / "b.png").code == 0
    assert call("sample", checkpoint, *choice, "-o", tmp_path / "c.png").code == 0
    ours, theirs = (np.asarray(Image.open(tmp_path / name)).astype(int) for name in ("b.png", "c.png"))
    assert ours.shape == (32, 32, 3)
    assert np.abs(ours - theirs).max() <= 1


def test_parity_prints_every_step_and_the_verdict(bundle: Path) -> None:
    done = call("parity", bundle)
    assert done.code == 0
    assert all(f"{name}: passed, nearest to its gate is" in done.out for name in ("onnxruntime", "torch"))
    assert all(title in done.out for title in ("forced", "(free)", "floor", "snr_db: 10·log10", "the sample's last bit"))


def test_parity_writes_a_page_with_the_pictures(bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "parity of it"
    done = call("parity", bundle, "--runtime", "onnxruntime", "-o", out)
    assert done.code == 0
    assert {path.name for path in out.iterdir()} == {"parity.json", "parity.html", "onnxruntime.png"}
    (result,) = read_model(ParityReport, out / "parity.json").results
    assert (result.runtime, result.outcome) == ("onnxruntime", "passed")
    page = (out / "parity.html").read_text()
    assert page.count("data:image/png;base64,") == 3
    assert "http" not in page.replace("http-equiv", "")
    with Image.open(out / "onnxruntime.png") as picture:
        width, height = picture.size
    assert width / height == pytest.approx(3 / len(open_bundle(bundle).golden.trajectories), rel=0.05)
    assert call("parity", bundle, "--runtime", "onnxruntime", "-o", out).failed_with(2, "exists", "--overwrite")
    assert call("parity", bundle, "--runtime", "onnxruntime", "-o", out, "--overwrite").code == 0


def test_bench_prints_its_figures(bundle: Path) -> None:
    done = call("bench", bundle, "--threads", 1, "--warmup", 2, "--iterations", 5)
    assert done.code == 0
    assert "p90 ms" in done.out
    assert "passed" in done.out
    assert f"an image {len(open_bundle(bundle).plan)} and the decoder" in done.out


# JSON


@pytest.mark.parametrize("kind", ["presets", "solvers", "targets", "runtimes", "devices"])
def test_lists_are_clean_json(kind: str) -> None:
    done = call("list", kind, "--format", "json")
    assert (done.code, done.err) == (0, "")
    assert all(row[kind.removesuffix("s")] for row in json.loads(done.out))


def test_lists_for_people_hold_the_same_names() -> None:
    names = [row["solver"] for row in json.loads(call("list", "solvers", "--format", "json").out)]
    table = call("list", "solvers").out
    assert all(name in table for name in names)


def test_parity_is_clean_json_even_where_it_fails(bundle: Path) -> None:
    done = call("parity", bundle, "--runtime", "onnxruntime", "--runtime", "torch", "--gate", 300, "--format", "json")
    assert done.failed_with(3, "onnxruntime: INCONCLUSIVE", "torch: INCONCLUSIVE")
    results = json.loads(done.out)
    assert [result["runtime"] for result in results] == ["onnxruntime", "torch"]
    assert {step["forced"]["outcome"] for result in results for step in result["steps"]} == {"inconclusive"}


def test_bench_is_clean_json_and_the_same_on_disk(bundle: Path, tmp_path: Path) -> None:
    done = call(
        "bench", bundle, "--threads", 1, "--warmup", 1, "--iterations", 3, "--format", "json", "-o", tmp_path / "bench.json"
    )
    assert done.code == 0
    (result,) = json.loads(done.out)
    assert len(result["measurement"]["samples_ms"]) == 3
    assert result["parity"]["runtime"] == "onnxruntime"
    assert json.loads((tmp_path / "bench.json").read_text()) == result


def test_several_results_are_kept_each_as_it_comes(bundle: Path, tmp_path: Path) -> None:
    """One device that nobody answers at takes nothing from the others."""
    out = tmp_path / "results"
    quick = ("--threads", 1, "--warmup", 1, "--iterations", 3, "--no-prove")
    done = call(
        "bench", bundle, *quick, "--runtime", "onnxruntime", "--device", "host", "--device", "ssh:nobody@127.0.0.1:1", "-o", out
    )
    assert (done.code, "nobody@127.0.0.1:1" in done.err, "onnxruntime" in done.out) == (4, True, True)
    (kept,) = out.iterdir()
    assert kept.name == "00-host-onnxruntime.json"
    assert read_model(BenchResult, kept).parity is None
    assert call("bench", bundle, *quick, "-o", out).failed_with(2, "exists", "--overwrite")


def test_compare_says_which_is_faster(bundle: Path, tmp_path: Path) -> None:
    quick = ("--pairs", 4, "--iterations", 10, "--warmup", 2)
    out = tmp_path / "compare.json"
    done = call("compare", bundle, bundle, "--runtime", "torch", "--runtime", "onnxruntime", *quick, "-o", out)
    assert done.code == 0
    found = read_model(Comparison, out)
    assert (found.a.runtime, found.b.runtime, len(found.a.blocks_ms)) == ("torch", "onnxruntime", 4)
    assert found.verdict in done.out
    assert call("compare", bundle, bundle, "-o", out).failed_with(2, "exists", "--overwrite")


def test_saved_results_are_compared(bundle: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        quick = ("--threads", 1, "--warmup", 1, "--iterations", 5, "--no-prove")
        assert call("bench", bundle, "--runtime", "onnxruntime", *quick, "-o", tmp_path / f"{name}.json").code == 0
    done = call("compare", tmp_path / "a.json", tmp_path / "b.json", "--format", "json")
    assert done.code == 0
    assert json.loads(done.out)["interleaved"] is False
    result = read_model(BenchResult, tmp_path / "b.json")
    write_model(tmp_path / "b.json", result.model_copy(update={"device": result.device.model_copy(update={"model": "Pixel 8"})}))
    refused = call("compare", tmp_path / "a.json", tmp_path / "b.json")
    assert refused.failed_with(1, "were not measured alike: model:", "--anyway")
    assert "two occasions" in call("compare", tmp_path / "a.json", tmp_path / "b.json", "--anyway").out


def test_doctor_is_clean_json(tmp_path: Path) -> None:
    done = call_outside(tmp_path, "doctor", "--format", "json")
    assert (done.code, done.err) == (0, "")
    findings = {finding["subject"]: finding["state"] for finding in json.loads(done.out)}
    assert {"python", "cores", "memory", "torch", "runtime torch", "runtime onnxruntime", "runtime executorch"} <= findings.keys()
    assert {"executorch", "coremltools", "diffusers", "nncf"} <= findings.keys()
    assert set(findings.values()) <= {"ok", "missing", "untested"}


# Data


def test_classes_that_are_read_are_learnt_and_drawn(tmp_path: Path) -> None:
    for number, name in enumerate(("cat", "dog")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for index in range(2):
            Image.new("RGB", (16, 16), (100 * number, 50 * index, 0)).save(tmp_path / "photos" / name / f"{index}.png")
    data = ("--data", tmp_path / "photos", "--labels", "--size", 16, "--steps", 1, "--batch-size", 2, "--sample-every", 0)
    teacher, student = (tmp_path / role / "checkpoint.safetensors" for role in ("teacher", "student"))
    assert call("train", *data, "--preset", "tiny16", "-o", teacher.parent).code == 0
    assert call("distill", *data, "--preset", "tiny16", "--teacher", teacher, "-o", student.parent).code == 0
    assert [load_checkpoint(path).header.model.num_classes for path in (teacher, student)] == [2, 2]
    assert call("sample", student, "--label", 1, "-n", 1, "--steps", 1, "-o", tmp_path / "dog.png").code == 0
    unlabelled = [value for value in data if value != "--labels"]
    assert call("train", *unlabelled, "-o", tmp_path / "plain").code == 0
    assert load_checkpoint(tmp_path / "plain" / "checkpoint.safetensors").header.model.num_classes is None


def test_images_of_several_sizes(tmp_path: Path) -> None:
    folder = images(tmp_path / "photos", (16, 16), (40, 24), (9, 30))
    arguments = ("train", "--data", folder, "--size", 16, "--steps", 1, "--batch-size", 2, "--sample-every", 0)
    done = call(*arguments, "-o", tmp_path / "out")
    assert done.failed_with(1, "1.png is 40×24, and the model takes 16×16", "--resize")
    assert not (tmp_path / "out").exists()
    assert call(*arguments, "-o", tmp_path / "out", "--resize").code == 0
    assert load_checkpoint(tmp_path / "out" / "checkpoint.safetensors").header.provenance.data == "3 images of photos"


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n0000"])
def test_an_image_that_cannot_be_read(content: bytes, tmp_path: Path) -> None:
    folder = images(tmp_path / "photos", (16, 16))
    (folder / "bad.png").write_bytes(content)
    done = call("train", "--data", folder, *TINY[:-4], "-o", tmp_path / "out")
    assert done.failed_with(1, "bad.png is not a readable image")


def test_an_image_that_was_cut_short(tmp_path: Path) -> None:
    folder = images(tmp_path / "photos", (16, 16), (16, 16))
    file = folder / "1.png"
    file.write_bytes(file.read_bytes()[:-400])
    assert call("train", "--data", folder, *TINY[:-4], "-o", tmp_path / "out").failed_with(1, "1.png is not a readable image")


@pytest.mark.parametrize("kind", ["missing", "empty", "file", "without images"])
def test_a_folder_without_images(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    if kind == "file":
        folder.write_text("no folder")
    elif kind != "missing":
        folder.mkdir()
    if kind == "without images":
        (folder / "notes.txt").write_text("no image")
    assert call("train", "--data", folder, *TINY, "-o", tmp_path / "out").failed_with(2, "photos")


# What cannot be meant: exit code 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("train", "--size", "30", "-o", "OUT"), ["image_size 30 cannot be halved 2 times"]),
        (("train", "--size", "0", "-o", "OUT"), ["--size 0"]),
        (("train", "--preset", "huge", "-o", "OUT"), ["unknown preset 'huge'", "tiny16"]),
        (("train", "--precision", "fp8", "-o", "OUT"), ["precision"]),
        (("train", "--learning-rate", "nan", "-o", "OUT"), ["learning_rate"]),
        (("train", *TINY, "-o", "CHECKPOINT"), ["is a file"]),
        (("train", *TINY, "-o", "BUNDLE"), ["is no training run"]),
        (("train", "--preset", "church-sd", "-o", "OUT", *TINY), ["channels"]),
        (("distill", "--teacher", "CHECKPOINT", "--alpha", "1", "-o", "OUT"), ["alpha"]),
        (
            ("sample", "CHECKPOINT", "--solver", "euler", "-o", "OUT"),
            ["unknown solver 'euler'", "ddim, ddpm, dpmpp, dpmpp-3m, fastdpm-step, fastdpm-var, unipc, unipc-3"],
        ),
        (("sample", "CHECKPOINT", "--steps", "0", "-o", "OUT"), ["0 steps", "--steps 20"]),
        (("sample", "BUNDLE", "--steps", "0", "-o", "OUT"), ["0 steps"]),
        (("sample", "CHECKPOINT", "--spacing", "wide", "-o", "OUT"), ["unknown spacing 'wide'", "trailing"]),
        (("sample", "CHECKPOINT", "--solver", "ddim", "--eta", "2", "-o", "OUT"), ["eta 2.0 is not in [0, 1]"]),
        (("sample", "CHECKPOINT", "--runtime", "onnxruntime", "-o", "OUT"), ["a checkpoint runs in torch"]),
        (("sample", "EMPTY.edgesd", "-o", "OUT"), ["is not a bundle"]),
        (("sample", "CHECKPOINT", "-o", "CHECKPOINT"), ["exists", "--overwrite"]),
        (("export", "CHECKPOINT", "--target", "onnx", "--steps", "0", "-o", "OUT.edgesd"), ["0 steps"]),
        (
            ("export", "CHECKPOINT", "--target", "tflite", "-o", "OUT.edgesd"),
            ["unknown target 'tflite'", "coreml, executorch, onnx, or all"],
        ),
        (("export", "CHECKPOINT", "--target", "onnx", "--solver", "euler", "-o", "OUT.edgesd"), ["unknown solver 'euler'"]),
        (("export", "CHECKPOINT", "--target", "onnx", "-o", "OUT"), ["a bundle's name ends in .edgesd"]),
        (("export", "CHECKPOINT", "--target", "onnx", "-o", "BUNDLE"), ["exists", "--overwrite"]),
        (("export", "CHECKPOINT", "--target", "onnx", "--overwrite", "-o", "EMPTY.edgesd"), ["is no bundle"]),
        (("parity", "EMPTY"), ["is not a bundle"]),
        (
            ("parity", "BUNDLE", "--runtime", "gpu"),
            ["unknown runtime 'gpu'", "executorch, executorch-runner", "onnxruntime, torch"],
        ),
        (("bench", "BUNDLE", "--runtime", "gpu"), ["unknown runtime 'gpu'"]),
        (("bench", "BUNDLE", "--device", "phone"), ["unknown device 'phone'", "host"]),
        (("bench", "BUNDLE", "--device", "host:x"), ["device host takes no address"]),
        (("bench", "BUNDLE", "--device", "ssh"), ["device ssh needs an address", "ssh:"]),
        (("bench", "BUNDLE", "--processors", "0;1"), ["--processors is numbers with commas between"]),
        (("parity", "BUNDLE", "--device", "phone"), ["unknown device 'phone'", "adb:"]),
        (("compare", "BUNDLE", "OUT.json"), ["a bundle and a saved result cannot be compared"]),
        (("compare", "BUNDLE", "EMPTY"), ["is not a bundle"]),
        (("compare", "BUNDLE", "BUNDLE", *["--runtime", "torch"] * 3), ["--runtime is given once, or twice"]),
        (("run", "OUT.yaml"), ["cannot read", "demo"]),
    ],
)
def test_what_cannot_be_meant_is_exit_code_2(
    arguments: tuple[str, ...], said: list[str], checkpoint: Path, bundle: Path, tmp_path: Path
) -> None:
    for name in ("empty", "empty.edgesd"):
        (tmp_path / name).mkdir()
    places = {
        "CHECKPOINT": checkpoint, "BUNDLE": bundle, "OUT": tmp_path / "out", "OUT.edgesd": tmp_path / "out.edgesd",
        "OUT.yaml": tmp_path / "out.yaml", "OUT.json": tmp_path / "out.json", "EMPTY": tmp_path / "empty",
        "EMPTY.edgesd": tmp_path / "empty.edgesd",
    }  # fmt: skip
    assert call(*(places.get(argument, argument) for argument in arguments)).failed_with(2, *said)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "empty.edgesd"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("train", "--stpes", "3", "-o", "out"), ("paint",), ("list", "colours"), ("train", "--steps", "0", "-o", "out"),
        ("train", "--steps", "many", "-o", "out"), ("train",), ("export", "x.safetensors"), ("bench",),
    ],
)  # fmt: skip
def test_what_cannot_be_parsed_is_exit_code_2(
    arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The parser's own errors keep its form."""
    monkeypatch.chdir(tmp_path)
    done = call(*arguments)
    assert (done.code, done.out) == (2, "")
    assert "Error: " in done.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments",
    [
        ("train", *TINY, "--seed", 2**64, "-o", "OUT"),
        ("train", *TINY, "--min-radius", "inf", "-o", "OUT"),
        ("train", *TINY, "--learning-rate", "inf", "-o", "OUT"),
        ("sample", "CHECKPOINT", "-n", 1, "--steps", 1, "--seed", 2**64, "-o", "OUT"),
        ("export", "CHECKPOINT", "--target", "onnx", "--steps", 1, "--seed", 2**64, "-o", "OUT.edgesd"),
    ],
)
def test_a_number_beyond_all_measure_is_exit_code_2(arguments: tuple[Any, ...], checkpoint: Path, tmp_path: Path) -> None:
    """Whether the parser finds it or we do."""
    places = {"CHECKPOINT": checkpoint, "OUT": tmp_path / "out", "OUT.edgesd": tmp_path / "out.edgesd"}
    done = call(*(places.get(argument, argument) for argument in arguments))
    assert done.code == 2, done
    assert not list(tmp_path.iterdir())


# What does not work: exit code 1


@pytest.mark.parametrize("verb", ["sample", "export", "distill"])
def test_a_checkpoint_that_was_cut_short(verb: str, checkpoint: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(checkpoint.read_bytes()[:-1000])
    arguments = {
        "sample": (cut, "-o", tmp_path / "x.png"),
        "export": (cut, "--target", "onnx", "-o", tmp_path / "x.edgesd"),
        "distill": ("--teacher", cut, *TINY, "-o", tmp_path / "x"),
    }[verb]
    assert call(verb, *arguments).failed_with(1, "cut.safetensors", "safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["cut.safetensors"]


@pytest.mark.parametrize(
    "arguments", [("sample", "MISSING", "-o", "x.png"), ("export", "MISSING", "--target", "onnx"), ("report", "MISSING")]
)
def test_what_is_missing_is_named(arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    missing = tmp_path / "missing"
    assert call(*(missing if argument == "MISSING" else argument for argument in arguments)).failed_with(1, "missing")


@pytest.mark.parametrize("verb", ["sample", "export", "distill"])
def test_a_folder_that_holds_no_model(verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder can be a model that diffusers wrote; this one is not."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    arguments = {
        "sample": ("empty", "-o", "x.png"),
        "export": ("empty", "--target", "onnx"),
        "distill": ("--teacher", "empty", *TINY, "-o", "x"),
    }[verb]
    assert call(verb, *arguments).failed_with(1, "cannot read empty/config.json", "diffusers")
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


@pytest.mark.parametrize("verb", ["parity", "bench", "sample"])
def test_a_bundle_with_a_changed_byte(verb: str, bundle: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(bundle, tmp_path / "copied.edgesd"))
    data = bytearray((copied / "denoiser.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (copied / "denoiser.onnx").write_bytes(data)
    output = ("-o", tmp_path / "x.png") if verb == "sample" else ()
    assert call(verb, copied, *output).failed_with(1, "denoiser.onnx has changed since it was exported")


def test_a_bundle_that_was_not_exported_for_the_runtime(checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "bare.edgesd"
    export_bundle(load_checkpoint(checkpoint), path, ExportRequest((), steps=2))
    for verb in ("parity", "bench"):
        assert call(verb, path, "--runtime", "onnxruntime").failed_with(
            1, "holds no denoiser for onnx, only for torch", "edge-sd export --target onnx"
        )


def test_other_settings_than_those_of_the_run(work: Path) -> None:
    done = call("train", *TINY, "--lr", "0.5", "--preset", "tiny16", "-o", work / "teacher")
    assert done.failed_with(1, "train.learning_rate was 0.001, now 0.5", "--overwrite")


def test_a_training_that_ends_out_of_bounds_leaves_no_checkpoint(tmp_path: Path) -> None:
    """The last step's loss was finite; the weights that it left are not."""
    done = call("train", *TINY, "--steps", 1, "--lr", 1e39, "-o", tmp_path / "out")
    assert done.failed_with(1)
    assert not (tmp_path / "out" / "checkpoint.safetensors").exists()


def test_a_full_disk_in_training(small_disk: Path) -> None:
    done = call("train", *TINY, "--save-every", 1, "-o", small_disk / "out")
    assert done.failed_with(1, "no space left on the disk", "free some space")
    assert not list(small_disk.rglob("*.part"))
    assert not list(small_disk.rglob("checkpoint.safetensors"))


def test_an_interrupted_training_says_that_it_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["train", "--size", "16", "--count", "8", "--batch-size", "4", "--steps", "100000", "--save-every", "2"]
    command = [sys.executable, "-m", "edge_sd", *arguments, "-o", str(out)]
    # A shell's background jobs ignore interrupts, and children inherit that.
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:  # fmt: skip
        deadline = time.monotonic() + 120
        while not (out / "state.safetensors").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode > 0
    assert "interrupted; the same command goes on" in err
    assert "Traceback" not in err


# Parity: exit code 3


def test_a_gate_out_of_reach_is_exit_code_3(bundle: Path, tmp_path: Path) -> None:
    done = call("parity", bundle, "--runtime", "onnxruntime", "--gate", 300, "-o", tmp_path / "parity")
    assert done.failed_with(3, "onnxruntime: INCONCLUSIVE: step", "gate 300.0 dB, noise floor")
    assert "forced (free) dB" in " ".join(done.out.split())
    assert read_model(ParityReport, tmp_path / "parity" / "parity.json").results[0].outcome == "inconclusive"


def test_a_wrong_program_is_exit_code_3_and_the_others_are_judged(bundle: Path, tmp_path: Path) -> None:
    """The golden trajectories are of the checkpoint, the ONNX program of another: its bytes are as the manifest says."""
    path = Path(shutil.copytree(bundle, tmp_path / "wrong.edgesd"))
    model = onnx.load(path / "denoiser.onnx")
    weights = next(value for value in model.graph.initializer if len(value.dims) == 4)
    changed = numpy_helper.to_array(weights).copy()
    changed[0] = 0
    weights.CopyFrom(numpy_helper.from_array(changed, weights.name))
    onnx.save(model, path / "denoiser.onnx")
    reseal(path)
    done = call("parity", path, "--runtime", "onnxruntime", "--runtime", "torch")
    assert done.failed_with(3, "onnxruntime: FAILED:")
    assert "torch: passed" in done.out


# A broken installation: exit code 5


def broken(name: str, folder: Path) -> str:
    """A search path on which a package fails to import."""
    (folder / f"{name}.py").write_text(f"raise ImportError('{name}: undefined symbol')\n")
    return str(folder)


@pytest.mark.parametrize("package", ["accelerate", "torch"])
def test_doctor_names_what_is_broken(package: str, tmp_path: Path) -> None:
    done = call_outside(tmp_path, "doctor", "--thorough", PYTHONPATH=broken(package, tmp_path))
    assert done.failed_with(5, f"{package} is broken", "does not import", f'pip install "{package}')
    assert re.search(rf"{package} .*broken", done.out)


def test_a_verb_that_needs_what_is_broken_points_to_the_doctor(checkpoint: Path, tmp_path: Path) -> None:
    done = call_outside(tmp_path, "sample", checkpoint, "-o", tmp_path / "x.png", PYTHONPATH=broken("torch", tmp_path))
    assert done.failed_with(5, "torch", "edge-sd doctor")


def test_the_bundle_of_these_tests_is_whole(bundle: Path) -> None:
    """No test above may have changed what the others use."""
    assert open_bundle(bundle).manifest.name == "student"
