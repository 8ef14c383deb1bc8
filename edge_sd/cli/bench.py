"""`edge-sd bench`: how long a call takes, on which devices, in which runtimes, and whether what it draws is right."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edge_sd.cli import _options as option

if TYPE_CHECKING:
    from edge_sd.devices import BenchResult

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
    form: option.Form = "text",
) -> None:
    """Time a bundle on inputs of its golden trajectories, and prove it there, in a process of its own.

    Devices work side by side; one that breaks does not stop the others. Emulated times are marked: they say nothing of a device.

    Example: edge-sd bench student.edgesd --device host --device adb:SERIAL --runtime all -o results
    """
    given = {name: value for name, value in locals().items() if name != "form"}
    from edge_sd.api import bench as measure
    from edge_sd.cli._console import TERMINAL, say
    from edge_sd.errors import ParityError

    done = measure(**{**given, "processors": option.numbers_of(processors, "--processors")}, observer=TERMINAL)
    for failure in done.failures:
        say(f"{failure.task.title}: {failure.error.message}")
    if form == "json":
        print("[" + ",\n".join(result.model_dump_json(indent=2) for result in done.results) + "]")
    elif done.results:
        print_results(done.results)
    if done.failures:
        raise done.failures[0].error
    wrong = [(result.device.title, result.parity) for result in done.results if result.parity and not result.parity.passed]
    if wrong:
        raise ParityError(
            "; ".join(f"{title}: {proof.verdict}" for title, proof in wrong),
            f"edge-sd parity {bundle} --device {wrong[0][0]} shows every step",
        )


def print_results(results: "Sequence[BenchResult]") -> None:
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
