"""Several devices at once, a job each: one that breaks does not stop the others, and results come as they are done."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import nullcontext
from dataclasses import dataclass

from edge_sd.bundle import Bundle
from edge_sd.devices import _process
from edge_sd.devices._bench import Floors, bench_on, preferred
from edge_sd.devices._device import find_device
from edge_sd.devices._job import BenchResult, Job
from edge_sd.errors import DeviceError, EdgeSDError
from edge_sd.runtimes.parity import Gate

_MOST_THREADS = 4


@dataclass(frozen=True)
class Task:
    """A job and where to do it; `runtime` empty: what that device prefers for this bundle.

    Attributes:
        own_threads: one a processor of the device's, at most four: phones have slow processors beside fast ones.
    """

    place: str
    job: Job
    own_threads: bool = False

    @property
    def title(self) -> str:
        """For a line of progress."""
        return f"{self.place} {self.job.runtime}".strip()


@dataclass(frozen=True)
class Failure:
    """A task that came to nothing."""

    task: Task
    error: EdgeSDError


class _StoppedError(Exception):
    """Who asked for it has gone: no further task is begun, and the one at work ends."""


# (task, done, total, note)
ObserveTask = Callable[[Task, int, int, str], None]


def run_tasks(
    tasks: Sequence[Task],
    bundle: Bundle,
    *,
    gate: Gate | None = None,
    floors: Floors | None = None,
    on_result: Callable[[BenchResult], None] = lambda result: None,
    observe: ObserveTask = lambda task, done, total, note: None,
) -> tuple[list[BenchResult], list[Failure]]:
    """Do all tasks: devices side by side, the tasks of one device one after the other.

    Devices that share this machine's processors take turns, so that none spoils another's times.

    Args:
        on_result: called with each result when it is there, from one thread at a time.

    Returns:
        Results and failures, each in the order of the tasks.

    Raises:
        UsageError, InstallationError: a device does not exist, or this machine lacks what it takes; nothing was begun.
    """
    devices = {task.place: find_device(task.place)[0] for task in tasks}
    host, told, stopped = threading.Lock(), threading.Lock(), threading.Event()
    found: dict[int, BenchResult | Failure] = {}

    def seen(task: Task, done: int, total: int, note: str) -> None:
        if stopped.is_set():
            raise _StoppedError
        observe(task, done, total, note)

    def work(place: str) -> None:
        own = [(number, task) for number, task in enumerate(tasks) if task.place == place]
        for number, task in own:
            with host if devices[place].shares_host else nullcontext():
                try:
                    result = _one(task, bundle, gate, floors, seen)
                except _StoppedError:
                    return
                except EdgeSDError as error:
                    if stopped.is_set():  # it was killed
                        return
                    found[number] = Failure(task, error)
                    if isinstance(error, DeviceError):
                        observe(task, 1, 1, f"failed: {error.message}")
                    continue
            with told:
                found[number] = result
                on_result(result)

    with ThreadPoolExecutor(max_workers=len(devices)) as pool:
        futures = [pool.submit(work, place) for place in devices]
        try:
            for future in as_completed(futures):
                future.result()
        except BaseException:
            stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)
            _process.interrupt()  # what is waited for ends, so that every connection is closed before this goes on
            raise
    done = [found[number] for number in sorted(found)]
    return [each for each in done if isinstance(each, BenchResult)], [each for each in done if isinstance(each, Failure)]


def _one(task: Task, bundle: Bundle, gate: Gate | None, floors: Floors | None, observe: ObserveTask) -> BenchResult:
    device, address = find_device(task.place)
    observe(task, 0, 1, "connecting")
    with device.open(address) as connection:
        job = task.job if task.job.runtime else task.job.model_copy(update={"runtime": preferred(connection, bundle, task.place)})
        if task.own_threads:
            job = job.model_copy(update={"threads": min(connection.info().cores, _MOST_THREADS)})
        return bench_on(
            connection, bundle, job, gate=gate, floors=floors, observe=lambda done, total, note: observe(task, done, total, note)
        )
