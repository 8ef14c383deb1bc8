"""Scores in parallel: processes of one thread each, started once, that open the model once and stay for the whole search."""

import itertools
import multiprocessing
import os
import signal
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from typing_extensions import Self

from edge_sd.diffusion.plan import Plan
from edge_sd.errors import EdgeSDError
from edge_sd.search.objectives import Objective, Score, find_objective
from edge_sd.search.subject import BATCH, open_subject

Observe = Callable[[int, int], None]


@dataclass(frozen=True)
class Opening:
    """What a process needs to be told to make an objective: names, numbers and paths."""

    model: Path
    objective: str
    settings: tuple[tuple[str, str | int | None], ...] = ()
    label: int | None = None

    def open(self) -> Objective:
        """Load everything."""
        return find_objective(self.objective).open(open_subject(self.model, self.label), dict(self.settings))


class Scorer(ABC):
    """Something that scores plans, in whatever order they are done."""

    @abstractmethod
    def scores(self, plans: Sequence[Plan], *, seed: int, count: int) -> Iterator[tuple[int, Score]]:
        """(index of the plan, its score), as they come; see `Objective.score`."""

    @abstractmethod
    def prepare(self, seed: int, count: int, observe: Observe = lambda done, total: None) -> None:
        """Make what the scores by these samples will need; `observe` is called with (samples done, samples in all)."""


@dataclass(frozen=True)
class Here(Scorer):
    """In this process."""

    objective: Objective

    def scores(self, plans: Sequence[Plan], *, seed: int, count: int) -> Iterator[tuple[int, Score]]:
        for index, plan in enumerate(plans):
            yield index, self.objective.score(plan, seed=seed, count=count)

    def prepare(self, seed: int, count: int, observe: Observe = lambda done, total: None) -> None:
        for start in range(0, count, BATCH):
            self.objective.prepare(seed, range(start, min(start + BATCH, count)))
            observe(min(start + BATCH, count), count)


class Workers(Scorer):
    """In processes of their own; a context manager, which ends them.

    Args:
        processes: how many, started afresh (spawned): a script that makes this guards its own start with
            `if __name__ == "__main__"`.

    Raises:
        EdgeSDError: what the objective raises, in whichever process; or a process died.
    """

    def __init__(self, opening: Opening, processes: int) -> None:
        self.opening, self.processes = opening, processes
        context = multiprocessing.get_context("spawn")  # torch does not survive a fork
        self._pool = ProcessPoolExecutor(processes, mp_context=context, initializer=_stay_out_of_the_way)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:  # what they are at is not wanted any more; and a pool that a second signal finds in its end hangs
            for process in [*(self._pool._processes or {}).values()]:
                process.kill()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def scores(self, plans: Sequence[Plan], *, seed: int, count: int) -> Iterator[tuple[int, Score]]:
        yield from self._each([(_score, plan, seed, count) for plan in plans])

    def prepare(self, seed: int, count: int, observe: Observe = lambda done, total: None) -> None:
        blocks = [range(start, min(start + BATCH, count)) for start in range(0, count, BATCH)]
        done = 0
        for index, _ in self._each([(_prepare, seed, block) for block in blocks]):
            done += len(blocks[index])
            observe(done, count)

    def _each(self, jobs: Sequence[tuple[Any, ...]]) -> Iterator[tuple[int, Any]]:
        """(index of the job, what it gave). No more are handed out than there are processes: an end waits for these alone."""
        waiting: dict[Future[Any], int] = {}
        left = iter(enumerate(jobs))
        try:
            for index, (function, *arguments) in itertools.islice(left, self.processes):
                waiting[self._pool.submit(function, self.opening, *arguments)] = index
            while waiting:
                for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                    for index, (function, *arguments) in itertools.islice(left, 1):
                        waiting[self._pool.submit(function, self.opening, *arguments)] = index
                    yield waiting.pop(future), future.result()
        except BrokenProcessPool as error:
            raise EdgeSDError(
                f"one of the {self.processes} processes that draw samples died; out of memory?",
                "give fewer --processes; the same command goes on",
            ) from error


# In a worker

_opened: dict[Opening, Objective] = {}


def _stay_out_of_the_way() -> None:
    """One thread; Ctrl-C is the parent's to answer; and where it is killed, so is this."""
    import torch

    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)


def _objective(opening: Opening) -> Objective:
    """Opened with the first job, so that an error of loading travels as it is."""
    if opening not in _opened:
        _opened[opening] = opening.open()
    return _opened[opening]


def _score(opening: Opening, plan: Plan, seed: int, count: int) -> Score:
    return _objective(opening).score(plan, seed=seed, count=count)


def _prepare(opening: Opening, seed: int, indices: range) -> None:
    _objective(opening).prepare(seed, indices)
