"""`edge-sd export`: a checkpoint and a plan become a bundle."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edge_sd.cli import _options as option
from edge_sd.pretrained import DEFAULT

if TYPE_CHECKING:
    from edge_sd.bundle.manifest import Program
    from edge_sd.export import Check


def export(
    target: Annotated[list[str], typer.Option("--target", help="edge-sd list targets, or all; may be given several times.")],
    checkpoint: Annotated[
        Path, typer.Argument(help="Checkpoint, diffusers folder, or a shipped model: edge-sd list models.")
    ] = Path(DEFAULT),
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="NAME.edgesd; beside the checkpoint if left out, here if it is shipped.")
    ] = None,
    solver: Annotated[
        str | None, typer.Option("--solver", help="edge-sd list solvers; dpmpp, or what it was quantized for, if left out.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", help="Function evaluations of the plan; 20, or what it was quantized for.")
    ] = None,
    spacing: option.Spacing = None,
    plan: option.PlanFile = None,
    decoder: Annotated[
        Path | None, typer.Option("--decoder", help="Decoder of a latent model: a diffusers folder, or decoder.safetensors.")
    ] = None,
    strict_bits: Annotated[
        bool, typer.Option("--strict-bits", help="Of a quantized model: fail if a target stores or computes more bits.")
    ] = False,
    temporal: Annotated[
        bool, typer.Option("--temporal", help="Export the program t → time features too, for a device that makes its own plans.")
    ] = False,
    onnx_opset: Annotated[int, typer.Option("--onnx-opset", help="18 is the newest whose quantized graphs load.")] = 18,
    delegate: Annotated[
        str, typer.Option("--delegate", help="Of ExecuTorch: xnnpack; coreml and vulkan lower here but do not run here.")
    ] = "xnnpack",
    coreml_precision: Annotated[str, typer.Option("--coreml-precision", help="fp16 or fp32.")] = "fp16",
    coreml_os: Annotated[
        str, typer.Option("--coreml-os", help="Oldest system: iOS16, iOS17 or iOS18 (one package with several functions).")
    ] = "iOS17",
    ram_budget: Annotated[
        str | None, typer.Option("--ram-budget", help="Fail if a program needs more by forecast, for instance 512MiB.")
    ] = None,
    max_fallback: Annotated[
        float | None,
        typer.Option("--max-fallback", help="Fail if more than this share of the time is outside the delegate.", min=0, max=1),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything and write nothing.")] = False,
    seed: option.Seed = 0,
    goldens: Annotated[int, typer.Option("--goldens", help="Golden trajectories to keep.", min=1)] = 3,
    overwrite: option.Overwrite = False,
    form: option.Form = "text",
) -> None:
    """Export a checkpoint to a bundle: programs, plan, golden trajectories, manifest and card.

    Example: edge-sd export runs/student/checkpoint.safetensors --target all -o student.edgesd
    """
    given = dict(locals())
    from edge_sd.api._export import Exporting
    from edge_sd.cli._console import TERMINAL, say
    from edge_sd.export import refuse

    work = Exporting.of(given, dry_run=dry_run)
    if dry_run:
        checks = work.check()
        if form == "json":
            print("[" + ",\n".join(check.model_dump_json(indent=2) for check in checks) + "]")
        else:
            _print_checks(checks)
        refuse(checks, work.request.ram_budget)
        return
    bundle = work.write(TERMINAL)
    if form == "json":
        print(bundle.manifest.model_dump_json(indent=2))
    else:
        print_programs(bundle.manifest.programs)
    size = sum(entry.bytes for entry in bundle.manifest.files.values())
    say(f"wrote {work.out} ({len(bundle.manifest.files)} files, {size / 2**20:.1f} MiB)")


def print_programs(programs: "tuple[Program, ...]") -> None:
    """Print what became of each exported program."""
    from edge_sd.cli._console import print_table

    rows = [
        (
            program.target,
            program.name,
            program.file + (f" ({program.entry})" if program.entry else ""),
            ", ".join(f"{key} {value}" for key, value in program.options.items()),
            program.placement.verdict if program.placement else "",
            program.memory and f"{program.memory.weights_bytes / 2**20:.1f} + {program.memory.activations_bytes / 2**20:.1f}",
            f"{program.seconds:.1f}",
        )
        for program in programs
        if program.target != "torch"
    ]
    columns = ("target", "program", "file", "options", "placement", "MiB weights + activations", "seconds")
    print_table("programs", columns, rows)


def _print_checks(checks: "list[Check]") -> None:
    from edge_sd.cli._console import print_table

    rows = []
    for check in checks:
        for name, memory in check.memory.items():
            mebi = f"{memory.weights_bytes / 2**20:.1f} + {memory.activations_bytes / 2**20:.1f}"
            rows.append((check.target, name, mebi, ", ".join(check.rewrites), "; ".join(check.problems) or "ready"))
    print_table("dry run", ("target", "program", "MiB weights + activations", "rewrites", "verdict"), rows)
