"""A run that is cut anywhere ends as the one that was not; and what a run refuses, writes and leaves behind."""

import json
import math
import multiprocessing
import random
import runpy
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from edge_sd.checkpoint import Checkpoint, Provenance, load_checkpoint
from edge_sd.data import ImageData
from edge_sd.diffusion import SCHEDULES
from edge_sd.errors import EdgeSDError, UsageError
from edge_sd.files import read_tensors
from edge_sd.models import ModelConfig
from edge_sd.models.unet import SpectralUNet
from edge_sd.training import DistillConfig, Progress, TrainConfig, distill, fit
from edge_sd.training.learner import DenoiseLearner
from edge_sd.training.loop import CHECKPOINT, METRICS, STATE, learning_rate, train
from edge_sd.training.samples import PixelSamples
from edge_sd.training.state import StateHeader, read_metrics

MakeModel = Callable[..., SpectralUNet]
SCHEDULE = SCHEDULES["cosine"]
TRAIN = TrainConfig(steps=8, batch_size=4, warmup=2, precision="fp32", save_every=3, sample_every=0)


class Runs:
    """Training and distillation of the tiny model with few words."""

    def __init__(self, model: ModelConfig, data: ImageData, teacher: Checkpoint) -> None:
        self.model, self.data, self.teacher = model, data, teacher

    def __call__(
        self,
        out: Path,
        verb: str = "fit",
        *,
        until: int | None = None,
        overwrite: bool = False,
        data: ImageData | None = None,
        teacher: Checkpoint | None = None,
        model: dict[str, Any] | None = None,
        distillation: dict[str, Any] | None = None,
        observe: Callable[[Progress], None] = lambda progress: None,
        **train: Any,
    ) -> Checkpoint:
        """Run, with changes, to the end or `until` a step is done."""

        def watch(progress: Progress) -> None:
            observe(progress)
            if progress.step == until:
                raise KeyboardInterrupt

        config = TrainConfig.model_validate({**TRAIN.model_dump(), **train})
        shape = ModelConfig.model_validate({**self.model.model_dump(), **(model or {})})
        data = data or self.data
        if verb == "fit":
            return fit(shape, SCHEDULE, "v", data, config, out, overwrite=overwrite, observe=watch)
        distillation = DistillConfig(**(distillation or {}))
        return distill(shape, teacher or self.teacher, data, config, distillation, out, overwrite=overwrite, observe=watch)

    def cut(self, out: Path, verb: str = "fit", *, until: int = 5, **changes: Any) -> None:
        with pytest.raises(KeyboardInterrupt):
            self(out, verb, until=until, **changes)


@pytest.fixture
def run(tiny_config: ModelConfig, tiny_data: ImageData, tiny_checkpoint: Checkpoint) -> Runs:
    return Runs(tiny_config, tiny_data, tiny_checkpoint)


def logged(out: Path) -> list[dict[str, float]]:
    """metrics.jsonl without what depends on the clock."""
    clocked = {"images_per_s", "wait_share"}
    return [{name: value for name, value in record.items() if name not in clocked} for record in read_metrics(out / METRICS)]


def assert_same_run(one: Path, other: Path) -> None:
    """To the byte: weights, configuration and provenance; and each step logged once, with the same losses."""
    assert (one / CHECKPOINT).read_bytes() == (other / CHECKPOINT).read_bytes()
    assert logged(one) == logged(other)
    assert [record["step"] for record in logged(other)] == list(range(1, len(logged(one)) + 1))
    assert not (other / STATE).exists()


# Cut and gone on with

# What the process that is killed runs; all that takes long to import is there already where it is forked off.
KILLED = """
import torch
torch.set_num_threads(1)
from pathlib import Path
from edge_sd.checkpoint import load_checkpoint
from edge_sd.data import DataConfig, open_data
from edge_sd.diffusion import SCHEDULES
from edge_sd.models import ModelConfig
from edge_sd.training import DistillConfig, TrainConfig, distill, fit

model, train = ModelConfig.model_validate_json(model), TrainConfig.model_validate_json(train)
data = open_data(DataConfig(count=32), 16)
observe = lambda progress: steps.send(progress.step)
if verb == "fit":
    fit(model, SCHEDULES["cosine"], "v", data, train, Path(out), observe=observe)
else:
    distill(model, load_checkpoint(Path(teacher)), data, train, DistillConfig(), Path(out), observe=observe)
"""


@pytest.mark.parametrize("verb", ["fit", "distill"])
def test_a_run_killed_again_and_again_ends_as_the_one_that_was_not(verb: str, run: Runs, tmp_path: Path) -> None:
    changes = {"steps": 24, "save_every": 2}
    dropout = {"dropout": 0.2}
    run(tmp_path / "whole", verb, model=dropout, **changes)

    script, teacher = tmp_path / "killed.py", tmp_path / "teacher.safetensors"
    script.write_text(KILLED)
    run.teacher.save(teacher)
    texts = {
        "model": run.model.model_copy(update=dropout).model_dump_json(),
        "train": TRAIN.model_copy(update=changes).model_dump_json(),
        "verb": verb,
        "teacher": str(teacher),
        "out": str(tmp_path / "cut"),
    }
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["edge_sd.training", "torch._dynamo"])  # the second is what the first step imports
    for stop in (3, 9, 16):
        steps, sender = processes.Pipe(duplex=False)
        process = processes.Process(target=runpy.run_path, args=(str(script), {**texts, "steps": sender}))
        process.start()
        sender.close()
        while steps.recv() < stop:
            pass
        time.sleep(random.uniform(0, 0.05))  # anywhere in a step: also while the state or the log is written
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert not (tmp_path / "cut" / CHECKPOINT).exists()

    steps_left = []
    run(tmp_path / "cut", verb, model=dropout, observe=lambda progress: steps_left.append(progress.step), **changes)
    assert steps_left[0] > 1  # it did go on
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.parametrize(
    ("verb", "changes"),
    [
        ("fit", {}),
        ("fit", {"model": {"dropout": 0.3}}),
        ("fit", {"precision": "bf16"}),
        ("fit", {"decay": "linear", "ema_decay": 0.5, "flip": False, "seed": 9, "batch_size": 5}),
        ("distill", {"model": {"dropout": 0.3}, "distillation": {"alpha": -2}}),
    ],
)
def test_a_run_that_was_cut_goes_on_exactly(verb: str, changes: dict[str, Any], run: Runs, tmp_path: Path) -> None:
    run(tmp_path / "whole", verb, **changes)
    run.cut(tmp_path / "cut", verb, until=4, **changes)
    run.cut(tmp_path / "cut", verb, until=7, **changes)
    run(tmp_path / "cut", verb, **changes)
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_what_is_saved_and_shown_changes_nothing(run: Runs, tmp_path: Path) -> None:
    run(tmp_path / "whole")
    run.cut(tmp_path / "cut", save_every=2)
    run(tmp_path / "cut", save_every=100, sample_every=6)
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.parametrize("torn", ["", "{", '{"step": 6, "deno', '{"step": 6, "denoise": 0.1'])
def test_a_log_whose_last_line_was_torn_is_mended(torn: str, run: Runs, tmp_path: Path) -> None:
    run(tmp_path / "whole")
    run.cut(tmp_path / "cut")
    with (tmp_path / "cut" / METRICS).open("a") as log:
        log.write(torn)
    run(tmp_path / "cut")
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_a_log_torn_in_its_middle_is_named(run: Runs, tmp_path: Path) -> None:
    run.cut(tmp_path)
    lines = (tmp_path / METRICS).read_text().splitlines()
    (tmp_path / METRICS).write_text("\n".join([lines[0], lines[1][:10], *lines[2:]]))
    with pytest.raises(EdgeSDError, match=r"metrics\.jsonl, line 2, is not JSON") as caught:
        run(tmp_path)
    assert "--overwrite" in caught.value.hint


@pytest.mark.parametrize("damage", ["cut short", "one bit", "text"])
def test_a_damaged_state_is_refused_and_named(damage: str, run: Runs, tmp_path: Path) -> None:
    run.cut(tmp_path)
    data = bytearray((tmp_path / STATE).read_bytes())
    if damage == "cut short":
        del data[-100:]
    elif damage == "one bit":
        data[-100] ^= 1
    else:
        data[:] = b"no state at all"
    (tmp_path / STATE).write_bytes(data)
    with pytest.raises(EdgeSDError, match=r"state\.safetensors"):
        run(tmp_path)
    run(tmp_path, overwrite=True)


def test_a_run_that_filled_the_disk_goes_on_when_there_is_space(run: Runs, tiny_disk: Path, tmp_path: Path) -> None:
    run(tmp_path / "whole")
    with pytest.raises(EdgeSDError, match="no space left on the disk"):
        run(tiny_disk / "run")
    assert not list(tiny_disk.rglob("*.part"))
    subprocess.run(["mount", "-o", "remount,size=8m", tiny_disk], check=True)
    run(tiny_disk / "run")
    assert_same_run(tmp_path / "whole", tiny_disk / "run")


# Other settings


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"learning_rate": 2e-3}, "train.learning_rate was 0.001, now 0.002"),
        ({"steps": 9}, "train.steps was 8, now 9"),
        ({"seed": 1}, "train.seed was 0, now 1"),
        ({"batch_size": 8}, "train.batch_size was 4, now 8"),
        ({"model": {"blocks": 2}}, "model.blocks was 1, now 2"),
        ({"model": {"multipliers": (1, 3)}}, r"model.multipliers was \[1, 2\], now \[1, 3\]"),
        ({"verb": "distill"}, "distill.*was None"),
    ],
)
@pytest.mark.parametrize("finished", [False, True])
def test_a_run_of_other_settings_is_refused_and_the_setting_named(
    changes: dict[str, Any], named: str, finished: bool, run: Runs, tmp_path: Path
) -> None:
    run(tmp_path) if finished else run.cut(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(EdgeSDError, match=f"holds a run with other settings: {named}") as caught:
        run(tmp_path, **changes)
    assert "--overwrite" in caught.value.hint
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_other_images_and_another_teacher_are_other_settings(run: Runs, make_model: MakeModel, tmp_path: Path) -> None:
    run.cut(tmp_path, "distill")
    fewer = ImageData(run.data.pixels[:16], "f" * 64, "half of them")
    with pytest.raises(EdgeSDError, match=r"data_digest was .*, now f{64}"):
        run(tmp_path, "distill", data=fewer)
    other = Checkpoint.of(make_model(5), SCHEDULE, "v", Provenance(made_by="train"))
    with pytest.raises(EdgeSDError, match=f"parents.teacher was {run.teacher.header.digest}, now {other.header.digest}"):
        run(tmp_path, "distill", teacher=other)
    with pytest.raises(EdgeSDError, match=r"distill.alpha was -1.0, now -2.0"):
        run(tmp_path, "distill", distillation={"alpha": -2})


# Finished, and afresh


def test_a_finished_run_is_returned_without_work(run: Runs, tmp_path: Path) -> None:
    first = run(tmp_path)
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.iterdir()}
    again = run(tmp_path, observe=lambda progress: pytest.fail("it took a step"))
    assert again.header == first.header
    assert {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.iterdir()} == before
    assert set(before) == {CHECKPOINT, METRICS}


@pytest.mark.parametrize("finished", [False, True])
def test_overwrite_starts_afresh_and_leaves_nothing_of_the_run_before(finished: bool, run: Runs, tmp_path: Path) -> None:
    old = {"steps": 10, "seed": 3, "sample_every": 5}
    run(tmp_path / "again", **old) if finished else run.cut(tmp_path / "again", until=6, **old)
    seen = []
    run(tmp_path / "again", overwrite=True, observe=lambda progress: seen.append(progress.step))
    assert seen == list(range(1, 9))
    run(tmp_path / "whole")
    assert_same_run(tmp_path / "whole", tmp_path / "again")
    assert sorted(path.name for path in (tmp_path / "again").rglob("*.png")) == []


def test_overwrite_of_nothing_is_a_run(run: Runs, tmp_path: Path) -> None:
    run(tmp_path / "new" / "folder", overwrite=True)
    assert (tmp_path / "new" / "folder" / CHECKPOINT).exists()


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_that_holds_something_else_is_left_alone(overwrite: bool, run: Runs, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("ten years of work")
    with pytest.raises(UsageError, match=r"is no training run: it holds thesis\.tex"):
        run(tmp_path, overwrite=overwrite)
    with pytest.raises(UsageError, match=r"thesis\.tex is a file"):
        run(tmp_path / "thesis.tex", overwrite=overwrite)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


# What cannot be learnt


@pytest.mark.parametrize(("save_every", "last_good"), [(100, "none yet"), (1, r"state\.safetensors \(step \d\)")])
def test_a_loss_that_is_not_finite_stops_the_run(save_every: int, last_good: str, run: Runs, tmp_path: Path) -> None:
    wild = {"learning_rate": 1e30, "clip": 1e30, "warmup": 0, "decay": "constant"}
    complaint = rf"step \d: (denoise|gradient norm) is (nan|inf); the last good state is .*{last_good}"
    with pytest.raises(EdgeSDError, match=complaint) as caught:
        run(tmp_path, save_every=save_every, **wild)
    assert "--learning-rate" in caught.value.hint
    assert not (tmp_path / CHECKPOINT).exists()
    if save_every == 1:  # the state is whole, and so the same command says the same
        header, _ = read_tensors(StateHeader, tmp_path / STATE)
        assert f"(step {header.step})" in caught.value.message
        with pytest.raises(EdgeSDError, match=caught.value.message.split(";")[0]):
            run(tmp_path, save_every=save_every, **wild)
    run(tmp_path, overwrite=True)


@pytest.mark.parametrize("seed", [2**32, 2**63 - 1])
def test_a_large_seed_is_a_seed(seed: int, run: Runs, tmp_path: Path) -> None:
    """The clock in nanoseconds, for instance."""
    assert run(tmp_path, seed=seed, steps=1).header.provenance.seed == seed


def test_models_that_images_alone_cannot_train_are_refused(run: Runs, tmp_path: Path) -> None:
    for verb in ("fit", "distill"):
        with pytest.raises(UsageError, match="no classes"):
            run(tmp_path, verb, model={"num_classes": 5})
        with pytest.raises(UsageError, match="no classes"):
            run(tmp_path, verb, model={"context_dim": 5})
        with pytest.raises(UsageError, match=r"takes \(4, "):
            run(tmp_path, verb, model={"in_channels": 4})
        with pytest.raises(UsageError):  # one channel would be compared with each of the three
            run(tmp_path, verb, model={"out_channels": 1})


def test_images_of_another_size_than_the_models_are_refused(run: Runs, tmp_path: Path) -> None:
    """The checkpoint would say 8 px and have learnt from 16."""
    with pytest.raises(UsageError):
        run(tmp_path, model={"image_size": 8})


# What is learnt


@pytest.mark.parametrize("verb", ["fit", "distill"])
def test_the_checkpoint_says_where_it_came_from(verb: str, run: Runs, tmp_path: Path) -> None:
    made = run(tmp_path, verb)
    written = load_checkpoint(tmp_path / CHECKPOINT)
    assert written.header == made.header
    provenance = written.header.provenance
    assert provenance.made_by == ("train" if verb == "fit" else "distill")
    assert (provenance.steps, provenance.images_seen, provenance.seed) == (8, 32, 0)
    assert (provenance.data, provenance.data_digest) == (run.data.about, run.data.digest)
    assert provenance.parents == ({} if verb == "fit" else {"teacher": run.teacher.header.digest})
    assert provenance.settings["train"]["learning_rate"] == 1e-3
    assert "torch" in provenance.versions
    assert (written.header.noise_schedule, written.header.prediction) == (SCHEDULE, "v")
    assert written.build().config == run.model


def test_the_checkpoint_is_the_average_of_the_weights(run: Runs, make_model: MakeModel, tmp_path: Path) -> None:
    """w̄ ← d·w̄ + (1−d)·w, d = min(decay, (1 + step) / (10 + step)), from the first weights on."""
    config = TRAIN.model_copy(update={"ema_decay": 0.3, "learning_rate": 1e-2})
    learner = DenoiseLearner(make_model(), SCHEDULE, "v")
    average = {name: value.double() for name, value in learner.model.state_dict().items()}

    def follow(progress: Progress) -> None:
        step = progress.step - 1
        decay = min(0.3, (1 + step) / (10 + step))
        for name, value in learner.model.state_dict().items():
            average[name] = decay * average[name] + (1 - decay) * value

    made = train(learner, PixelSamples(run.data), config, tmp_path, Provenance(made_by="train"), observe=follow)
    assert made.weights.keys() == average.keys()
    for name, value in made.weights.items():
        np.testing.assert_allclose(value, average[name].numpy(), rtol=1e-4, atol=1e-6)


def test_the_loss_falls(run: Runs, tmp_path: Path) -> None:
    """From 1, the mean square of the noise: a new model predicts none."""
    config = TRAIN.model_copy(update={"steps": 50, "learning_rate": 5e-3, "ema_decay": 0.0})
    fit(run.model, SCHEDULES["linear"], "epsilon", run.data, config, tmp_path)
    losses = [record["loss"] for record in read_metrics(tmp_path / METRICS)]
    assert losses[0] == pytest.approx(1, abs=0.1)
    assert np.mean(losses[-10:]) < 0.6


def test_what_an_observer_and_the_log_are_told(run: Runs, tmp_path: Path) -> None:
    told: list[Progress] = []
    run(tmp_path, "distill", observe=told.append)
    records = [json.loads(line) for line in (tmp_path / METRICS).read_text().splitlines()]
    assert [(progress.step, progress.steps) for progress in told] == [(step, 8) for step in range(1, 9)]
    for step, (progress, record) in enumerate(zip(told, records, strict=True)):
        assert set(progress.terms) == {"denoise", "spatial", "frequency"}
        assert progress.images_per_s > 0
        assert {name: record[name] for name in progress.terms} == progress.terms
        assert record["step"] == step + 1
        assert record["loss"] == pytest.approx(sum(progress.terms.values()))
        assert record["learning_rate"] == learning_rate(TRAIN, step)
        assert record["gradient_norm"] > 0


def test_samples_are_drawn_on_the_way_and_at_the_end(run: Runs, tmp_path: Path) -> None:
    run(tmp_path, sample_every=6)
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == ["step_000006.png", "step_000008.png"]
    with Image.open(tmp_path / "samples" / "step_000008.png") as sheet:
        assert sheet.size == (4 * 16 + 3, 4 * 16 + 3)
        assert len(np.unique(np.asarray(sheet))) > 10


def test_the_gradient_is_clipped(run: Runs, make_model: MakeModel, tmp_path: Path) -> None:
    """AdamW divides a constant factor out again; a clip small enough that its ε takes over stops all learning."""
    learner = DenoiseLearner(make_model(), SCHEDULE, "v")
    before = {name: value.clone() for name, value in learner.model.state_dict().items()}
    config = TRAIN.model_copy(update={"clip": 1e-20, "weight_decay": 0.0})
    train(learner, PixelSamples(run.data), config, tmp_path, Provenance(made_by="train"))
    for name, value in learner.model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=1e-8)


# The learning rate


@pytest.mark.parametrize("decay", ["cosine", "linear", "constant"])
@pytest.mark.parametrize("warmup", [0, 10])
def test_the_rate_warms_up_and_falls(decay: Any, warmup: int) -> None:
    config = TrainConfig(steps=100, learning_rate=0.5, warmup=warmup, decay=decay)
    rates = [learning_rate(config, step) for step in range(101)]
    fall = {"cosine": lambda s: math.cos(math.pi * s / 2) ** 2, "linear": lambda s: 1 - s, "constant": lambda s: 1.0}[decay]
    for step, rate in enumerate(rates):
        warm = (step + 1) / (warmup + 1) if step < warmup else 1
        assert rate == pytest.approx(0.5 * warm * fall(step / 100), abs=1e-12)
    assert 0 < rates[0] <= 0.5 / (warmup + 1)
    assert all(later <= earlier for earlier, later in zip(rates[warmup:], rates[warmup + 1 :], strict=False))
    assert rates[100] == pytest.approx(0.5 if decay == "constant" else 0, abs=1e-12)


def test_of_two_processes_in_one_folder_the_second_is_refused(run: Runs, tmp_path: Path) -> None:
    def start_another(progress: Progress) -> None:
        for overwrite in (False, True):
            with pytest.raises(EdgeSDError, match=f"another process is training in {tmp_path}"):
                run(tmp_path, overwrite=overwrite)

    whole = run(tmp_path, observe=start_another)
    assert whole.header.provenance.steps == TRAIN.steps
    assert [record["step"] for record in read_metrics(tmp_path / METRICS)] == list(range(1, TRAIN.steps + 1))
