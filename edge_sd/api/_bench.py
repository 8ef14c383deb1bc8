"""How long a call takes, on which devices, in which runtimes, and whether what it draws is right."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edge_sd.api._parity import ALL, measured_floor
from edge_sd.api.observer import SILENT, Observer

if TYPE_CHECKING:
    from edge_sd.bundle import Bundle
    from edge_sd.devices import BenchResult, Job
    from edge_sd.devices._pool import Failure, Task
    from edge_sd.runtimes.floor import Floor, Precision


@dataclass(frozen=True)
class Benchmark:
    """What `bench` measured.

    Attributes:
        results: of each device and runtime, in the order asked for.
        failures: those that came to nothing, and why.
    """

    results: "tuple[BenchResult, ...]"
    failures: "tuple[Failure, ...]"

    @property
    def passed(self) -> bool:
        """Whether all were measured, and none that was proved draws something else."""
        return not self.failures and all(result.parity is None or result.parity.passed for result in self.results)


def bench(
    bundle: "str | Path | Bundle",
    *,
    device: Sequence[str] | None = None,
    runtime: Sequence[str] | None = None,
    threads: int | None = None,
    warmup: int = 10,
    iterations: int = 100,
    minutes: float = 0.0,
    prove: bool = True,
    memory_limit: int | None = None,
    processors: Sequence[int] = (),
    most_seconds: float = 120.0,
    patience: float = 120.0,
    output: str | Path | None = None,
    overwrite: bool = False,
    observer: Observer = SILENT,
) -> Benchmark:
    """Time a bundle on inputs of its golden trajectories, and prove it there, in a process of its own; as `edge-sd bench`.

    Args:
        device: NAME or NAME:ADDRESS of each; this machine if left out.
        runtime: names, or ["all"]; what each device prefers, if left out.
        minutes: then it calls without a pause for so long.
        memory_limit: MiB that the job may use, on the host.
        processors: numbers of those to pin the job to, on the host.
        output: JSON of one result; of several, a folder that takes each as it comes.

    Raises:
        UsageError: an unknown runtime or device, a setting that cannot be meant, or `output` exists.
        InstallationError: this machine lacks what a device takes.
    """
    from edge_sd.bundle import Bundle, open_bundle
    from edge_sd.devices import Job
    from edge_sd.devices._pool import run_tasks
    from edge_sd.errors import UsageError
    from edge_sd.files import write_model
    from edge_sd.validation import validated

    path = None if output is None else Path(output)
    if path is not None and path.exists() and not overwrite:
        raise UsageError(f"{path} exists", "give --overwrite to replace it, or another -o")
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(Path(bundle))
    job = validated(
        Job,
        {
            "runtime": "",
            "threads": threads or 1,
            "prove": prove,
            "least_warmup": warmup,
            "most_warmup": max(200, 20 * warmup),
            "iterations": iterations,
            "minutes": minutes,
            "most_seconds": most_seconds,
            "patience": patience,
            "memory_mib": memory_limit,
            "processors": tuple(processors),
        },
        "bench",
    )
    tasks = _tasks(opened, device or ["host"], runtime or [], job, own_threads=threads is None)
    floors = measured_floors(opened, tasks, observer)
    done, shares = 0, [Rising() for _ in tasks]
    with observer.progress("bench") as update:

        def on_result(result: "BenchResult") -> None:
            nonlocal done
            if path is not None:
                write_model(path if len(tasks) == 1 else path / f"{_file_name(result, done)}.json", result)
            done += 1

        def observe(task: "Task", part: int, parts: int, note: str) -> None:
            share = shares[tasks.index(task)].of(part / max(parts, 1))
            update(100 * done + int(99 * share), 100 * len(tasks), f"{task.title} {note}")

        results, failures = run_tasks(tasks, opened, floors=floors, on_result=on_result, observe=observe)
    return Benchmark(tuple(results), tuple(failures))


class Rising:
    """A fraction that starts over with each part of a job (copying, proving, timing), as one that only rises.

    How many parts there will be is not known: each takes half of what those before it left.
    """

    def __init__(self) -> None:
        self._before, self._last = 0.0, 0.0

    def of(self, fraction: float) -> float:
        """A fraction of the part that goes on, 0 … 1 → of the whole, 0 … 1."""
        if fraction < self._last:
            self._before += (1 - self._before) / 2
        self._last = fraction
        return self._before + fraction * (1 - self._before) / 2


def _tasks(bundle: "Bundle", places: Sequence[str], names: Sequence[str], job: "Job", *, own_threads: bool) -> "list[Task]":
    from edge_sd.devices import find_device
    from edge_sd.devices._bench import target_of
    from edge_sd.devices._pool import Task

    tasks = []
    for place in dict.fromkeys(places):
        device, address = find_device(place)  # before anything is measured for one that there is not
        wanted = list(dict.fromkeys(names)) or [""]
        if ALL in wanted:
            with device.open(address) as connection:
                wanted = list(connection.runtimes(bundle))
        for name in wanted:
            if name:
                bundle.program(target_of(name))
            tasks.append(Task(place, job.model_copy(update={"runtime": name}), own_threads))
    return tasks


def measured_floors(bundle: "Bundle", tasks: "Sequence[Task]", observer: Observer) -> "dict[Precision, Floor]":
    """The noise floors that proofs are judged by, measured once each, before anything is timed."""
    from edge_sd.devices._bench import target_of

    proofs = [task.job.runtime for task in tasks if task.job.prove]
    targets = {target_of(name) for name in proofs if name}
    if "" in proofs:
        targets |= {program.target for program in bundle.manifest.programs} & {"onnx", "executorch"}
    floors: dict[Precision, Floor] = {}
    for target in sorted(targets):
        measured_floor(bundle, target, floors, observer)
    return floors


def _file_name(result: "BenchResult", number: int) -> str:
    from edge_sd.files import plain_name

    return f"{number:02d}-{plain_name(result.device.title)}-{result.job.runtime}"
