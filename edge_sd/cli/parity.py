"""`edge-sd parity`: does an exported program draw what the reference draws?"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edge_sd.cli import _options as option

if TYPE_CHECKING:
    from edge_sd.runtimes.parity import ParityResult


def parity(
    bundle: Annotated[Path, typer.Argument(help="Bundle NAME.edgesd.")],
    runtime: Annotated[
        list[str] | None, typer.Option("--runtime", help="edge-sd list runtimes; onnxruntime if left out.")
    ] = None,
    gate: Annotated[float, typer.Option("--gate", help="Lowest decibels allowed at any teacher-forced step.")] = 80.0,
    threads: option.Threads = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Also write the result as JSON; one runtime only.")
    ] = None,
    as_json: option.AsJson = False,
) -> None:
    """Compare a runtime with the golden trajectories at every step; exit code 3 where it falls below the gate.

    Example: edge-sd parity student.edgesd --runtime onnxruntime --gate 80
    """
    from edge_sd.bundle import open_bundle
    from edge_sd.cli._console import progress
    from edge_sd.errors import ParityError, UsageError
    from edge_sd.files import write_model
    from edge_sd.runtimes.parity import check_parity

    names = runtime or ["onnxruntime"]
    if output is not None and len(names) > 1:
        raise UsageError("--output takes the result of one runtime", "one --runtime, or --json")
    opened = open_bundle(bundle)
    results = []
    for name in names:
        with progress(f"parity of {name}") as update:
            results.append(
                check_parity(opened, name, gate_db=gate, threads=threads, observe=lambda done, total: update(done, total, ""))
            )
    if output is not None:
        write_model(output, results[0])
    if as_json:
        print("[" + ",\n".join(result.model_dump_json(indent=2) for result in results) + "]")
    else:
        _print_tables(results)
    failed = [result for result in results if not result.passed]
    if failed:
        raise ParityError("; ".join(result.verdict for result in failed), "look at the steps above; a lower --gate only hides it")


def _print_tables(results: "list[ParityResult]") -> None:
    from edge_sd.cli._console import print_table

    for result in results:
        rows = [(step.row, step.timestep, step.teacher_forced_db, step.free_running_db) for step in result.steps]
        columns = ("step", "timestep", "teacher-forced dB", "free-running dB")
        note = (
            f"final image: SNR {result.final_snr_db:.1f} dB, PSNR {result.final_psnr_db:.1f} dB "
            f"(worst of {result.trajectories}; 200 is equal bit for bit)\n"
            f"SNR = {result.definitions['snr_db']}; PSNR = {result.definitions['psnr_db']}\n{result.verdict}"
        )
        print_table(f"{result.runtime} ({result.runtime_version}) against {result.reference}", columns, rows, note)
