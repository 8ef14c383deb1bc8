"""`edge-sd train`: a model from images alone."""

from pathlib import Path

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
    preset: option.PresetName = "tiny16",
    size: option.Size = None,
    steps: option.Steps = 10_000,
    batch_size: option.BatchSize = 32,
    learning_rate: option.LearningRate = 1e-3,
    warmup: option.Warmup = 50,
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
    """Train a model from scratch. Killed at any moment, the same command goes on.

    Example: edge-sd train --data photos/ --resize --preset small64 --steps 50000 -o runs/teacher
    """
    given = dict(locals())
    from edge_sd.cli._console import progress, say
    from edge_sd.diffusion import SCHEDULES
    from edge_sd.training import TrainConfig, fit
    from edge_sd.training.loop import CHECKPOINT

    chosen, model = option.model_of(preset, size)
    config = option.pick(TrainConfig, given, "training settings")
    samples = latent.read_samples(given, model, autoencoder)
    if samples.labels is not None and model.num_classes is None:
        model = model.model_copy(update={"num_classes": int(samples.labels.max()) + 1})
    with progress(f"training {preset}") as update:
        fit(
            model, SCHEDULES[chosen.schedule], chosen.prediction, samples, config, output, overwrite=overwrite,
            observe=lambda p: update(p.step, p.steps, str(p)),
        )  # fmt: skip
    say(f"wrote {Path(output) / CHECKPOINT}")
