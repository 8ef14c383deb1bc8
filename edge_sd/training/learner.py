"""What is learnt from a batch: modules whose forward returns the terms of the loss.

The loss is computed inside `forward`, so that a wrapper for many processes sees one call and all parameters, aligners too.
"""

from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from edge_sd.diffusion.plan import Prediction
from edge_sd.diffusion.schedule import NoiseSchedule
from edge_sd.errors import EdgeSDError
from edge_sd.models.unet import SpectralUNet
from edge_sd.training.config import DistillConfig
from edge_sd.training.spectral import frequency_distance, frequency_weights


class Learner(nn.Module):
    """Plain denoising: the mean square error of the prediction (2006.11239, equation 14, for ε; 2202.00512 for v)."""

    alpha: Tensor
    sigma: Tensor

    def __init__(self, model: SpectralUNet, schedule: NoiseSchedule, prediction: Prediction) -> None:
        super().__init__()
        self.model, self.prediction = model, prediction
        alpha_bar = torch.from_numpy(schedule.alpha_bar(np.arange(schedule.timesteps)))
        self.register_buffer("alpha", alpha_bar.sqrt().float(), persistent=False)
        self.register_buffer("sigma", (1 - alpha_bar).sqrt().float(), persistent=False)

    @property
    def companions(self) -> tuple[nn.Module, ...]:
        """Frozen modules that are no part of this one's state but work on the same device."""
        return ()

    def settings(self) -> dict[str, Any]:
        """What, besides data and schedule, decides what is learnt; JSON-able."""
        return {"model": self.model.config.model_dump(mode="json"), "prediction": self.prediction}

    def noised(self, x0: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return x_t and what the model is to predict of it."""
        alpha, sigma = self.alpha[t][:, None, None, None], self.sigma[t][:, None, None, None]
        target = {"epsilon": noise, "v": alpha * noise - sigma * x0, "x0": x0}[self.prediction]
        return alpha * x0 + sigma * noise, target

    def forward(self, x0: Tensor, noise: Tensor, t: Tensor) -> dict[str, Tensor]:
        """Terms of the loss, already weighted: their sum is what is minimised."""
        x_t, target = self.noised(x0, noise, t)
        return {"denoise": (self.model(x_t, t.float()).float() - target).square().mean()}


class DistillLearner(Learner):
    """Denoising, and following a teacher in space and in frequency (2211.17106, section "spectrum-aware distillation").

    Student and teacher see the same x_t and t. Compared are their outputs and, at each resolution of the encoder and the
    decoder that both have, their last feature maps, the student's through a 1×1 convolution (dropped afterwards). A pair of
    feature maps counts relative to the teacher's mean square, pairs are averaged: so λ means the same for every model.
    """

    def __init__(
        self, model: SpectralUNet, schedule: NoiseSchedule, prediction: Prediction, teacher: SpectralUNet, config: DistillConfig
    ) -> None:
        super().__init__(model, schedule, prediction)
        if teacher.config.sample_shape != model.config.sample_shape:
            raise EdgeSDError(
                f"the teacher denoises {teacher.config.sample_shape}, the student {model.config.sample_shape}",
                "a preset of the teacher's size",
            )
        self.distill = config
        self._companions = (teacher.eval().requires_grad_(False),)  # in a tuple: no part of this module's state
        theirs, ours = _tap_shapes(teacher), _tap_shapes(model)
        self.pairs = [name for name in ours if name in theirs and ours[name][1:] == theirs[name][1:]]
        self.aligners = nn.ModuleList(nn.Conv2d(ours[name][0], theirs[name][0], 1) for name in self.pairs)

    @property
    def companions(self) -> tuple[SpectralUNet]:
        """The teacher."""
        return self._companions

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "distill": self.distill.model_dump(mode="json")}

    def forward(self, x0: Tensor, noise: Tensor, t: Tensor) -> dict[str, Tensor]:
        x_t, target = self.noised(x0, noise, t)
        (teacher,) = self.companions
        with torch.no_grad():
            goal, goal_taps = teacher.denoise_with_taps(x_t, teacher.temporal(t.float()))
        out, taps = self.model.denoise_with_taps(x_t, self.model.temporal(t.float()))
        differences = [(out - goal).float()]
        for name, aligner in zip(self.pairs, self.aligners, strict=True):
            scale = goal_taps[name].float().square().mean().clamp_min(1e-12).rsqrt()
            differences.append((cast(Tensor, aligner(taps[name])) - goal_taps[name]).float() * scale)
        spatial = torch.stack([difference.square().mean() for difference in differences]).mean()
        omega = {size: frequency_weights(x0, size, self.distill) for size in {(d.shape[-2], d.shape[-1]) for d in differences}}
        frequency = torch.stack([frequency_distance(d, omega[d.shape[-2], d.shape[-1]]) for d in differences]).mean()
        return {
            "denoise": (out.float() - target).square().mean(),
            "spatial": self.distill.spatial_weight * spatial,
            "frequency": self.distill.frequency_weight * frequency,
        }


def _tap_shapes(model: SpectralUNet) -> dict[str, tuple[int, ...]]:
    """(c, h, w) of each of the model's taps, found by a run without arithmetic."""
    with torch.device("meta"):
        shadow = SpectralUNet(model.config)
        x, features = torch.empty(1, *model.config.sample_shape), torch.empty(1, model.feature_width)
        return {name: tuple(tap.shape[1:]) for name, tap in shadow.denoise_with_taps(x, features)[1].items()}
