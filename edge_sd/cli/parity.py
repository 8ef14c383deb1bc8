"""`edge-sd parity`: does an exported program draw what the reference draws?"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edge_sd.cli import _options as option

if TYPE_CHECKING:
    from edge_sd.bundle import Bundle
    from edge_sd.runtimes.parity import ParityResult


def parity(
    bundle: Annotated[Path, typer.Argument(help="Bundle NAME.edgesd.")],
    runtime: Annotated[
        list[str] | None,
        typer.Option(
            "--runtime",
            help="edge-sd list runtimes; all: emulated ones too; left out: all that run the bundle here, not emulated.",
        ),
    ] = None,
    device: option.Devices = None,
    gate: Annotated[
        float | None, typer.Option("--gate", help="Lowest decibels at any teacher-forced step, in place of margin and budget.")
    ] = None,
    margin: Annotated[
        float, typer.Option("--margin", help="How far below the noise floor a lossless program may be, in dB.", min=0)
    ] = 20.0,
    budget: Annotated[float, typer.Option("--budget", help="Lowest decibels of a quantized program at any step.")] = 10.0,
    locate: Annotated[
        bool, typer.Option("--locate", help="Of each runtime that is not proved, name the first module that diverges.")
    ] = False,
    threads: option.Threads = None,
    patience: option.Patience = 120.0,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for parity.json, parity.html and the pictures.")
    ] = None,
    overwrite: option.Overwrite = False,
    form: option.Form = "text",
) -> None:
    """Compare runtimes with the golden trajectories, step by step and band by band; exit code 3 where one is not proved.

    The gate is measured: the noise floor is the reference against itself with other threads, kernels, layouts and roundings.

    With --device the job is done there, by what is there: the bundle's goldens travel with it.

    Example: edge-sd parity student.edgesd --runtime onnxruntime --runtime coreml-reference -o parity
    """
    given = {name: value for name, value in locals().items() if name not in ("form", "locate")}
    from edge_sd.api import parity as prove
    from edge_sd.cli._console import TERMINAL
    from edge_sd.errors import ParityError

    proofs = prove(**given, observer=TERMINAL)
    if form == "json":
        print("[" + ",\n".join(result.model_dump_json(indent=2) for result in proofs.results) + "]")
    elif proofs.results:
        _print_tables(proofs.results)
    if proofs.errors:
        raise proofs.errors[0]
    unproved = [result for result in proofs.results if not result.passed]
    if locate:
        _locate(proofs.bundle, unproved)
    if unproved:
        again = f"edge-sd parity {bundle} --runtime {unproved[0].runtime} --device {unproved[0].device}"
        hint = f"{again} -o FOLDER draws where" if locate else f"{again} --locate names the module"
        raise ParityError("; ".join(result.verdict for result in unproved), hint)


def _locate(bundle: "Bundle", unproved: "list[ParityResult]") -> None:
    from edge_sd.cli._console import say
    from edge_sd.devices._bench import target_of
    from edge_sd.runtimes.locate import locate

    if not unproved:
        say("nothing to locate: every runtime draws what the reference draws")
    for result in unproved:
        say(f"looking into {result.title}; where a program is lowered anew for it this takes a minute")
        say(locate(bundle, target_of(result.runtime), result).verdict)


def _print_tables(results: "Sequence[ParityResult]") -> None:
    from edge_sd.cli._console import print_table

    columns = ("step", "timestep", *(f"{result.title} forced (free) dB" for result in results))
    rows = [
        (steps[0].row, steps[0].timestep, *(f"{step.forced.value_db:.1f} ({step.free_running_db:.1f})" for step in steps))
        for steps in zip(*(result.steps for result in results), strict=True)
    ]
    print_table(f"{results[0].bundle} against {results[0].reference}: SNR at each step", columns, rows)
    summary = []
    for result in results:
        step, band = result.worst_step, result.worst_band
        summary.append(
            (
                result.title + (" (emulated)" if result.emulated else ""),
                result.outcome,
                f"{step.forced.value_db:.1f} at step {step.row}",
                f"{step.forced.gate_db:.1f}",
                f"{step.forced.floor_db:.1f}",
                "–" if band is None else f"{band[0].bands[band[1]].value_db:.1f}, {band[1]} at step {band[0].row}",
                f"{result.lowest_free_db:.1f}",
                f"{result.final.psnr_db:.1f}",
                "–" if result.final.ssim is None else f"{result.final.ssim:.4f}",
            )
        )
    first = results[0]
    wanted = "a stated budget" if first.quantized else f"{first.gate.margin_db:g} dB below the noise floor"
    note = (
        f"worst of {first.trajectories} trajectories; 200 dB is equal bit for bit. The gate is {wanted}; the floor is the "
        f"reference against itself with {', '.join(first.perturbations)}.\n"
        + "\n".join(f"{name}: {definition}" for name, definition in first.definitions.items())
        + "\n"
        + "\n".join(result.verdict for result in results)
    )
    names = ("runtime", "outcome", "worst step, dB", "gate", "floor", "worst band, dB", "free-running", "PSNR", "SSIM")
    print_table("Parity", names, summary, note)
