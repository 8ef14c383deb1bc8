"""`edge-sd plan tune`: one learnt conditioning time for each step of a plan, for one model."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edge_sd.cli import _options as option
from edge_sd.pretrained import DEFAULT

if TYPE_CHECKING:
    import numpy as np

    from edge_sd.quantize.checkpoint import Opened

_DRAWN_STEPS = 50


def tune(
    model: Annotated[Path, typer.Argument(help="Checkpoint, or a shipped model: edge-sd list models.")] = Path(DEFAULT),
    plan_file: option.PlanFile = None,
    solver: Annotated[str | None, typer.Option("--solver", help="edge-sd list solvers; dpmpp if left out.")] = None,
    steps: Annotated[int | None, typer.Option("--steps", help="Function evaluations; 20 if left out.")] = None,
    spacing: option.Spacing = None,
    mode: Annotated[
        str,
        typer.Option("--mode", help="joint: all steps at once; or TimeTuner's own, sequential or parallel. See the text above."),
    ] = "joint",
    iterations: Annotated[
        int | None, typer.Option("--iterations", help="Of Adam: 60; of TimeTuner's modes 500 for each step.", min=1)
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option("--learning-rate", "--lr", help="Of Adam: 5e-3, falling; of TimeTuner's modes 2e-3.")
    ] = None,
    count: Annotated[int, typer.Option("-n", help="Samples that it is tuned on.", min=1)] = 64,
    batch_size: Annotated[int, typer.Option("--batch-size", help="Samples of one iteration.", min=1)] = 16,
    fine: Annotated[int, typer.Option("--fine", help="Steps of the trajectory that mode joint follows.", min=2)] = 100,
    source: Annotated[
        str | None,
        typer.Option(
            "--data", help="Images to noise, of TimeTuner's modes, as of edge-sd train; the model's own samples if left out."
        ),
    ] = None,
    resize: option.Resize = False,
    autoencoder: Annotated[
        Path | None, typer.Option("--autoencoder", help="Of a model of latents and --data; that of a shipped model if left out.")
    ] = None,
    threads: option.Threads = None,
    seed: option.Seed = 0,
    output: Annotated[Path, typer.Option("--output", "-o", help="File of the tuned plan.")] = Path("plan.safetensors"),
    overwrite: option.Overwrite = False,
    form: option.Form = "text",
) -> None:
    """Learn at which times to ask the model: one number a step, the weights frozen, the solver's coefficients as they are.

    A long step's direction is better told at another time than the one where it begins (TimeTuner, 2310.09469). Mode joint takes
    the times whose loop ends nearest to where many small steps lead from the same noise. Modes sequential (along the steps tuned
    before) and parallel (each step apart, on noised samples) are the paper's: predictions of the noise in a row are to agree. The
    tuned plan is for this model's weights alone, and costs nothing where it runs.

    Example: edge-sd plan tune emoji64 --solver ddim --steps 10 -o tuned.safetensors
    """
    import json

    import torch

    from edge_sd.api.settings import pick, plan_source
    from edge_sd.cli._console import print_table, progress, say
    from edge_sd.diffusion.choice import PlanChoice, lineage
    from edge_sd.errors import UsageError
    from edge_sd.quantize.checkpoint import QuantizedCheckpoint, open_any
    from edge_sd.search.timesteps import TuneSettings, tune_timesteps

    values = dict(locals())
    if output.exists() and not overwrite:
        raise UsageError(f"{output} exists", "give --overwrite to replace it, or another -o")
    settings = pick(TuneSettings, values, "tuning")
    chosen = plan_source(plan_file, solver, steps, spacing) or PlanChoice()
    opened = open_any(option.shipped(model))
    if isinstance(opened.checkpoint, QuantizedCheckpoint):
        raise UsageError(f"{model} is quantized", "tune for the weights it came from: the plan suits both")
    header = opened.checkpoint.header
    plan = chosen.plan(header.noise_schedule, header.prediction, lineage(header))
    if threads is not None:
        torch.set_num_threads(threads)
    network = opened.checkpoint.build()
    clean, labels = None, None
    if source is not None and mode == "joint":
        raise UsageError("mode joint starts from noise, as sampling does, and noises no images", "leave --data out")
    if source is not None:
        clean, labels = _from_data(opened, model, autoencoder, source, resize, count, seed)
    elif mode == "parallel":
        clean, labels = _drawn(opened, count, seed)
    with progress("tuning") as update:
        found = tune_timesteps(network, plan, settings, header.digest, clean=clean, labels=labels, observe=update)
    found.plan.save(output)
    rows = [
        {
            "row": row,
            "timestep": float(found.plan.levels_at[row]),
            "tuned": float(found.plan.timestep[row]),
            "ratio": float(found.ratios[row]),
        }
        for row in range(len(plan))
    ]
    if form == "json":
        print(json.dumps({"mode": mode, "before": found.before, "after": found.after, "rows": rows}, indent=2))
    else:
        table = [tuple(f"{value:.4g}" if isinstance(value, float) else value for value in row.values()) for row in rows]
        what = "distance from the fine trajectory's end" if mode == "joint" else "sum of the steps' losses"
        note = f"{what}: {found.before:.4g} → {found.after:.4g}, over the {count} samples it was tuned on"
        print_table(f"{plan.header.solver}, {mode}", ("row", "timestep", "tuned", "ratio"), table, note)
    say(f"wrote {output}: for the weights {header.digest[:16]}… alone")


def _drawn(opened: "Opened", count: int, seed: int) -> "tuple[np.ndarray, np.ndarray | None]":
    """Clean samples that the model draws itself, classes in turn."""
    import numpy as np

    from edge_sd.cli._console import progress, say
    from edge_sd.diffusion import PlanChoice
    from edge_sd.sampling import sample_model

    header, network = opened.checkpoint.header, opened.checkpoint.build()
    plan = PlanChoice(steps=_DRAWN_STEPS).plan(header.noise_schedule, header.prediction)
    say(f"no --data: tuned on {count} samples that the model draws itself, in {_DRAWN_STEPS} steps of {plan.header.solver}")
    classes = header.model.num_classes
    with progress("sampling") as update:
        if classes is None:
            return sample_model(network, plan, seed=seed, count=count, observe=lambda done, total: update(done, total, "")), None
        labels = np.arange(count) % classes
        each = [sample_model(network, plan, seed=seed + i, count=1, label=int(label))[0] for i, label in enumerate(labels)]
        return np.stack(each), labels


def _from_data(
    opened: "Opened", model: Path, autoencoder: Path | None, source: str, resize: bool, count: int, seed: int
) -> "tuple[np.ndarray, np.ndarray | None]":
    """Clean samples out of images or, for a model of latents, the latents of images."""
    import numpy as np

    from edge_sd.api.images import read_samples
    from edge_sd.cli._console import TERMINAL
    from edge_sd.data import DataConfig
    from edge_sd.errors import UsageError
    from edge_sd.pretrained import AUTOENCODERS, SHIPPED
    from edge_sd.training.samples import samples_of

    header = opened.checkpoint.header
    space = header.provenance.parents.get("autoencoder")
    if autoencoder is None and space is not None:
        if str(model) not in SHIPPED:
            raise UsageError(f"{model} denoises latents", "--autoencoder says of which autoencoder")
        autoencoder = AUTOENCODERS[str(model).removesuffix("-teacher")]
    images = DataConfig(source=source, resize=resize, labels=header.model.num_classes is not None)
    samples = samples_of(read_samples(images, header.model, autoencoder, TERMINAL))
    if samples.parents.get("autoencoder") != space:
        raise UsageError(
            f"{model} denoises other latents than those of {autoencoder}", "the autoencoder that it was trained with"
        )
    chosen = np.random.default_rng(seed).permutation(len(samples))[:count]
    clean = samples.take(chosen, np.zeros(len(chosen), dtype=bool), np.full((len(chosen), 2), 0.5))
    return clean, None if samples.labels is None else samples.labels[chosen]
