"""`edge-sd search`: what it writes and prints, how it goes on, and what it refuses."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edge_sd.checkpoint import Checkpoint
from edge_sd.data import dead_leaves
from edge_sd.diffusion import load_plan
from edge_sd.diffusion.unified import SolverSchedule
from edge_sd.files import read_model
from edge_sd.models.unet import SpectralUNet
from edge_sd.search.compare import Comparison
from edge_sd.search.record import SearchRecord
from verbs import Outcome, call

TRIALS = 112  # 108 known solvers and spacings, and a few
SMALL = ("-n", 3, "--fresh", 4, "--fine", 3, "--evaluations", TRIALS, "--processes", 1)
FEATURES = """
def pooled(images):
    return images.unfold(2, 4, 4).unfold(3, 4, 4).std((4, 5)).flatten(1)[:, ::4]
"""


def search(*arguments: object) -> Outcome:
    """`edge-sd search …` in this process."""
    return call("search", *arguments)


@pytest.fixture(scope="module")
def work(tiny_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model.safetensors, photos/ of 10 images, a module with features, and a search in plans/."""
    work = tmp_path_factory.mktemp("search")
    tiny_checkpoint.save(work / "model.safetensors")
    (work / "photos").mkdir()
    for index in range(10):
        Image.fromarray(dead_leaves(7, index, 16, 1.0)).save(work / "photos" / f"{index:02d}.png")
    (work / "pooled_features.py").write_text(FEATURES)
    done = search(work / "model.safetensors", "--steps", 4, "-o", work / "plans", *SMALL)
    assert done.code == 0, done
    (work / "printed.txt").write_text(done.out)
    return work


@pytest.fixture(autouse=True)
def _here(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(work)


def test_help_has_an_example() -> None:
    done = search("--help")
    assert done.code == 0
    assert re.search(r"^\s*Example:\s+edge-sd\s+search\b", done.out, re.MULTILINE)


def test_a_search_leaves_a_plan_a_schedule_a_record_and_a_picture(work: Path) -> None:
    folder = work / "plans" / "steps-4"
    record = read_model(SearchRecord, folder / "search.json")
    assert (record.evaluations, record.settings.steps, record.settings.objective) == (TRIALS, 4, "trajectory")
    plan = load_plan(folder / "plan.safetensors")
    assert (len(plan), plan.header.feature_width) == (4, 0)
    schedule = read_model(SolverSchedule, folder / "schedule.json")
    assert [one.timestep for one in schedule.decisions] == plan.timestep.tolist()
    with Image.open(folder / "front.png") as image:
        assert image.width > 1000
    printed = (work / "printed.txt").read_text()
    for said in ("ddim", "unipc-3", "chosen", "the search fitted its own noise by", "lower is better", "4 samples of seed 1"):
        assert said in printed
    drawn = call("sample", "model.safetensors", "--plan", folder / "plan.safetensors", "-n", 1, "-o", work / "drawn.png")
    assert drawn.code == 0, drawn
    before = (folder / "schedule.json").read_bytes()
    done = search("model.safetensors", "--steps", 4, "-o", "plans", *SMALL, "--format", "json")
    assert json.loads(done.out)["evaluations"] == TRIALS
    assert (folder / "schedule.json").read_bytes() == before


def test_killed_and_interrupted_it_goes_on(work: Path, tmp_path: Path) -> None:
    code = "import sys; from edge_sd.cli.main import main; main()"
    arguments = ["search", "model.safetensors", "--steps", 4, "-o", tmp_path, *SMALL]
    trials, kept = tmp_path / "steps-4" / "trials.jsonl", 0
    for how in (signal.SIGKILL, signal.SIGINT):
        running = subprocess.Popen(
            [sys.executable, "-c", code, *map(str, arguments)], cwd=work, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            start_new_session=True,
        )  # fmt: skip
        _wait(lambda kept=kept: trials.is_file() and trials.read_bytes().count(b"\n") > kept + 5)
        children = _children(running.pid)
        assert children
        os.kill(running.pid, how)
        _, err = running.communicate(timeout=60)
        _wait(lambda children=children: not any(_alive(child) for child in children))  # nobody is left behind
        kept = trials.read_bytes().count(b"\n")
        assert kept < TRIALS + 1
    assert running.returncode == 1
    assert err.decode().splitlines()[-1] == "interrupted; the same command goes on where it can"
    assert "Traceback" not in err.decode()
    done = search("model.safetensors", "--steps", 4, "-o", tmp_path, *SMALL)
    assert done.code == 0, done
    for name in ("schedule.json", "plan.safetensors"):
        assert (tmp_path / "steps-4" / name).read_bytes() == (work / "plans/steps-4" / name).read_bytes()


def _wait(until: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not until():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _children(pid: int) -> list[int]:
    import psutil

    return [child.pid for child in psutil.Process(pid).children(recursive=True)]


def _alive(pid: int) -> bool:
    import psutil

    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_kid_is_measured_on_pictures(work: Path, tmp_path: Path) -> None:
    given = ("--data", "photos", "--features", "pooled_features:pooled", "-n", 4, "--fresh", 5, "--evaluations", TRIALS)
    done = search("model.safetensors", "--steps", 2, "-o", tmp_path, *given, "--processes", 1)
    assert done.code == 0, done
    assert "the data holds 10 images; all of them are compared with" in done.err
    record = read_model(SearchRecord, tmp_path / "steps-2" / "search.json")
    assert record.settings.objective == "kid"
    assert record.settings.details["features"] == "pooled"
    assert record.settings.details["real"] == 10
    assert np.isfinite([one.value for one in record.finalists]).all()


def test_a_class_is_drawn_where_the_model_knows_any(
    make_model: Callable[..., SpectralUNet], tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    header = tiny_checkpoint.header
    Checkpoint.of(make_model(num_classes=3), header.noise_schedule, "v", header.provenance).save(tmp_path / "classes.safetensors")
    small = (*SMALL[:-4], "--evaluations", 1, "--processes", 1)
    done = search(tmp_path / "classes.safetensors", "--steps", 1, "-o", tmp_path / "all", *small, "--format", "json")
    assert json.loads(done.out)["settings"]["labels"] == "3 classes in turn"
    refused = search(tmp_path / "classes.safetensors", "--steps", 1, "-o", tmp_path / "one", *small, "--label", 3)
    assert refused.failed_with(2, "one of 3 classes, not 3")


def test_a_report_compares_all_solvers_with_what_was_found(work: Path) -> None:
    done = search("model.safetensors", "--report", "--steps", 4, "-o", "plans", *SMALL)
    assert done.code == 0, done
    result = read_model(Comparison, work / "plans" / "compare.json")
    assert {(row.steps, row.solver) for row in result.rows} >= {(4, "ddim"), (4, "unipc-2"), (4, "S3"), (4, "dpmpp-3m")}
    assert "searched" in done.out
    with Image.open(work / "plans" / "compare.png") as image:
        assert image.width > 500


OTHERS = ("--steps", 4, "-n", 3, "--fresh", 4, "--evaluations", TRIALS, "--processes", 1)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--fine", 3, "--steps", 1001), "1001 steps: a plan needs at least 1 and at most the schedule's 1000"),
        (("--fine", 3, "--steps", 0), "0 steps: a plan needs at least 1"),
        (("--objective", "fid"), "unknown objective 'fid'"),
        (("--objective", "kid"), "needs real images and features"),
        (("--objective", "kid", "--data", "photos"), "needs real images and features"),
        (("--data", "photos"), "the objective trajectory takes no real images"),
        (("--data", "photos", "--features", "a:b", "--fine", 3), "has no fine-grained trajectory"),
        (("--data", "photos", "--features", "nowhere:b"), "there is no module 'nowhere'"),
        (("--fine", 3, "--label", 1), "this model knows no classes"),
        (("--fine", 3, "--seed", 1), "seed is 0 there and 1 here"),
        (("--fine", 3, "-n", 4), "samples is 3 there and 4 here"),
        (("--fine", 4), "fine is 3 there and 4 here"),
    ],
)
def test_what_cannot_be_is_refused(given: tuple[object, ...], said: str) -> None:
    assert search("model.safetensors", "-o", "plans", *OTHERS, *given).failed_with(2, said)


def test_overwrite_begins_again(work: Path, tmp_path: Path) -> None:
    shutil.copytree(work / "plans", tmp_path / "plans")
    done = search("model.safetensors", "--steps", 4, "-o", tmp_path / "plans", *SMALL, "--seed", 5, "--overwrite")
    assert done.code == 0, done
    assert read_model(SearchRecord, tmp_path / "plans" / "steps-4" / "search.json").settings.seed == 5


def test_a_missing_checkpoint_and_a_quantized_one_are_refused(work: Path, tmp_path: Path) -> None:
    assert search(tmp_path / "nothing.safetensors", "-o", tmp_path).failed_with(1, "does not exist")
    done = call(
        "quantize", "model.safetensors", "--bits", 8, "--steps", 2, "--trajectories", 2, "--iterations", 0, "--groups", 1,
        "--target", "none", "-o", tmp_path / "w8",
    )  # fmt: skip
    assert done.code == 0, done
    assert search(tmp_path / "w8" / "model.safetensors", "-o", tmp_path).failed_with(2, "is quantized")
