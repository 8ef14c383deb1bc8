"""A slim student that follows a teacher."""

from pathlib import Path
from typing import TYPE_CHECKING

from edge_sd.api.observer import SILENT, Observer

if TYPE_CHECKING:
    from edge_sd.checkpoint import Checkpoint


def distill(
    teacher: str | Path,
    output: str | Path,
    *,
    data: str = "dead-leaves",
    resize: bool = False,
    split: str | None = None,
    labels: bool = False,
    label_column: str | None = None,
    image_column: str | None = None,
    limit: int | None = None,
    max_broken: int | None = None,
    crop: int = 0,
    cache: str | Path | None = None,
    count: int = 4096,
    min_radius: float = 1.0,
    autoencoder: str | Path | None = None,
    preset: str = "tiny16",
    size: int | None = None,
    steps: int = 10_000,
    batch_size: int = 32,
    learning_rate: float = 1e-3,
    warmup: int = 50,
    ema_decay: float = 0.995,
    flip: bool = True,
    spatial_weight: float = 0.1,
    frequency_weight: float = 0.1,
    alpha: float = -1.0,
    precision: str = "auto",
    accumulate: int = 1,
    compile: bool = False,
    channels_last: str = "auto",
    checkpoint_activations: bool = False,
    seed: int = 0,
    save_every: int = 250,
    sample_every: int = 250,
    overwrite: bool = False,
    observer: Observer = SILENT,
) -> "Checkpoint":
    """Distil a student from a teacher (Spectral Diffusion, 2211.17106); what `edge-sd distill` does, with its arguments.

    Args:
        teacher: checkpoint, diffusers folder or shipped model.
        output: folder; killed at any moment, the same call goes on.

    Returns:
        The student, as it lies in `output`.

    Raises:
        UsageError: arguments that do not go together.
        EdgeSDError: images cannot be read, or the folder holds a run with other settings.
    """
    given = dict(locals())
    from edge_sd.api.images import image_settings, read_samples
    from edge_sd.api.settings import model_of, pick
    from edge_sd.foreign import open_model
    from edge_sd.pretrained import model_path
    from edge_sd.training import DistillConfig, TrainConfig
    from edge_sd.training import distill as distill_from

    _, model = model_of(preset, size)
    config = pick(TrainConfig, given, "training settings")
    distillation = pick(DistillConfig, given, "distillation settings")
    followed = open_model(model_path(teacher))
    if model.num_classes is None:
        model = model.model_copy(update={"num_classes": followed.checkpoint.header.model.num_classes})
    codec = None if autoencoder is None else Path(autoencoder)
    samples = read_samples(image_settings(given), model, codec, observer, followed)
    with observer.progress(f"distilling {preset}") as update:
        return distill_from(
            model, followed.checkpoint, samples, config, distillation, Path(output), overwrite=overwrite,
            observe=lambda p: update(p.step, p.steps, str(p)),
        )  # fmt: skip
