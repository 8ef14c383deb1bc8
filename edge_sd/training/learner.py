"""What the loop trains: a module whose forward returns the terms of the loss, and that knows its batches and its result.

The loss is computed inside `forward`, so that a wrapper for many processes sees one call and all parameters, aligners too.
Every term is a mean over the batch of something that each sample has by itself: shares and slices of a batch then add up.
"""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edge_sd.checkpoint import Checkpoint, Provenance, load_checkpoint
from edge_sd.diffusion.plan import Prediction
from edge_sd.diffusion.schedule import NoiseSchedule
from edge_sd.diffusion.solvers import compile_plan
from edge_sd.errors import UsageError
from edge_sd.models.blocks import ResBlock
from edge_sd.models.unet import SpectralUNet, UNetLayer
from edge_sd.sampling import sample_model
from edge_sd.training.batches import draw_batch
from edge_sd.training.config import TrainConfig
from edge_sd.training.samples import Samples

PREVIEWS = 16


class Header(Protocol):
    """Of a file of weights."""

    @property
    def provenance(self) -> Provenance:
        """The path that led to them."""


class Result(Protocol):
    """Weights that can be written: a `Checkpoint` or an `AutoencoderFile`."""

    @property
    def header(self) -> Header:
        """What the file says of them."""

    def save(self, path: Path) -> None:
        """Write the file, atomically."""


class Learner(nn.Module, ABC):
    """One thing that can be trained.

    Attributes:
        model: the part of it whose averaged weights are the result.
        result_name: the result's file.
        units: classes of the model's blocks: what is computed again as a whole (activation checkpointing), and kept together
            where weights are spread over processes (FSDP).
        splits_weights: whether they can be spread so; a learner that cuts pieces out of weights needs them whole.
    """

    model: nn.Module
    result_name: str
    units: tuple[type[nn.Module], ...] = ()
    splits_weights: bool = True

    @property
    def companions(self) -> tuple[nn.Module, ...]:
        """Frozen modules that are no part of this one's state but work on the same device."""
        return ()

    @property
    def random(self) -> bool:
        """Whether forward draws random numbers (dropout): then other processes or slices learn something else."""
        return any(isinstance(module, nn.Dropout) and module.p > 0 for module in self.model.modules())

    @property
    def _no_split_modules(self) -> list[str]:
        """The names under which accelerate looks for `units` where the launcher was told none."""
        found = {type(module) for module in self.model.modules()}
        return [unit.__name__ for unit in self.units if unit in found]

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What, besides data and training settings, decides what is learnt; JSON-able."""

    @abstractmethod
    def draw(self, samples: Samples, config: TrainConfig, step: int, share: slice) -> tuple[Tensor, ...]:
        """One process's share of a step's batch, as `forward` takes it: a function of the seed and the step."""

    @abstractmethod
    def finish(self, model: nn.Module, samples: Samples, provenance: Provenance) -> Result:
        """The result, of the model with averaged weights."""

    @abstractmethod
    def load(self, path: Path) -> Result:
        """Read a result again."""

    @abstractmethod
    def preview(self, model: nn.Module, samples: Samples, seed: int) -> NDArray[np.uint8]:
        """Pictures (B, H, W, 3) that show how far the model is."""


class DenoiseLearner(Learner):
    """Plain denoising: the mean square error of the prediction (2006.11239, equation 14, for ε; 2202.00512 for v)."""

    alpha: Tensor
    sigma: Tensor
    result_name = "checkpoint.safetensors"
    units = (UNetLayer, ResBlock)

    def __init__(self, model: SpectralUNet, schedule: NoiseSchedule, prediction: Prediction) -> None:
        super().__init__()
        self.model: SpectralUNet = model
        self.schedule: NoiseSchedule = schedule
        self.prediction: Prediction = prediction
        alpha_bar = torch.from_numpy(schedule.alpha_bar(np.arange(schedule.timesteps)))
        self.register_buffer("alpha", alpha_bar.sqrt().float(), persistent=False)
        self.register_buffer("sigma", (1 - alpha_bar).sqrt().float(), persistent=False)

    def settings(self) -> dict[str, Any]:
        return {
            "model": self.model.config.model_dump(mode="json"),
            "prediction": self.prediction,
            "noise_schedule": self.schedule.model_dump(mode="json"),
        }

    def draw(self, samples: Samples, config: TrainConfig, step: int, share: slice) -> tuple[Tensor, ...]:
        batch = draw_batch(samples, self.schedule.timesteps, config, step, share)
        if self.model.config.num_classes is None:
            return batch.x0, batch.noise, batch.t
        if batch.labels is None:
            raise UsageError("the model is to learn classes, and the data have no labels", "give data with labels, and --labels")
        return batch.x0, batch.noise, batch.t, batch.labels

    def noised(self, x0: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return x_t and what the model is to predict of it."""
        alpha, sigma = self.alpha[t][:, None, None, None], self.sigma[t][:, None, None, None]
        target = {"epsilon": noise, "v": alpha * noise - sigma * x0, "x0": x0}[self.prediction]
        return alpha * x0 + sigma * noise, target

    def forward(self, x0: Tensor, noise: Tensor, t: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Terms of the loss, already weighted: their sum is what is minimised."""
        x_t, target = self.noised(x0, noise, t)
        return {"denoise": (self.model(x_t, t.float(), labels).float() - target).square().mean()}

    def finish(self, model: nn.Module, samples: Samples, provenance: Provenance) -> Checkpoint:
        return Checkpoint.of(cast(SpectralUNet, model), self.schedule, self.prediction, provenance)

    def load(self, path: Path) -> Checkpoint:
        return load_checkpoint(path)

    def preview(self, model: nn.Module, samples: Samples, seed: int) -> NDArray[np.uint8]:
        denoiser = cast(SpectralUNet, model)
        plan = compile_plan(self.schedule, 20, solver="dpmpp", prediction=self.prediction)
        label = None if denoiser.config.num_classes is None else 0
        return samples.pictures(sample_model(denoiser, plan, seed=seed, count=PREVIEWS, label=label))
