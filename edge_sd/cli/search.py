"""`edge-sd search`: the best plan for a budget of steps, and all solvers compared."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edge_sd.cli import _options as option
from edge_sd.pretrained import DEFAULT

if TYPE_CHECKING:
    from edge_sd.foreign import Foreign
    from edge_sd.search.compare import Comparison
    from edge_sd.search.objectives import Objective
    from edge_sd.search.record import SearchRecord
    from edge_sd.search.workers import Opening

_STEPS = 10
SHARED = "shared"  # folder of what several searches use: ends of fine-grained trajectories, features of real images


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
    objective: Annotated[
        str | None,
        typer.Option("--objective", help="trajectory, or kid: what is made small. kid where --data and --features are given."),
    ] = None,
    source: Annotated[
        str | None, typer.Option("--data", help="Real images for kid: a folder, shards, hub:OWNER/NAME, as edge-sd evaluate.")
    ] = None,
    split: option.Split = None,
    resize: option.Resize = False,
    image_column: option.ImageColumn = None,
    limit: option.Limit = None,
    cache: option.Cache = None,
    real: Annotated[
        int, typer.Option("--real", help="Real images that are compared with; all if there are fewer.", min=3)
    ] = 1000,
    features: Annotated[str | None, typer.Option("--features", help="For kid: inception, or package.module:callable.")] = None,
    features_name: Annotated[str | None, typer.Option("--features-name", help="What their distance is called.")] = None,
    feature_size: Annotated[
        int | None, typer.Option("--feature-size", help="Pixels that images are resized to for them.", min=1)
    ] = None,
    fine: Annotated[
        int | None, typer.Option("--fine", help="Steps of the fine-grained trajectory (UniPC); 100 if left out.", min=2)
    ] = None,
    n: Annotated[
        int | None, typer.Option("-n", help="Samples for each trial; 64 of trajectory and 96 of kid if left out.", min=2)
    ] = None,
    fresh: Annotated[
        int | None, typer.Option("--fresh", help="Samples that finalists are ranked by; 4 times -n if left out.", min=2)
    ] = None,
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
    label: Annotated[int | None, typer.Option("--label", help="Class to draw; all in turn if left out.", min=0)] = None,
    processes: Annotated[
        int | None, typer.Option("--processes", help="Of one thread each; one a core if left out.", min=1)
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of everything random.", min=0, max=2**62 - 1)] = 0,
    overwrite: option.Overwrite = False,
    as_json: option.AsJson = False,
) -> None:
    """Search for the plan with the best pictures at a number of steps: timesteps, orders, what is expanded, correctors (S3).

    Starts from every known solver at its best spacing; what it finds is ranked beside them on noise that it has not seen.

    Example: edge-sd search student.safetensors --steps 5 --steps 10 -o plans
    """
    import json

    from edge_sd.cli._console import progress, say
    from edge_sd.errors import UsageError
    from edge_sd.evaluation.draw import cores
    from edge_sd.files import write_bytes
    from edge_sd.foreign import open_model
    from edge_sd.quantize.checkpoint import is_quantized
    from edge_sd.report.search import comparison_picture
    from edge_sd.search.compare import STEPS, Comparing
    from edge_sd.search.objectives import find_objective
    from edge_sd.search.record import COMPARED, COMPARED_PICTURE, SearchSettings, folder_of
    from edge_sd.search.search import Search
    from edge_sd.search.space import Space
    from edge_sd.search.subject import check_steps
    from edge_sd.search.workers import Workers

    path = option.shipped(checkpoint)
    values = dict(locals())
    chosen = find_objective(objective or ("kid" if source and features else "trajectory"))
    _refuse(chosen.name, source, features, fine)
    if path.is_file() and is_quantized(path):
        raise UsageError(f"{path} is quantized", "give the full-precision checkpoint; a plan serves both")
    model = open_model(path)
    header = model.checkpoint.header
    budgets = tuple(dict.fromkeys(steps or (STEPS if report else (_STEPS,))))
    for budget in budgets:
        check_steps(header.noise_schedule, budget)
    opening, given = _opening(values, model, chosen)
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
        if as_json:
            print(compared.model_dump_json(indent=2))
        else:
            _print_comparison(compared)
        say(f"wrote {output}: {COMPARED}, {COMPARED_PICTURE}")
        return
    for one, record in zip(searches, records, strict=True):
        _draw(one.folder, record)
        if not as_json:
            _print_search(record)
        say(f"wrote {one.folder}: {', '.join(sorted(entry.name for entry in one.folder.iterdir() if entry.name[0] != '.'))}")
    if as_json:
        found = [json.loads(record.model_dump_json()) for record in records]
        print(json.dumps(found if len(found) > 1 else found[0], indent=2, ensure_ascii=False))


def _refuse(objective: str, source: str | None, features: str | None, fine: int | None) -> None:
    """Say which options do not go together, before anything is read."""
    from edge_sd.errors import UsageError

    if objective == "kid" and not (source and features):
        raise UsageError(
            "the objective kid needs real images and features", "--data photos/ --features inception, or --objective trajectory"
        )
    if objective != "kid" and (source or features):
        raise UsageError(
            f"the objective {objective} takes no real images and no features", "--objective kid, with --data and --features"
        )
    if objective == "kid" and fine is not None:
        raise UsageError("the objective kid has no fine-grained trajectory", "leave --fine out, or --objective trajectory")


def _opening(values: Mapping[str, Any], model: "Foreign", objective: "type[Objective]") -> "tuple[Opening, dict[str, object]]":
    """What workers are told, and what of it decides the values: fields of `SearchSettings`."""
    from edge_sd.evaluation.draw import labels_of
    from edge_sd.search.objectives.trajectory import FINE_STEPS
    from edge_sd.search.workers import Opening

    header, path, shared = model.checkpoint.header, values["path"].resolve(), values["output"].resolve() / SHARED
    told: dict[str, str | int | None] = {"cache": str(shared), "fine": values["fine"] or FINE_STEPS}
    details: dict[str, str | int] = {"fine": values["fine"] or FINE_STEPS}
    if objective.name == "kid":
        told, details = _real(values, model, shared)
    given = {
        "objective": objective.name,
        "details": details,
        "model": header.digest,
        "model_name": values["path"].name,
        "labels": labels_of(header.model, values["label"])[1],
    }
    return Opening(path, objective.name, tuple(told.items()), values["label"]), given


def _real(
    values: Mapping[str, Any], model: "Foreign", shared: Path
) -> "tuple[dict[str, str | int | None], dict[str, str | int]]":
    """Take the features of real images, once; where they lie, and what they are."""
    from edge_sd.cli._console import progress, say
    from edge_sd.decoder import image_shape
    from edge_sd.evaluation.features import extract, load_features
    from edge_sd.evaluation.reference import choose
    from edge_sd.files import fingerprint
    from edge_sd.foreign import refuse_missing_decoder
    from edge_sd.search.objectives.kid import load_real, save_real

    refuse_missing_decoder(model, values["path"])
    extractor = load_features(values["features"], name=values["features_name"], size=values["feature_size"])
    shape = model.checkpoint.header.model.sample_shape
    side = (shape if model.decoder is None else image_shape(model.decoder, shape))[-1]
    data = option.read_data(values, side)
    if len(data) < values["real"]:
        say(f"the data holds {len(data)} images; all of them are compared with")
    pixels, chosen = choose(data, min(values["real"], len(data)), seed=values["seed"])
    details: dict[str, str | int] = {
        "features": extractor.name,
        "features_digest": extractor.digest,
        "data": chosen.about,
        "data_digest": chosen.digest,
        "real": len(pixels),
        "real_seed": values["seed"],
    }
    path = shared / f"real-{fingerprint(details)}.safetensors"
    if path.is_file():
        load_real(path, extractor)
    else:
        with progress("features of real images") as update:
            rows = extract(extractor, pixels, observe=lambda done, total: update(done, total, ""))
        save_real(path, rows, extractor, chosen.about, chosen.digest)
    told: dict[str, str | int | None] = {
        "real": str(path),
        "features": values["features"],
        "features_name": values["features_name"],
        "features_size": values["feature_size"],
    }
    return told, details


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
        (known.solver, known.spacing, _number(known.value, known.standard_error), None, None) for known in record.known
    ]
    for one in record.finalists:
        name = one.origin or f"trial {one.trial}"
        marks = [mark for mark, trial in (("chosen", record.chosen), ("best known", record.best_known)) if one.trial == trial]
        gain = None if one.trial == record.best_known else _number(one.gain, one.gain_error)
        name, _, spacing = name.partition(", ")
        rows.append((name, spacing or ", ".join(marks), _number(one.searched), _number(one.value, one.standard_error), gain))
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
    columns = ("plan", "spacing", "on the search's noise", "on fresh noise", "gain on the best known")
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
