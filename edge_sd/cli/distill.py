"""`edge-sd distill`: a slim student that follows a teacher in space and in frequency."""

from pathlib import Path
from typing import Annotated

import typer

from edge_sd.cli import _latents as latent
from edge_sd.cli import _options as option


def distill(
    teacher: Annotated[Path, typer.Option("--teacher", help="Checkpoint or diffusers folder to follow, or a shipped model.")],
    output: option.OutFolder,
    data: option.Source = "dead-leaves",
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
    preset: option.PresetName = "tiny16",
    size: option.Size = None,
    steps: option.Steps = 10_000,
    batch_size: option.BatchSize = 32,
    learning_rate: option.LearningRate = 1e-3,
    warmup: option.Warmup = 50,
    ema_decay: option.EmaDecay = 0.995,
    flip: option.Flip = True,
    spatial_weight: Annotated[float, typer.Option("--spatial-weight", help="λ_s of the loss.")] = 0.1,
    frequency_weight: Annotated[float, typer.Option("--frequency-weight", help="λ_f of the loss.")] = 0.1,
    alpha: Annotated[float, typer.Option("--alpha", help="Exponent of the clean spectrum in the frequency weights.")] = -1.0,
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
    """Distil a student from a teacher (Spectral Diffusion, 2211.17106). Killed at any moment, the same command goes on.

    Example: edge-sd distill --teacher runs/teacher/checkpoint.safetensors --preset small64 --data photos/ -o runs/student
    """
    given = dict(locals())
    from edge_sd.api import distill as distill_student
    from edge_sd.cli._console import TERMINAL, say
    from edge_sd.training.loop import CHECKPOINT

    distill_student(**given, observer=TERMINAL)
    say(f"wrote {output / CHECKPOINT}")
