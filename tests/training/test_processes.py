"""Several processes learn what one learns, whole copies or shards of the weights; killed, they go on as if they had not been."""

import json
import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_sd.checkpoint import load_checkpoint
from edge_sd.files import read_tensors
from edge_sd.models import ModelConfig
from edge_sd.training import TrainConfig
from edge_sd.training.loop import CHECKPOINT, METRICS, STATE
from edge_sd.training.state import StateHeader, read_metrics

TINY = ("--size", "16", "--steps", "3", "--batch-size", "4", "--count", "8", "--sample-every", "3", "--precision", "fp32")
LAUNCHERS = {
    "one": [],
    "two": ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"],
    "shards": [
        *("-m", "accelerate.commands.launch", "--num_processes", "2", "--num_machines", "1", "--main_process_port", "0"),
        *("--mixed_precision", "no", "--dynamo_backend", "no", "--use_fsdp", "--fsdp_version", "2"),
    ],
}


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same command under each launcher, into folders of their names."""
    folder = tmp_path_factory.mktemp("launched")
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    for name, launcher in LAUNCHERS.items():
        command = [sys.executable, *launcher, "-m", "edge_sd", "train", *TINY, "-o", str(folder / name)]
        found = subprocess.run(command, env=environment, cwd=Path.cwd(), capture_output=True, text=True, timeout=300)
        assert found.returncode == 0, found.stderr
    return folder


@pytest.mark.parametrize("name", ["two", "shards"])
def test_two_processes_learn_what_one_learns(name: str, launched: Path) -> None:
    assert_same(launched / "one", launched / name, 3)
    assert {path.name for path in (launched / name).iterdir()} == {CHECKPOINT, METRICS, "samples"}


def test_the_checkpoint_of_shards_is_that_of_whole_copies(launched: Path) -> None:
    whole, shards = (load_checkpoint(launched / name / CHECKPOINT) for name in ("two", "shards"))
    assert whole.header.model_dump(exclude={"digest"}) == shards.header.model_dump(exclude={"digest"})
    assert whole.weights.keys() == shards.weights.keys()
    for name, weights in whole.weights.items():
        np.testing.assert_allclose(shards.weights[name], weights, rtol=0, atol=1e-6, err_msg=name)


def assert_same(one: Path, other: Path, steps: int) -> None:
    logs = [read_metrics(path / METRICS) for path in (one, other)]
    assert [record["step"] for record in logs[1]] == list(range(1, steps + 1))
    for ours, theirs in zip(*logs, strict=True):
        assert ours["denoise"] == pytest.approx(theirs["denoise"], abs=1e-5)
        assert ours["gradient_norm"] == pytest.approx(theirs["gradient_norm"], rel=1e-3)
    ours, theirs = (load_checkpoint(path / CHECKPOINT).weights for path in (one, other))
    for name, weights in ours.items():
        np.testing.assert_allclose(theirs[name], weights, rtol=0, atol=1e-6, err_msg=name)


# Processes that are forked off one in which all is imported, joined as a launcher joins them.

CHILD = """
import os
os.environ.update(environment)
import time
import torch
torch.set_num_threads(1)
from pathlib import Path
from edge_sd.data import DataConfig, open_data
from edge_sd.diffusion import SCHEDULES
from edge_sd.errors import EdgeSDError
from edge_sd.models import ModelConfig
from edge_sd.training import TrainConfig, fit
from edge_sd.training.average import Average
from edge_sd.training.learner import DenoiseLearner

model, train = ModelConfig.model_validate_json(model), TrainConfig.model_validate_json(train)
rank, drawn, follow = int(environment["RANK"]), DenoiseLearner.draw, Average.follow

def draw(self, samples, config, step, share):
    batch = drawn(self, samples, config, step, share)
    return tuple(value * float("nan") if value.is_floating_point() else value for value in batch) if step == broken else batch

def observe(progress):
    steps.send(("step", progress.step))
    if progress.step == hang:  # for whoever is to be killed before the end, however late that comes
        time.sleep(1000)

def watched(self, model):
    follow(self, model)
    steps.send(("sharded", self.sharded))

Average.follow = watched
if rank == 1:
    DenoiseLearner.draw = draw
try:
    fit(model, SCHEDULES["cosine"], "v", open_data(DataConfig(count=32), 16), train, Path(out), observe=observe)
except EdgeSDError as error:
    steps.send(("error", f"{error.message} {error.hint}"))
"""
TRAIN = TrainConfig(steps=8, batch_size=4, warmup=1, precision="fp32", save_every=2, sample_every=0)
Messages = list[tuple[str, Any]]
Launch = Callable[..., list[Messages]]


@pytest.fixture
def launch(tiny_config: ModelConfig, tmp_path: Path) -> Launch:
    """(folder, processes, shards, kill at a step, changes) → what each process said."""
    script = tmp_path / "child.py"
    script.write_text(CHILD)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["edge_sd.training", "torch._dynamo"])

    def start(
        out: Path, rank: int, processes: int, port: int, shards: bool, texts: dict[str, Any]
    ) -> tuple[BaseProcess, Connection]:
        environment = {"CUDA_VISIBLE_DEVICES": "", "RANK": str(rank)}
        if processes > 1:
            environment |= {"LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
            environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        if shards:
            environment |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
        receiver, sender = context.Pipe(duplex=False)
        texts = {**texts, "out": str(out), "environment": environment, "steps": sender}
        process = context.Process(target=runpy.run_path, args=(str(script), texts))
        process.start()
        sender.close()
        return process, receiver

    def launch(
        out: Path,
        processes: int,
        *,
        shards: bool = False,
        kill: int | None = None,
        broken: int | None = None,
        dropout: float = 0.0,
        **changes: Any,
    ) -> list[Messages]:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        texts = {
            "model": tiny_config.model_copy(update={"dropout": dropout}).model_dump_json(),
            "train": TRAIN.model_copy(update=changes).model_dump_json(),
            "broken": broken,
            "hang": None if kill is None else kill + 1,
        }
        running = [start(out, rank, processes, port, shards, texts) for rank in range(processes)]
        said: list[Messages] = [[] for _ in running]
        for messages, (_, receiver) in zip(said, running, strict=True):
            try:
                while kill is None or ("step", kill) not in messages:
                    messages.append(receiver.recv())
            except EOFError:
                pass
            if kill is not None:
                break
        if kill is not None:
            for process, _ in running:
                process.kill()
        for process, _ in running:
            process.join(120)
            assert (process.exitcode == 0) == (kill is None)
        return said

    return launch


@pytest.mark.parametrize("shards", [False, True])
def test_killed_processes_go_on_exactly(shards: bool, launch: Launch, tmp_path: Path) -> None:
    """With dropout and in slices: each process and slice has masks of its own, and gets them back."""
    changes = {"shards": shards, "dropout": 0.2, "accumulate": 2}
    launch(tmp_path / "whole", 2, **changes)
    for stop in (3, 5):
        launch(tmp_path / "cut", 2, kill=stop, **changes)
        assert not (tmp_path / "cut" / CHECKPOINT).exists()
    said, _ = launch(tmp_path / "cut", 2, **changes)
    assert ("sharded", shards) in said
    assert ("step", 8) in said
    assert ("step", 1) not in said
    assert (tmp_path / "cut" / CHECKPOINT).read_bytes() == (tmp_path / "whole" / CHECKPOINT).read_bytes()
    assert not (tmp_path / "cut" / STATE).exists()


def test_a_run_goes_on_with_another_number_of_processes(launch: Launch, tmp_path: Path) -> None:
    """Shards, then two whole copies, then four, then one: without dropout all is the same to rounding."""
    launch(tmp_path / "whole", 1)
    launch(tmp_path / "cut", 2, shards=True, kill=3)
    launch(tmp_path / "cut", 2, kill=5)
    launch(tmp_path / "cut", 4, kill=7)
    header, _ = read_tensors(StateHeader, tmp_path / "cut" / STATE)
    assert json.loads(header.layout.model_dump_json()) == {"processes": 4, "slices": 1, "compiled": False}
    launch(tmp_path / "cut", 1)
    assert_same(tmp_path / "whole", tmp_path / "cut", 8)


def test_with_dropout_another_number_of_processes_is_refused(launch: Launch, tmp_path: Path) -> None:
    launch(tmp_path / "run", 2, dropout=0.2, kill=3)
    ((kind, message),) = launch(tmp_path / "run", 1, dropout=0.2)[0]
    assert kind == "error"
    assert "processes 2, slices 1, not compiled; now processes 1, slices 1, not compiled" in message
    assert "--overwrite" in message


@pytest.mark.parametrize("shards", [False, True])
def test_what_is_wrong_in_one_process_ends_all(shards: bool, launch: Launch, tmp_path: Path) -> None:
    for said in launch(tmp_path / "run", 2, shards=shards, broken=4):
        kind, message = said[-1]
        assert kind == "error"
        assert "step 5: denoise is nan; the last good state is" in message
        assert "(step 4)" in message
