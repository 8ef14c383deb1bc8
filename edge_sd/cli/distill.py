"""`edge-sd distill`: a slim student that follows a teacher in space and in frequency."""

from pathlib import Path
from typing import Annotated

import typer

from edge_sd.cli import _latents as latent
from edge_sd.cli import _options as option


def distill(
    teacher: Annotated[Path, typer.Option("--teacher", help="Checkpoint or diffusers folder to follow, or a shipped model.")],
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
    preset: option.PresetName = "tiny16",
    size: option.Size = None,
    steps: option.Steps = 10_000,
    batch_size: option.BatchSize = 32,
    learning_rate: option.LearningRate = 1e-3,
    warmup: option.Warmup = 50,
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
    from edge_sd.cli._console import progress, say
    from edge_sd.foreign import open_model
    from edge_sd.training import DistillConfig, TrainConfig
    from edge_sd.training import distill as distill_from
    from edge_sd.training.loop import CHECKPOINT

    _, model = option.model_of(preset, size)
    config = option.pick(TrainConfig, given, "training settings")
    distillation = option.pick(DistillConfig, given, "distillation settings")
    followed = open_model(option.shipped(teacher))
    if model.num_classes is None:
        model = model.model_copy(update={"num_classes": followed.checkpoint.header.model.num_classes})
    samples = latent.read_samples(given, model, autoencoder, followed)
    with progress(f"distilling {preset}") as update:
        distill_from(
            model, followed.checkpoint, samples, config, distillation, output, overwrite=overwrite,
            observe=lambda p: update(p.step, p.steps, str(p)),
        )  # fmt: skip
    say(f"wrote {Path(output) / CHECKPOINT}")
