"""`edge-sd bench`: how long a call takes, on which device, in which runtime."""

from pathlib import Path
from typing import Annotated

import typer

from edge_sd.cli import _options as option


def bench(
    bundle: Annotated[Path, typer.Argument(help="Bundle NAME.edgesd.")],
    runtime: Annotated[
        list[str] | None, typer.Option("--runtime", help="edge-sd list runtimes; onnxruntime if left out.")
    ] = None,
    device: Annotated[str, typer.Option("--device", help="edge-sd list devices.")] = "host",
    threads: option.Threads = None,
    warmup: Annotated[int, typer.Option("--warmup", help="Calls before the timed ones.", min=1)] = 10,
    iterations: Annotated[int, typer.Option("--iterations", help="Timed calls.", min=1)] = 100,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Also write the result as JSON; one runtime only.")
    ] = None,
    as_json: option.AsJson = False,
) -> None:
    """Time a bundle's denoiser on inputs of its golden trajectories, in a process of its own.

    Example: edge-sd bench student.edgesd --runtime onnxruntime --threads 2 --iterations 200
    """
    import os

    from edge_sd.bundle import open_bundle
    from edge_sd.cli._console import print_table, say
    from edge_sd.devices import Job, find_device
    from edge_sd.errors import UsageError
    from edge_sd.files import write_model
    from edge_sd.runtimes import find_runtime

    names = runtime or ["onnxruntime"]
    if output is not None and len(names) > 1:
        raise UsageError("--output takes the result of one runtime", "one --runtime, or --json")
    opened = open_bundle(bundle)
    for name in names:
        opened.program(find_runtime(name).target)
    found = find_device(device)
    results = []
    for name in names:
        say(f"timing {name} on {device}: {warmup} + {iterations} calls")
        job = Job(bundle=str(bundle), runtime=name, threads=threads or os.cpu_count() or 1, warmup=warmup, iterations=iterations)
        results.append(found.bench(job))
    if output is not None:
        write_model(output, results[0])
    if as_json:
        print("[" + ",\n".join(result.model_dump_json(indent=2) for result in results) + "]")
        return
    rows = []
    for result in results:
        latency, mebi = result.latency, 2**20
        peak = None if result.peak_memory_bytes is None else result.peak_memory_bytes // mebi
        whole = latency.p50_ms * result.steps
        figures = (result.load_ms, result.first_ms, latency.p50_ms, latency.p90_ms, latency.p99_ms, whole)
        forecast = None if result.forecast_memory_bytes is None else result.forecast_memory_bytes // mebi
        used = None if peak is None else peak - result.base_memory_bytes // mebi
        rows.append((result.job.runtime, *figures, peak, used, forecast))
    columns = (
        "runtime",
        "load ms",
        "first ms",
        "p50 ms",
        "p90 ms",
        "p99 ms",
        "image ms",
        "peak MiB",
        "program MiB",
        "forecast MiB",
    )
    title = f"{bundle.name} on {device}: {results[0].device.processor}, {results[0].job.threads} threads, batch 1"
    print_table(
        title,
        columns,
        rows,
        f"{warmup} warm-up calls left out; image = p50 × {results[0].steps} steps; program = peak − before loading",
    )
