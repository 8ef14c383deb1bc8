"""`edge-sd plan`: another sampler for a finished bundle."""

from pathlib import Path
from typing import Annotated

import typer

from edge_sd.cli import _options as option


def plan(
    bundle: Annotated[Path, typer.Argument(help="Bundle NAME.edgesd.")],
    solver: option.Solver = "dpmpp",
    steps: Annotated[int, typer.Option("--steps", help="Function evaluations of the plan.")] = 20,
    spacing: option.Spacing = None,
    eta: Annotated[float, typer.Option("--eta", help="Share of fresh noise, for ddim.")] = 0.0,
    plan_file: Annotated[Path | None, typer.Option("--plan", help="A plan.safetensors, in place of the options above.")] = None,
    goldens: Annotated[int | None, typer.Option("--goldens", help="Golden trajectories; as many as before.", min=1)] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write a new bundle; the bundle itself is changed if left out.")
    ] = None,
    overwrite: option.Overwrite = False,
) -> None:
    """Swap a bundle's plan: new rows and golden trajectories, the same programs, nothing is exported again.

    Example: edge-sd plan student.edgesd --solver unipc --steps 8
    """
    from edge_sd.bundle import open_bundle
    from edge_sd.cli._console import say
    from edge_sd.diffusion import compile_plan
    from edge_sd.diffusion.plan import Plan, load_plan
    from edge_sd.errors import UsageError
    from edge_sd.export import swap_plan

    out = output or bundle
    if output is not None and output.exists() and not overwrite:
        raise UsageError(f"{output} exists", "give --overwrite to replace it, or another -o")
    opened = open_bundle(bundle)
    manifest = opened.manifest
    if plan_file is not None:
        given = load_plan(plan_file)
        header = given.header.model_copy(update={"feature_width": 0})
        chosen = Plan(header, {name: column for name, column in given.columns.items() if name != "features"})
    else:
        chosen = compile_plan(
            manifest.noise_schedule, steps, solver=solver, prediction=manifest.prediction, spacing=spacing, eta=eta
        )
    swapped = swap_plan(opened, chosen, out, goldens=goldens)
    header = swapped.plan.header
    say(f"wrote {out}: {header.solver}, {len(swapped.plan)} steps, {header.spacing} spacing")
