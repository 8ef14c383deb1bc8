"""`edge-sd compare`: which of two is faster, and how sure that is."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edge_sd.cli import _options as option

if TYPE_CHECKING:
    from edge_sd.devices._compare import Comparison


def compare(
    a: Annotated[Path, typer.Argument(help="Bundle NAME.edgesd, or a bench result NAME.json.")],
    b: Annotated[Path, typer.Argument(help="Another, or the same one for another runtime.")],
    device: Annotated[str, typer.Option("--device", help="Where bundles are timed; edge-sd list devices.")] = "host",
    runtime: Annotated[
        list[str] | None, typer.Option("--runtime", help="Of both; given twice, of A and of B. The device's choice if left out.")
    ] = None,
    threads: option.Threads = None,
    pairs: Annotated[int, typer.Option("--pairs", help="Pairs of interleaved blocks; more narrow the interval.", min=4)] = 10,
    iterations: Annotated[int, typer.Option("--iterations", help="Timed calls of a block.", min=3)] = 100,
    warmup: Annotated[int, typer.Option("--warmup", help="Calls before the timed ones at the least.", min=1)] = 10,
    most_seconds: Annotated[
        float, typer.Option("--most-seconds", help="After which a block's timed calls end, however few.", min=0.001)
    ] = 20.0,
    patience: option.Patience = 120.0,
    anyway: Annotated[bool, typer.Option("--anyway", help="Compare results of devices or states that differ.")] = False,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the comparison as JSON.")] = None,
    overwrite: option.Overwrite = False,
    form: option.Form = "text",
) -> None:
    """Time two bundles in turn, A B B A, on one device, and say which is faster, with the interval of the ratio.

    Each block is a fresh process. Where the interval holds 1, the verdict is "cannot tell". Saved results of `bench` are compared
    too, if they were measured alike.

    Example: edge-sd compare student.edgesd student-w8.edgesd --device host --runtime onnxruntime
    """
    from edge_sd.cli._console import print_table
    from edge_sd.errors import UsageError
    from edge_sd.files import write_model

    if output is not None and output.exists() and not overwrite:
        raise UsageError(f"{output} exists", "give --overwrite to replace it, or another -o")
    saved = [path.suffix == ".json" for path in (a, b)]
    if any(saved) and not all(saved):
        raise UsageError("a bundle and a saved result cannot be compared", "give two bundles, or two results")
    if all(saved):
        found = _of_results(a, b, anyway)
    else:
        settings = {
            "threads": threads or 1, "iterations": iterations, "least_warmup": warmup, "most_seconds": most_seconds,
            "patience": patience,
        }  # fmt: skip
        found = _of_bundles(a, b, device, runtime or [], pairs, settings)
    if output is not None:
        write_model(output, found)
    if form == "json":
        print(found.model_dump_json(indent=2))
        return
    rows = [
        (name, side.bundle, side.runtime, len(side.blocks_ms), min(side.blocks_ms), _middle(side.blocks_ms), max(side.blocks_ms))
        for name, side in (("A", found.a), ("B", found.b))
    ]
    columns = ("", "bundle", "runtime", "blocks", "fastest ms", "median ms", "slowest ms")
    marked = "" if found.times == "real" else f" ({found.times}: says nothing of a real one)"
    lines = [*found.notes, found.verdict + marked]
    title = f"{found.device.title}: {found.device.processor}, {found.threads} threads, a call of the denoiser"
    print_table(title, columns, rows, "\n".join(lines))


def _of_results(a: Path, b: Path, anyway: bool) -> "Comparison":
    from edge_sd.devices import BenchResult
    from edge_sd.devices._compare import compare_results
    from edge_sd.files import read_model

    return compare_results(read_model(BenchResult, a), read_model(BenchResult, b), anyway=anyway)


def _of_bundles(a: Path, b: Path, place: str, names: list[str], pairs: int, settings: dict[str, float]) -> "Comparison":
    from edge_sd.bundle import open_bundle
    from edge_sd.cli._console import progress
    from edge_sd.devices import Job, find_device
    from edge_sd.devices._bench import target_of
    from edge_sd.devices._compare import compare as interleave
    from edge_sd.errors import UsageError
    from edge_sd.validation import validated

    if len(names) > 2:
        raise UsageError("--runtime is given once, or twice for A and for B", "two runtimes at most")
    bundles = [open_bundle(a), open_bundle(b)]
    if not names:
        device, address = find_device(place)
        with device.open(address) as connection:
            shared = [name for name in connection.runtimes(bundles[0]) if name in connection.runtimes(bundles[1])]
        if not shared:
            raise UsageError(f"{place} has no runtime for both bundles", "give --runtime twice, or export both for one target")
        names = shared[:1]
    pair = (names * 2)[:2]
    for bundle, name in zip(bundles, pair, strict=True):
        bundle.program(target_of(name))
    jobs = [validated(Job, {**settings, "runtime": name}, "compare") for name in pair]
    with progress("compare") as update:
        return interleave(place, (bundles[0], jobs[0]), (bundles[1], jobs[1]), pairs=pairs, observe=update)


def _middle(values: tuple[float, ...]) -> float:
    import statistics

    return statistics.median(values)
