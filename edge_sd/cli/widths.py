"""`edge-sd widths`: a width for each step of a plan, of a slimmable model."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edge_sd.cli import _options as option

if TYPE_CHECKING:
    from edge_sd.search.stepwise import WidthsRecord

_STEPS = 10


def widths(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint of edge-sd train --slimmable.")],
    solver: Annotated[str | None, typer.Option("--solver", help="edge-sd list solvers; dpmpp.")] = None,
    steps: Annotated[int | None, typer.Option("--steps", help="Function evaluations of the plan; 10 if left out.")] = None,
    spacing: option.Spacing = None,
    against: Annotated[
        int | None,
        typer.Option("--against", help="Be as good as the full width in this many steps; --steps if left out.", min=1),
    ] = None,
    plan_file: option.PlanFile = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder. The same command goes on where it stopped.")] = Path(
        "widths"
    ),
    objective: option.Objective = None,
    source: option.RealImages = None,
    split: option.Split = None,
    resize: option.Resize = False,
    image_column: option.ImageColumn = None,
    limit: option.Limit = None,
    cache: option.Cache = None,
    real: option.RealCount = 1000,
    features: option.FeaturesOf = None,
    features_name: option.FeaturesName = None,
    feature_size: option.FeatureSize = None,
    fine: option.FineSteps = None,
    n: option.TrialSamples = None,
    fresh: option.FreshSamples = None,
    population: Annotated[int, typer.Option("--population", help="Of NSGA-II.", min=4)] = 40,
    generations: Annotated[int, typer.Option("--generations", help="Of NSGA-II.", min=1)] = 8,
    label: option.DrawnLabel = None,
    processes: option.Processes = None,
    seed: option.SearchSeed = 0,
    overwrite: option.Overwrite = False,
    form: option.Form = "text",
) -> None:
    """Choose a width for each step: the front of quality against multiply-accumulates, and its cheapest point that is as good as
    the full width on noise that the search has not seen (DDSM).

    The plan that comes out calls a program for each width: edge-sd export --plan widths/plan.safetensors makes them. A few
    more steps, most of them narrow, can cost less than fewer wide ones: --steps 54 --against 50.

    Example: edge-sd widths runs/slim/checkpoint.safetensors --solver ddim --steps 20 -o widths
    """
    from edge_sd.api.settings import plan_source
    from edge_sd.cli._console import progress, say
    from edge_sd.cli._objective import objective_of, opening_of, refuse_quantized
    from edge_sd.diffusion.choice import PlanChoice, PlanFile, lineage
    from edge_sd.errors import UsageError
    from edge_sd.evaluation.draw import cores
    from edge_sd.files import tensors_digest, write_bytes
    from edge_sd.foreign import open_model
    from edge_sd.report.widths import widths_picture
    from edge_sd.search.record import FRONT
    from edge_sd.search.stepwise import WidthSearch, WidthSettings
    from edge_sd.search.widths import Costs
    from edge_sd.search.workers import Workers

    path = option.shipped(checkpoint)
    values = dict(locals())
    chosen = objective_of(objective, source, features, fine)
    refuse_quantized(path)
    model = open_model(path)
    header = model.checkpoint.header
    Costs.of(header.model)
    given_plan = plan_source(plan_file, solver, steps, spacing) or PlanChoice(steps=_STEPS)
    plan, base = given_plan.plan(header.noise_schedule, header.prediction, lineage(header)), None
    if against is not None:
        if isinstance(given_plan, PlanFile):
            raise UsageError("--against is a number of the solver's steps, and --plan says no solver", "--solver and --steps")
        base = given_plan.model_copy(update={"steps": against}).plan(header.noise_schedule, header.prediction)
    opening, given = opening_of(values, model, chosen)
    samples = n or 2 * chosen.samples
    settings = WidthSettings.model_validate({
        **given, "steps": len(plan), "samples": samples, "seed": seed, "plan": tensors_digest(plan.bare().columns),
        "solver": plan.header.solver, "against": against, "population": population, "generations": generations,
    })  # fmt: skip
    with Workers(opening, processes or cores()) as workers, progress("widths") as update:
        search = WidthSearch(
            model.checkpoint.build(), plan, workers, chosen.about, settings, output, fresh or 4 * samples,
            lambda what, done, total, note: update(done, total, f"{what} {note}".strip()), base,
        )  # fmt: skip
        if overwrite:
            search.clear()
        else:
            search.check()
        record = search.run()
    write_bytes(output / FRONT, widths_picture(record))
    if form == "json":
        print(record.model_dump_json(indent=2))
    else:
        _print(record)
    say(f"wrote {output}: {', '.join(sorted(entry.name for entry in output.iterdir() if entry.name[0] != '.'))}")


def _print(record: "WidthsRecord") -> None:
    from edge_sd.cli._console import print_table

    settings, full = record.settings, record.finalists[-1]
    rows = []
    for index, one in enumerate(record.finalists):
        mark = "chosen" if index == record.chosen else "full width" if one is full else "as good" if one.equal else ""
        rows.append((
            " ".join(map(str, one.widths)), f"{one.macs_share:.0%}", f"{one.milliseconds:.2f}", f"{one.searched:.4f}",
            f"{one.value:.4f} ± {one.standard_error:.4f}", f"{one.worse:+.4f} ± {one.worse_error:.4f}", mark,
        ))  # fmt: skip
    choice = record.choice
    notes = [
        f"{settings.objective} = {record.about}; lower is better; widths are channels of the first level, a step each",
        f"searched: {len(record.trials)} trials on {settings.samples} samples of seed {settings.seed}; fresh: "
        f"{record.fresh_samples} samples of seed {record.fresh_seed}; ± is the standard error, of differences on equal noise",
        f"chosen: {len(choice.widths)} steps against {len(full.widths)} of the full width, {1 - choice.macs_share:.0%} fewer "
        f"multiply-accumulates, {1 - choice.milliseconds / full.milliseconds:.0%} less time in torch here (one image, one "
        f"thread): thin layers save less time than arithmetic",
    ]
    columns = ("widths", "MACs", "ms", "on the search's noise", "on fresh noise", "worse than the full width", "")
    print_table(f"{settings.model_name}, {settings.solver}, {settings.steps} steps", columns, rows, "\n".join(notes))
