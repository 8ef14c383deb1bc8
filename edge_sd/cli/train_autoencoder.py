"""`edge-sd train-autoencoder`: images to small latents and back, for latent diffusion."""

from pathlib import Path
from typing import Annotated

import typer

from edge_sd.cli import _options as option


def train_autoencoder(
    output: option.OutFolder,
    source: option.Source = "dead-leaves",
    resize: option.Resize = False,
    split: option.Split = None,
    image_column: option.ImageColumn = None,
    limit: option.Limit = None,
    max_broken: option.MaxBroken = None,
    crop: option.Crop = 0,
    cache: option.Cache = None,
    count: option.Count = 4096,
    min_radius: option.MinRadius = 1.0,
    size: Annotated[int, typer.Option("--size", help="Height and width of the images in pixels.", min=8)] = 64,
    factor: Annotated[int, typer.Option("--factor", help="How much coarser the latent is: 4 or 8.")] = 4,
    latent_channels: Annotated[int, typer.Option("--latent-channels", help="Channels of the latent.", min=1)] = 4,
    width: Annotated[int, typer.Option("--width", help="Channels at half the images' size.", min=1)] = 32,
    noise: Annotated[float, typer.Option("--noise", help="Deviation of the noise that the latent is made to stand.")] = 0.1,
    steps: option.Steps = 10_000,
    batch_size: option.BatchSize = 16,
    learning_rate: option.LearningRate = 2e-3,
    warmup: option.Warmup = 100,
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
    """Train an autoencoder; its decoder becomes part of the bundle. Killed at any moment, the same command goes on.

    Example: edge-sd train-autoencoder --data photos/ --resize --size 128 --factor 8 --steps 20000 -o runs/autoencoder
    """
    given = dict(locals())
    from edge_sd.api.images import image_settings, read_images
    from edge_sd.api.settings import pick
    from edge_sd.cli._console import TERMINAL, progress, say
    from edge_sd.models.autoencoder import AutoencoderConfig
    from edge_sd.training import TrainConfig, fit_autoencoder

    model = pick(AutoencoderConfig, given, "the autoencoder")
    config = pick(TrainConfig, {**given, "weight_decay": 0.0, "ema_decay": 0.999}, "training settings")
    images = read_images(image_settings(given), size, TERMINAL)
    with progress("training the autoencoder") as update:
        file = fit_autoencoder(
            model, images, config, output, overwrite=overwrite, observe=lambda p: update(p.step, p.steps, str(p))
        )
    stds = ", ".join(f"{value:.2f}" for value in file.weights["decoder.std"])
    say(f"wrote {Path(output) / 'autoencoder.safetensors'}; deviation of its latent, measured: {stds}")
