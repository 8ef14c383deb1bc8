"""`edge-sd search`: the best plan for a budget of steps, and all solvers compared."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edge_sd.cli import _options as option
from edge_sd.pretrained import DEFAULT

if TYPE_CHECKING:
    from edge_sd.search.compare import Comparison
    from edge_sd.search.record import SearchRecord

_STEPS = 10


def search(
    checkpoint: Annotated[
        Path, typer.Argument(help="Checkpoint, diffusers folder, or a shipped model: edge-sd list models.")
    ] = Path(DEFAULT),
    steps: Annotated[
        list[int] | None,
        typer.Option("--steps", help="Function evaluations of the plan; several times for several searches. 10 if left out."),
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder; a search lies in its steps-N. The same command goes on.")
    ] = Path("search"),
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
    evaluations: Annotated[
        int | None,
        typer.Option("--evaluations", help="Trials in all, known solvers among them; by the objective if left out.", min=1),
    ] = None,
    minutes: Annotated[
        float | None, typer.Option("--minutes", help="Begin no trial after so many; the same command searches on.", min=0)
    ] = None,
    report: Annotated[
        bool, typer.Option("--report", help="Search nothing: compare known solvers, and what was found, at 3 to 20 steps.")
    ] = False,
    label: option.DrawnLabel = None,
    processes: option.Processes = None,
    seed: option.SearchSeed = 0,
    overwrite: option.Overwrite = False,
    form: option.Form = "text",
) -> None:
    """Search for the plan with the best pictures at a number of steps: timesteps, orders, what is expanded, correctors (S3).

    Starts from every known solver at its best spacing; what it finds is ranked beside them on noise that it has not seen.

    Example: edge-sd search student.safetensors --steps 5 --steps 10 -o plans
    """
    import json

    from edge_sd.cli._console import progress, say
    from edge_sd.cli._objective import objective_of, opening_of, refuse_quantized
    from edge_sd.diffusion.spacing import check_steps
    from edge_sd.evaluation.draw import cores
    from edge_sd.files import write_bytes
    from edge_sd.foreign import open_model
    from edge_sd.report.search import comparison_picture
    from edge_sd.search.compare import STEPS, Comparing
    from edge_sd.search.record import COMPARED, COMPARED_PICTURE, SearchSettings, folder_of
    from edge_sd.search.search import Search
    from edge_sd.search.space import Space
    from edge_sd.search.workers import Workers

    path = option.shipped(checkpoint)
    values = dict(locals())
    chosen = objective_of(objective, source, features, fine)
    refuse_quantized(path)
    model = open_model(path)
    header = model.checkpoint.header
    budgets = tuple(dict.fromkeys(steps or (STEPS if report else (_STEPS,))))
    for budget in budgets:
        check_steps(budget, header.noise_schedule.timesteps)
    opening, given = opening_of(values, model, chosen)
    samples = n or (chosen.samples // 2 if report else chosen.samples)  # a comparison chooses spacings alone by these
    settings = SearchSettings.model_validate({**given, "steps": max(budgets), "samples": samples, "seed": seed})
    with Workers(opening, processes or cores()) as workers, progress("search") as update:

        def observe(what: str, done: int, total: int, note: str) -> None:
            update(done, total, f"{what} {note}".strip())

        if report:
            comparing = Comparing(
                header.noise_schedule,
                header.prediction,
                workers,
                settings,
                chosen.about,
                output,
                fresh or 4 * chosen.samples,
                observe,
            )
            compared = comparing.run(budgets)
        else:
            searches = [
                Search(
                    Space(header.noise_schedule, header.prediction, budget),
                    workers,
                    settings.model_copy(update={"steps": budget}),
                    chosen,
                    folder_of(output, budget),
                    evaluations or chosen.evaluations,
                    fresh or 4 * samples,
                    minutes,
                    observe,
                )
                for budget in budgets
            ]
            for one in searches:
                if overwrite:
                    one.clear()
                else:
                    one.check()
            records = [one.run() for one in searches]
    if report:
        write_bytes(output / COMPARED_PICTURE, comparison_picture(compared))
        if form == "json":
            print(compared.model_dump_json(indent=2))
        else:
            _print_comparison(compared)
        say(f"wrote {output}: {COMPARED}, {COMPARED_PICTURE}")
        return
    for one, record in zip(searches, records, strict=True):
        _draw(one.folder, record)
        if form == "text":
            _print_search(record)
        say(f"wrote {one.folder}: {', '.join(sorted(entry.name for entry in one.folder.iterdir() if entry.name[0] != '.'))}")
    if form == "json":
        found = [json.loads(record.model_dump_json()) for record in records]
        print(json.dumps(found if len(found) > 1 else found[0], indent=2, ensure_ascii=False))


def _draw(folder: Path, record: "SearchRecord") -> None:
    from edge_sd.files import write_bytes
    from edge_sd.report.search import search_picture
    from edge_sd.search.record import FRONT, TRIALS, Lines, Trial

    trials = sorted(Lines(folder / TRIALS, Trial, record.settings).read(), key=lambda trial: trial.number)
    write_bytes(folder / FRONT, search_picture(record, trials[: record.evaluations]))


# What is printed


def _print_search(record: "SearchRecord") -> None:
    from edge_sd.cli._console import print_table

    settings = record.settings
    rows: list[tuple[object, ...]] = [
        (known.solver, known.spacing, _number(known.value, known.standard_error), None, None, "") for known in record.known
    ]
    for one in record.finalists:
        name, _, spacing = one.origin.partition(", ")
        marks = [mark for mark, trial in (("chosen", record.chosen), ("best known", record.best_known)) if one.trial == trial]
        gain = None if one.trial == record.best_known else _number(one.gain, one.gain_error)
        fresh = _number(one.value, one.standard_error)
        rows.append((name or f"trial {one.trial}", spacing or "searched", _number(one.searched), fresh, gain, ", ".join(marks)))
    chosen, known = record.finalist(record.chosen), record.finalist(record.best_known)
    correlations = [one.correlation for one in record.generations if one.correlation is not None]
    notes = [
        f"{settings.objective} = {record.about}; lower is better",
        f"searched: {record.evaluations} trials on {settings.samples} samples of seed {settings.seed}; "
        f"fresh: {record.fresh_samples} samples of seed {record.fresh_seed}; ± is the standard error, of gains on equal noise",
        f"the search fitted its own noise by {(known.searched - chosen.searched) - (known.value - chosen.value):.4g}: it gained "
        f"{known.searched - chosen.searched:.4g} there and {known.value - chosen.value:.4g} on fresh noise",
    ]
    if correlations:
        middle = sorted(correlations)[len(correlations) // 2]
        notes.append(
            f"the predictor's rank correlation with its own generation: median {middle:.2f} of {len(correlations)} generations"
        )
    if not record.complete:
        notes.append("its minutes ended it; the same command searches on")
    columns = ("plan", "spacing", "on the search's noise", "on fresh noise", "gain on the best known", "")
    print_table(f"{settings.model_name}, {settings.steps} steps", columns, rows, "\n".join(notes))


def _print_comparison(comparison: "Comparison") -> None:
    from edge_sd.cli._console import print_table

    rows = [
        (
            row.steps,
            row.solver,
            row.spacing,
            _number(row.value, row.standard_error),
            None if row.gain is None or row.gain_error is None else _number(row.gain, row.gain_error),
        )
        for row in comparison.rows
    ]
    settings = comparison.settings
    note = (
        f"{settings.objective} = {comparison.about}; lower is better; {comparison.fresh_samples} samples of seed "
        f"{comparison.fresh_seed}; spacings chosen on {settings.samples} of seed {settings.seed}; ± is the standard error"
    )
    print_table(
        f"{settings.model_name}", ("steps", "solver", "spacing", settings.objective, "gain on the best known"), rows, note
    )


def _number(value: float, error: float | None = None) -> str:
    return f"{value:.4f}" if error is None else f"{value:.4f} ± {error:.4f}"
