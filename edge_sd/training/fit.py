"""Training and distillation from settings to checkpoint; what `edge-sd train` and `edge-sd distill` call."""

from collections.abc import Callable
from pathlib import Path

import torch

from edge_sd.checkpoint import Checkpoint, Provenance
from edge_sd.data.sources import ImageData
from edge_sd.diffusion.plan import Prediction
from edge_sd.diffusion.schedule import NoiseSchedule
from edge_sd.errors import UsageError
from edge_sd.models.config import ModelConfig
from edge_sd.models.unet import SpectralUNet
from edge_sd.training.config import DistillConfig, TrainConfig
from edge_sd.training.learner import DistillLearner, Learner
from edge_sd.training.loop import Progress, train


def fit(
    model: ModelConfig,
    schedule: NoiseSchedule,
    prediction: Prediction,
    data: ImageData,
    config: TrainConfig,
    out: Path,
    *,
    overwrite: bool = False,
    observe: Callable[[Progress], None] = lambda progress: None,
) -> Checkpoint:
    """Train a model from scratch; see `loop.train` for what `out` receives, for resuming and for errors."""
    _refuse_other_data(model, data)
    torch.manual_seed(config.seed)
    learner = Learner(SpectralUNet(model), schedule, prediction)
    return train(learner, schedule, data, config, out, Provenance(made_by="train"), overwrite=overwrite, observe=observe)


def distill(
    model: ModelConfig,
    teacher: Checkpoint,
    data: ImageData,
    config: TrainConfig,
    distillation: DistillConfig,
    out: Path,
    *,
    overwrite: bool = False,
    observe: Callable[[Progress], None] = lambda progress: None,
) -> Checkpoint:
    """Train a student that follows `teacher`, whose noise schedule and prediction it takes over."""
    _refuse_other_data(model, data)
    torch.manual_seed(config.seed)
    schedule, prediction = teacher.header.noise_schedule, teacher.header.prediction
    learner = DistillLearner(SpectralUNet(model), schedule, prediction, teacher.build(), distillation)
    provenance = Provenance(made_by="distill", parents={"teacher": teacher.header.digest})
    return train(learner, schedule, data, config, out, provenance, overwrite=overwrite, observe=observe)


def _refuse_other_data(model: ModelConfig, data: ImageData) -> None:
    if model.num_classes is not None or model.context_dim is not None:
        raise UsageError("images alone have no classes to train a class-conditional model with", "an unconditional preset")
    shape = data.pixels.shape[1:]
    if model.sample_shape != shape or model.out_channels != model.in_channels:
        raise UsageError(
            f"the images are {shape}, the model takes {model.sample_shape} and returns {model.out_channels} channels",
            "a preset in pixel space, of the images' size: edge-sd list presets",
        )
