"""`edge-sd plan`: sampling plans, made, shown, tuned for a model, and put into a finished bundle."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edge_sd.cli import _options as option
from edge_sd.cli.tune import tune

if TYPE_CHECKING:
    import numpy as np

    from edge_sd.diffusion import NoiseSchedule, Plan, Prediction

plan = typer.Typer(
    help="Sampling plans: the table of all that a sampler does, as a file.\n\n"
    "Example: edge-sd plan make --for emoji64 --solver unipc --steps 8 && edge-sd plan show plan.safetensors",
    no_args_is_help=True,
    rich_markup_mode=None,
)
plan.command()(tune)


@plan.command()
def show(
    given: Annotated[Path, typer.Argument(metavar="PLAN", help="plan.safetensors, or a bundle NAME.edgesd.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Also draw it, .png.")] = None,
    overwrite: option.Overwrite = False,
    form: option.Form = "text",
) -> None:
    """Print a plan: a row a step, with timestep, noise level and the solver's coefficients; and draw it.

    With e what the program returns at x, a row does: m ← p·x + q·e, the newest first; base ← u·x + a·base + Σ b·m;
    x ← a_next·base + Σ b_next·m + c·z. A timestep in parentheses is the one that the coefficients of a tuned plan are for.

    Example: edge-sd plan show student.edgesd -o plan.png
    """
    import json

    from edge_sd.bundle import open_bundle
    from edge_sd.cli._console import print_table, say
    from edge_sd.diffusion import load_plan
    from edge_sd.errors import UsageError
    from edge_sd.files import write_bytes
    from edge_sd.report.plan import plan_figure, plan_rows

    if output is not None and output.exists() and not overwrite:
        raise UsageError(f"{output} exists", "give --overwrite to replace it, or another -o")
    found = open_bundle(given).plan if given.is_dir() else load_plan(given)
    rows = plan_rows(found)
    if output is not None:
        write_bytes(output, plan_figure(found))
        say(f"wrote {output}")
    if form == "json":
        values = {"header": found.header.model_dump(mode="json"), "start": found.start_scale}
        print(json.dumps({**values, "rows": [row.model_dump(mode="json") for row in rows]}, indent=2))
        return
    table = [
        (
            index,
            f"{row.timestep:.5g}" + (f" ({row.level_at:.5g})" if found.header.tuned else ""),
            f"{row.alpha_bar:.4g}",
            f"{row.log_snr:+.3f}",
            *(_numbers([getattr(row, name)]) for name in ("p", "q", "u", "a")),
            _numbers(row.b),
            _numbers([row.a_next]),
            _numbers(row.b_next),
            _numbers([row.c]),
            row.program,
        )
        for index, row in enumerate(rows)
    ]
    columns = ("row", "timestep", "ᾱ", "log-SNR", "p", "q", "u", "a", "b", "a_next", "b_next", "c", "program")
    print_table(str(given), columns, table, "\n".join(_notes(found)))


@plan.command()
def make(
    model: Annotated[
        Path | None,
        typer.Option(
            "--for", metavar="MODEL", help="Checkpoint, bundle or shipped model whose schedule and prediction it is for."
        ),
    ] = None,
    schedule: Annotated[
        str | None, typer.Option("--schedule", help="In place of --for: linear, cosine, ldm or ldm-church.")
    ] = None,
    prediction: Annotated[str | None, typer.Option("--prediction", help="In place of --for: epsilon, v or x0.")] = None,
    solver: Annotated[str | None, typer.Option("--solver", help="edge-sd list solvers; dpmpp if left out.")] = None,
    steps: Annotated[int | None, typer.Option("--steps", help="Function evaluations; 20 if left out.")] = None,
    spacing: option.Spacing = None,
    eta: Annotated[float, typer.Option("--eta", help="Share of fresh noise, for ddim.")] = 0.0,
    orders: Annotated[
        str | None,
        typer.Option("--orders", help="Order of each step, of dpmpp, unipc and their likes: 1,1,2,2,1 starts low and ends low."),
    ] = None,
    analytic_first_step: Annotated[
        bool,
        typer.Option("--analytic-first-step", help="One point more, whose evaluation is saved: at T there is nothing but noise."),
    ] = False,
    schedule_file: Annotated[
        Path | None, typer.Option("--schedule-file", help="Each step's decisions (JSON), in place of the solver's options.")
    ] = None,
    widths: Annotated[
        str | None,
        typer.Option("--widths", help="Channels of the first level at each step, of a slimmable model: 16,16,32,48,48."),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="File of the plan.")] = Path("plan.safetensors"),
    overwrite: option.Overwrite = False,
) -> None:
    """Compile a solver to a plan, for any model of one noise schedule and prediction; nothing of the model's weights is in it.

    Example: edge-sd plan make --for emoji64 --solver ddim --steps 10 -o ddim10.safetensors
    """
    from edge_sd.cli._console import say
    from edge_sd.diffusion import compile_plan
    from edge_sd.diffusion.choice import DEFAULT_SOLVER, DEFAULT_STEPS
    from edge_sd.diffusion.plan import refuse_other_process
    from edge_sd.diffusion.unified import SolverSchedule, compile_schedule
    from edge_sd.errors import UsageError
    from edge_sd.files import read_model

    if output.exists() and not overwrite:
        raise UsageError(f"{output} exists", "give --overwrite to replace it, or another -o")
    if model is not None and (schedule, prediction) != (None, None):
        raise UsageError(f"--for {model} says schedule and prediction", "leave --schedule and --prediction out, or --for")
    if schedule_file is not None:
        if any((solver, steps is not None, spacing, eta, orders, analytic_first_step, schedule, prediction)):
            raise UsageError(f"{schedule_file} says every step", "leave the solver's options, --schedule and --prediction out")
        made = compile_schedule(read_model(SolverSchedule, schedule_file))
        if model is not None:
            refuse_other_process(made, *_process(model), schedule_file)
    else:
        process = _process(model) if model is not None else _named(schedule, prediction)
        solver, steps = solver or DEFAULT_SOLVER, DEFAULT_STEPS if steps is None else steps
        if orders is None:
            made = compile_plan(
                process[0], steps, solver=solver, prediction=process[1], spacing=spacing, eta=eta,
                analytic_first_step=analytic_first_step,
            )  # fmt: skip
        else:
            if eta:
                raise UsageError("orders are of solvers without noise", "leave --eta out")
            made = _of_orders(process, solver, steps, spacing, option.numbers_of(orders, "--orders"), analytic_first_step)
    if widths is not None:
        each = option.numbers_of(widths, "--widths")
        if len(each) != len(made):
            raise UsageError(f"{len(each)} widths for {len(made)} steps", "--widths with one number a step")
        made = made.with_widths(each)
    made.save(output)
    say(f"wrote {output}: {made.header.solver}, {len(made)} evaluations at {_numbers(made.timestep)}")


@plan.command()
def swap(
    bundle: Annotated[Path, typer.Argument(help="Bundle NAME.edgesd.")],
    solver: Annotated[str | None, typer.Option("--solver", help="edge-sd list solvers; dpmpp if left out.")] = None,
    steps: Annotated[int | None, typer.Option("--steps", help="Function evaluations of the plan; 20 if left out.")] = None,
    spacing: option.Spacing = None,
    eta: Annotated[float, typer.Option("--eta", help="Share of fresh noise, for ddim.")] = 0.0,
    plan_file: option.PlanFile = None,
    goldens: Annotated[int | None, typer.Option("--goldens", help="Golden trajectories; as many as before.", min=1)] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write a new bundle; the bundle itself is changed if left out.")
    ] = None,
    overwrite: option.Overwrite = False,
) -> None:
    """Swap a bundle's plan: new rows and golden trajectories, the same programs, nothing is exported again.

    Example: edge-sd plan swap student.edgesd --solver unipc --steps 8
    """
    from edge_sd.api.settings import plan_source
    from edge_sd.bundle import open_bundle
    from edge_sd.cli._console import say
    from edge_sd.diffusion import PlanChoice
    from edge_sd.errors import UsageError
    from edge_sd.export import swap_plan

    out = output or bundle
    if output is not None and output.exists() and not overwrite:
        raise UsageError(f"{output} exists", "give --overwrite to replace it, or another -o")
    source = plan_source(plan_file, solver, steps, spacing, eta) or PlanChoice()
    opened = open_bundle(bundle)
    chosen = source.plan(opened.manifest.noise_schedule, opened.manifest.prediction)
    swapped = swap_plan(opened, chosen, out, goldens=goldens)
    header = swapped.plan.header
    say(f"wrote {out}: {header.solver}, {len(swapped.plan)} steps, {header.spacing} spacing")


# What a plan is for


def _process(model: Path) -> "tuple[NoiseSchedule, Prediction]":
    """Noise schedule and prediction of a checkpoint, a bundle or a shipped model."""
    from edge_sd.bundle.bundle import is_bundle
    from edge_sd.bundle.manifest import MANIFEST, Manifest
    from edge_sd.files import read_model
    from edge_sd.quantize.checkpoint import open_any

    path = option.shipped(model)
    if is_bundle(path):
        manifest = read_model(Manifest, path / MANIFEST)
        return manifest.noise_schedule, manifest.prediction
    header = open_any(path).checkpoint.header
    return header.noise_schedule, header.prediction


def _named(schedule: str | None, prediction: str | None) -> "tuple[NoiseSchedule, Prediction]":
    """The same, by name."""
    from edge_sd.diffusion import SCHEDULES
    from edge_sd.errors import UsageError, unknown

    if schedule is None or prediction is None:
        raise UsageError(
            "a plan is for models of one noise schedule and one prediction", "--for MODEL, or --schedule cosine --prediction v"
        )
    if schedule not in SCHEDULES:
        raise unknown("schedule", schedule, SCHEDULES)
    known: dict[str, Prediction] = {"epsilon": "epsilon", "v": "v", "x0": "x0"}
    if prediction not in known:
        raise unknown("prediction", prediction, known)
    return SCHEDULES[schedule], known[prediction]


def _of_orders(
    process: "tuple[NoiseSchedule, Prediction]",
    solver: str,
    steps: int,
    spacing: str | None,
    orders: tuple[int, ...],
    analytic_first_step: bool,
) -> "Plan":
    """A known solver whose steps have other orders."""
    from edge_sd.diffusion import compile_plan
    from edge_sd.diffusion.unified import KNOWN, compile_schedule, known_schedule
    from edge_sd.errors import UsageError

    name = {"dpmpp": "dpmpp-2m", "dpmpp-3m": "dpmpp-3m", "unipc": "unipc-2"}.get(solver, solver)
    if name not in KNOWN:
        raise UsageError(f"{solver} has no orders to choose", "--solver ddim, dpmpp, dpmpp-3m, unipc or unipc-3")
    usual = compile_plan(
        process[0], steps, solver=solver, prediction=process[1], spacing=spacing, analytic_first_step=analytic_first_step
    )
    chosen = known_schedule(name, *process, usual.timestep, orders)
    made = compile_schedule(chosen)
    start = {name: column for name, column in usual.columns.items() if name == "start"}
    return type(made)(made.header, {**made.columns, **start})


# What is printed


def _numbers(values: "Sequence[float] | np.ndarray") -> str:
    """Without the zeros that only fill a row."""
    found = [float(value) for value in values]
    while len(found) > 1 and found[-1] == 0:
        found.pop()
    return ", ".join(f"{value:.4g}" for value in found)


def _notes(found: "Plan") -> list[str]:
    header = found.header
    schedule = header.noise_schedule
    notes = [
        f"{header.solver}, {len(found)} evaluations, {header.spacing} spacing, {header.prediction}-prediction, "
        f"{schedule.kind} schedule of {schedule.timesteps} timesteps" + (", adds noise" if found.stochastic else "")
    ]
    if found.start_scale != 1:
        notes.append(f"starts from {found.start_scale:.6g}·z: its first step needs no evaluation")
    if header.tuned:
        notes.append(f"timesteps tuned (mode {header.tuned.mode}) for the weights {header.tuned.weights[:16]}…")
    if len(header.programs) > 1:
        widths = [f" ({width} channels)" for width in header.widths] or [""] * len(header.programs)
        named = (f"{index} {name}{width}" for index, (name, width) in enumerate(zip(header.programs, widths, strict=True)))
        notes.append(f"programs: {', '.join(named)}")
    return notes
