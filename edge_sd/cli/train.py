"""`edge-sd train`: a model from images alone."""

from pathlib import Path
from typing import Annotated

import typer

from edge_sd.cli import _latents as latent
from edge_sd.cli import _options as option


def train(
    output: option.OutFolder,
    source: option.Source = "dead-leaves",
    resize: option.Resize = False,
    split: option.Split = None,
    labels: option.Labels = False,
    label_column: option.LabelColumn = None,
    image_column: option.ImageColumn = None,
    limit: option.Limit = None,
    max_broken: option.MaxBroken = None,
    crop: option.Crop = 0,
    cache: option.Cache = None,
    count: option.Count = 4096,
    min_radius: option.MinRadius = 1.0,
    autoencoder: latent.Autoencoder = None,
    preset: Annotated[str | None, typer.Option("--preset", help="Model to train: edge-sd list presets; tiny16.")] = None,
    size: option.Size = None,
    start: Annotated[
        Path | None,
        typer.Option("--start", help="Checkpoint to begin with, in place of random weights; it says what --preset would."),
    ] = None,
    width: Annotated[
        int | None,
        typer.Option("--width", help="Of --start: make the model wider; with --slimmable, the width it had still works.", min=2),
    ] = None,
    slimmable: Annotated[
        bool,
        typer.Option("--slimmable", help="Learn weights that work at narrower widths too: edge-sd widths."),
    ] = False,
    slim_widths: Annotated[
        str | None,
        typer.Option(
            "--slim-widths", help="Of --slimmable: channels of the first level, 12,24,36; quarters of the preset's if left out."
        ),
    ] = None,
    plan: Annotated[
        Path | None,
        typer.Option("--plan", help="Of --slimmable: a plan with widths; each learns where this plan calls it alone."),
    ] = None,
    steps: option.Steps = 10_000,
    batch_size: option.BatchSize = 32,
    learning_rate: option.LearningRate = 1e-3,
    warmup: option.Warmup = 50,
    ema_decay: option.EmaDecay = 0.995,
    flip: option.Flip = True,
    precision: option.Precision = "auto",
    accumulate: option.Accumulate = 1,
    compile: option.Compile = False,
    channels_last: option.ChannelsLast = "auto",
    checkpoint_activations: option.CheckpointActivations = False,
    seed: option.Seed = 0,
    save_every: option.SaveEvery = 250,
    sample_every: option.SampleEvery = 250,
    overwrite: option.Overwrite = False,
) -> None:
    """Train a model from images. Killed at any moment, the same command goes on.

    Example: edge-sd train --data photos/ --resize --preset small64 --steps 50000 -o runs/teacher

    For a width at each step: edge-sd train --slimmable --preset latent16-slim --autoencoder emoji64 --data emoji/ -o runs/slim

    Around a trained one: edge-sd train --slimmable --start emoji64-teacher --width 64 --autoencoder emoji64 --data emoji/ -o out
    """
    given = dict(locals())
    from edge_sd.api.images import image_settings, read_samples
    from edge_sd.api.settings import model_of, pick
    from edge_sd.cli._console import TERMINAL, progress, say
    from edge_sd.diffusion import SCHEDULES, load_plan
    from edge_sd.errors import UsageError
    from edge_sd.foreign import open_model
    from edge_sd.models import ModelConfig
    from edge_sd.models.slim import usual_widths
    from edge_sd.models.widen import wider_config
    from edge_sd.training import TrainConfig, fit
    from edge_sd.training.loop import CHECKPOINT
    from edge_sd.validation import validated

    begun = None if start is None else open_model(option.shipped(start))
    if begun is None:
        if width is not None:
            raise UsageError("--width is of --start", "a preset has its own: edge-sd list presets")
        name = preset or "tiny16"
        chosen, model = model_of(name, size)
        schedule, prediction = SCHEDULES[chosen.schedule], chosen.prediction
    else:
        if preset is not None or size is not None:
            raise UsageError(f"--start {start} says what the model is", "leave --preset and --size out")
        name, header = str(start), begun.checkpoint.header
        model, schedule, prediction = header.model, header.noise_schedule, header.prediction
        model = model if width is None else wider_config(model, width)
    config = pick(TrainConfig, given, "training settings")
    if slimmable:
        widths = tuple(sorted(option.numbers_of(slim_widths, "--slim-widths"))) or model.slim_widths or usual_widths(model)
        model = validated(ModelConfig, {**model.model_dump(), "slim_widths": widths}, f"{name}, slimmable")
    elif slim_widths is not None or plan is not None:
        raise UsageError(f"--{'plan' if slim_widths is None else 'slim-widths'} is of --slimmable", "give both")
    else:
        model = model.model_copy(update={"slim_widths": ()})
    calling = None if plan is None else load_plan(plan)
    samples = read_samples(image_settings(given), model, autoencoder, TERMINAL, begun)
    if samples.labels is not None and model.num_classes is None and begun is not None:
        raise UsageError(f"{name} knows no classes", "leave --labels out")
    if samples.labels is not None and model.num_classes is None:
        model = model.model_copy(update={"num_classes": int(samples.labels.max()) + 1})
    with progress(f"training {name}") as update:
        fit(
            model, schedule, prediction, samples, config, output, start=None if begun is None else begun.checkpoint, plan=calling,
            overwrite=overwrite, observe=lambda p: update(p.step, p.steps, str(p)),
        )  # fmt: skip
    say(f"wrote {Path(output) / CHECKPOINT}")
