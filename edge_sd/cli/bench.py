"""`edge-sd bench`: how long a call takes, on which devices, in which runtimes, and whether what it draws is right."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edge_sd.cli import _options as option

if TYPE_CHECKING:
    from edge_sd.bundle import Bundle
    from edge_sd.devices import BenchResult, Job
    from edge_sd.devices._pool import Task
    from edge_sd.runtimes.floor import Floor, Precision

_ALL = "all"
_MEBI = 2**20


def bench(
    bundle: Annotated[Path, typer.Argument(help="Bundle NAME.edgesd.")],
    device: option.Devices = None,
    runtime: Annotated[
        list[str] | None,
        typer.Option("--runtime", help="edge-sd list runtimes; all: each that the device has; left out: what it prefers."),
    ] = None,
    threads: option.Threads = None,
    warmup: Annotated[
        int, typer.Option("--warmup", help="Calls before the timed ones at the least, and the window that has to settle.", min=1)
    ] = 10,
    iterations: Annotated[int, typer.Option("--iterations", help="Timed calls.", min=1)] = 100,
    minutes: Annotated[
        float, typer.Option("--minutes", help="Then call without a pause for so long: times, temperatures and clocks.", min=0)
    ] = 0.0,
    prove: Annotated[bool, typer.Option("--prove/--no-prove", help="Follow the golden trajectories there too.")] = True,
    memory_limit: Annotated[
        int | None, typer.Option("--memory-limit", help="MiB that the job may use, on the host (control groups).", min=1)
    ] = None,
    processors: Annotated[
        str | None, typer.Option("--processors", help="Numbers of the processors to pin the job to, on the host: 0,1.")
    ] = None,
    most_seconds: Annotated[
        float, typer.Option("--most-seconds", help="After which the timed calls end, however few.", min=0.001)
    ] = 120.0,
    patience: option.Patience = 120.0,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="JSON of one result; of several, a folder that takes each as it comes.")
    ] = None,
    overwrite: option.Overwrite = False,
    as_json: option.AsJson = False,
) -> None:
    """Time a bundle on inputs of its golden trajectories, and prove it there, in a process of its own.

    Devices work side by side; one that breaks does not stop the others. Emulated times are marked: they say nothing of a device.

    Example: edge-sd bench student.edgesd --device host --device adb:SERIAL --runtime all -o results
    """
    from edge_sd.bundle import open_bundle
    from edge_sd.cli._options import numbers_of
    from edge_sd.devices import Job
    from edge_sd.errors import UsageError
    from edge_sd.validation import validated

    if output is not None and output.exists() and not overwrite:
        raise UsageError(f"{output} exists", "give --overwrite to replace it, or another -o")
    opened = open_bundle(bundle)
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
            "processors": numbers_of(processors, "--processors"),
        },
        "bench",
    )
    tasks = _tasks(opened, device or ["host"], runtime or [], job, own_threads=threads is None)
    results = _run(opened, tasks, output, overwrite, as_json)
    if any(result.parity is not None and not result.parity.passed for result in results):
        from edge_sd.errors import ParityError

        wrong = [result for result in results if result.parity is not None and not result.parity.passed]
        raise ParityError(
            "; ".join(f"{result.device.title}: {result.parity.verdict}" for result in wrong if result.parity is not None),
            f"edge-sd parity {bundle} --device {wrong[0].device.title} shows every step",
        )


def _tasks(bundle: "Bundle", places: list[str], names: list[str], job: "Job", *, own_threads: bool) -> "list[Task]":
    from edge_sd.devices import find_device
    from edge_sd.devices._bench import target_of
    from edge_sd.devices._pool import Task

    tasks = []
    for place in dict.fromkeys(places):
        wanted = list(dict.fromkeys(names)) or [""]
        if _ALL in wanted:
            device, address = find_device(place)
            with device.open(address) as connection:
                wanted = list(connection.runtimes(bundle))
        for name in wanted:
            if name:
                bundle.program(target_of(name))
            tasks.append(Task(place, job.model_copy(update={"runtime": name}), own_threads))
    return tasks


def _run(bundle: "Bundle", tasks: "list[Task]", output: Path | None, overwrite: bool, as_json: bool) -> "list[BenchResult]":
    """Do all tasks, keep each result as it comes, print the tables, and raise the first failure."""
    from edge_sd.cli._console import progress, say
    from edge_sd.devices._pool import run_tasks
    from edge_sd.files import write_model

    written: dict[Path, BenchResult] = {}
    with progress("bench") as update:
        done = 0

        def on_result(result: "BenchResult") -> None:
            nonlocal done
            done += 1
            if output is not None:
                path = output if len(tasks) == 1 else output / f"{_file_name(result, len(written))}.json"
                write_model(path, result)
                written[path] = result

        def observe(task: "Task", part: int, parts: int, note: str) -> None:
            update(100 * done + int(100 * part / max(parts, 1) * 0.99), 100 * len(tasks), f"{task.title} {note}")

        results, failures = run_tasks(tasks, bundle, floors=floors_of(bundle, tasks), on_result=on_result, observe=observe)
    for failure in failures:
        say(f"{failure.task.title}: {failure.error.message}")
    if as_json:
        print("[" + ",\n".join(result.model_dump_json(indent=2) for result in results) + "]")
    elif results:
        print_results(results)
    if failures:
        raise failures[0].error
    return results


def floors_of(bundle: "Bundle", tasks: "list[Task]") -> "dict[Precision, Floor]":
    """The noise floors that proofs are judged by, measured once each, before anything is timed."""
    from edge_sd.cli._console import progress
    from edge_sd.devices._bench import target_of
    from edge_sd.runtimes.floor import Floor, Precision, noise_floor
    from edge_sd.runtimes.parity import precision_of

    proofs = [task.job.runtime for task in tasks if task.job.prove]
    targets = {target_of(name) for name in proofs if name}
    if "" in proofs:
        targets |= {program.target for program in bundle.manifest.programs} & {"onnx", "executorch"}
    floors: dict[Precision, Floor] = {}
    for precision in sorted({precision_of(bundle, target) for target in targets}):
        with progress(f"noise floor of {precision}") as update:
            floors[precision] = noise_floor(bundle, precision, lambda done, total: update(done, total, ""))
    return floors


def _file_name(result: "BenchResult", number: int) -> str:
    """A plain name, whatever the serial holds."""
    plain = "".join(letter if letter.isalnum() or letter in "-." else "-" for letter in result.device.title)
    return f"{number:02d}-{plain[:60]}-{result.job.runtime}"


def print_results(results: "list[BenchResult]") -> None:
    """Times, what they were proved to be times of, memory, and the sustained curve where there is one."""
    from edge_sd.cli._console import print_table, say

    rows: list[tuple[object, ...]] = []
    memory: list[tuple[object, ...]] = []
    for result in results:
        name = (result.device.title, result.job.runtime, result.times)
        proved = result.parity
        parity = "–" if proved is None else f"{proved.outcome}, {proved.worst_step.forced.value_db:.1f} dB"
        if result.measurement is None or result.latency is None:
            rows.append((*name, parity, *[None] * 8))
            continue
        measured, latency = result.measurement, result.latency
        interval = f"{latency.low_ms:.2f}–{latency.high_ms:.2f}"
        image = _median(measured.image_ms)
        times = (latency.p50_ms, interval, latency.p90_ms, latency.p99_ms, _median(measured.decoder_ms), image)
        rows.append((*name, parity, measured.load_ms, measured.first_ms, *times))
        peak, base = measured.peak_memory_bytes, measured.base_memory_bytes
        share = result.ceiling_share
        memory.append(
            (
                *name,
                None if base is None else base // _MEBI,
                None if peak is None else peak // _MEBI,
                None if peak is None or base is None else (peak - base) // _MEBI,
                None if result.forecast_memory_bytes is None else result.forecast_memory_bytes // _MEBI,
                None if share is None else f"{share:.0%}",
                measured.ceiling or "–",
            )
        )
    subject = ("device", "runtime", "times")
    figures = ("parity, worst step", "load ms", "first ms", "p50 ms", "95 %", "p90 ms", "p99 ms", "decoder ms", "image ms")
    first = results[0]
    where = "; ".join(dict.fromkeys(f"{each.device.title} is {each.device.model}, {each.device.system}" for each in results))
    threads = "/".join(dict.fromkeys(str(each.job.threads) for each in results))
    note = f"{threads} threads, batch 1; a call is of the denoiser, an image {first.steps} and the decoder; {where}"
    print_table(f"{first.bundle}: latency", (*subject, *figures), rows, note)
    if memory:
        amounts = ("before MiB", "peak MiB", "program MiB", "forecast MiB", "of ceiling", "ceiling")
        note = "program = peak − before loading; a call's multiply-adds as a share of the device's own measured float32 ceiling"
        print_table("Memory and ceiling", (*subject, *amounts), memory, note)
    for result in results:
        if result.sustained is not None:
            say(f"{result.device.title} {result.job.runtime}: {result.sustained}")
        for warning in result.warnings:
            say(f"{result.device.title} {result.job.runtime}: {warning}")


def _median(values: tuple[float, ...]) -> float | None:
    import statistics

    return statistics.median(values) if values else None
