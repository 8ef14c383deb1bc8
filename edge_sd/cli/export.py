"""`edge-sd export`: a checkpoint and a plan become a bundle."""

from pathlib import Path
from typing import Annotated

import typer

from edge_sd.cli import _options as option


def export(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint to export.")],
    target: Annotated[list[str], typer.Option("--target", help="edge-sd list targets; may be given several times.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="NAME.edgesd; beside the checkpoint if left out.")] = None,
    solver: option.Solver = "dpmpp",
    steps: Annotated[int, typer.Option("--steps", help="Function evaluations of the plan.")] = 20,
    spacing: option.Spacing = None,
    seed: option.Seed = 0,
    goldens: Annotated[int, typer.Option("--goldens", help="Golden trajectories to keep.", min=1)] = 2,
    overwrite: option.Overwrite = False,
) -> None:
    """Export a checkpoint to a bundle: programs, plan, golden trajectories, manifest and card.

    Example: edge-sd export runs/student/checkpoint.safetensors --target onnx -o student.edgesd
    """
    from edge_sd.bundle.bundle import SUFFIX
    from edge_sd.checkpoint import load_checkpoint
    from edge_sd.cli._console import say
    from edge_sd.errors import UsageError
    from edge_sd.export import export_bundle

    out = output or checkpoint.with_suffix(SUFFIX)
    if out.exists() and not overwrite:  # before the weights are read
        raise UsageError(f"{out} exists", "give --overwrite to replace it, or another -o")
    bundle = export_bundle(
        load_checkpoint(checkpoint), out, target, solver=solver, steps=steps, spacing=spacing, seed=seed, goldens=goldens,
        overwrite=overwrite, observe=lambda stage: say(f"exporting: {stage}"),
    )  # fmt: skip
    size = sum(entry.bytes for entry in bundle.manifest.files.values())
    say(f"wrote {out} ({len(bundle.manifest.files)} files, {size / 2**20:.1f} MiB)")
