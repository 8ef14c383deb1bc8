"""Scores in processes of their own are the same as here; what goes wrong in one is said here."""

from pathlib import Path

import numpy as np
import psutil
import pytest

from edge_sd.checkpoint import Checkpoint
from edge_sd.diffusion import compile_plan
from edge_sd.errors import EdgeSDError
from edge_sd.search.workers import Here, Opening, Workers


@pytest.fixture
def opening(tiny_checkpoint: Checkpoint, tmp_path: Path) -> Opening:
    path = tmp_path / "model.safetensors"
    tiny_checkpoint.save(path)
    return Opening(path, "trajectory", (("cache", str(tmp_path / "shared")), ("fine", 4)))


def test_scores_are_the_same_in_any_process(opening: Opening, tiny_checkpoint: Checkpoint) -> None:
    process = tiny_checkpoint.header.noise_schedule
    plans = [compile_plan(process, steps, solver="ddim", prediction="v") for steps in (2, 3, 4)]
    seen: list[tuple[int, int]] = []
    with Workers(opening, 2) as workers:
        workers.prepare(1, 40, lambda done, total: seen.append((done, total)))
        apart = dict(workers.scores(plans, seed=1, count=6))
    assert sorted(seen)[-1] == (40, 40)
    assert len(list((opening.model.parent / "shared").iterdir())) == 2
    objective = opening.open()
    here = dict(Here(objective).scores(plans, seed=1, count=6))
    for index in range(3):
        assert apart[index].value == pytest.approx(here[index].value, rel=1e-4)
        assert np.allclose(apart[index].deviations, here[index].deviations, rtol=1e-2, atol=1e-6)


def test_an_error_in_a_worker_comes_here_as_it_is(opening: Opening) -> None:
    opening.model.write_bytes(opening.model.read_bytes()[:-100])
    with Workers(opening, 1) as workers, pytest.raises(EdgeSDError, match="not a whole safetensors file"):
        workers.prepare(0, 2)


def test_an_interrupted_pool_leaves_no_process(opening: Opening, tiny_checkpoint: Checkpoint) -> None:
    plans = [compile_plan(tiny_checkpoint.header.noise_schedule, 50, solver="ddim", prediction="v")] * 20
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    workers = Workers(opening, 2)
    assert next(workers.scores(plans, seed=0, count=4))
    workers.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    left = [process for process in psutil.Process().children(recursive=True) if process.pid not in before]
    assert not [process for process in left if "spawn_main" in " ".join(process.cmdline())]
