"""Spectrum-aware distillation: a student that follows a teacher in space and in frequency (2211.17106)."""

from typing import Any, cast

import torch
from torch import Tensor, nn

from edge_sd.diffusion.plan import Prediction
from edge_sd.diffusion.schedule import NoiseSchedule
from edge_sd.errors import EdgeSDError
from edge_sd.models.unet import SpectralUNet
from edge_sd.training.config import DistillConfig
from edge_sd.training.learner import DenoiseLearner
from edge_sd.training.spectral import frequency_distance, frequency_weights


class DistillLearner(DenoiseLearner):
    """Denoising, and following a teacher in space and in frequency (2211.17106, section "spectrum-aware distillation").

    Student and teacher see the same x_t and t. Compared are their outputs and, at each resolution of the encoder and the
    decoder that both have, their last feature maps, the student's through a 1×1 convolution (dropped afterwards). A pair of
    feature maps counts relative to the mean square of the teacher's for that sample, pairs are averaged: so λ means the same
    for every model, and the loss of a batch is the mean of its samples'.
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
        if teacher.config.num_classes != model.config.num_classes:
            raise EdgeSDError(
                f"the teacher knows {teacher.config.num_classes} classes, the student {model.config.num_classes}",
                "give both the same num_classes",
            )
        self.distill = config
        self._companions = (teacher.eval().requires_grad_(False),)  # in a tuple: no part of this module's state
        self.pairs: list[str] = []
        self.aligners = nn.ModuleList()
        if config.follows:
            theirs, ours = _tap_shapes(teacher), _tap_shapes(model)
            self.pairs = [name for name in ours if name in theirs and ours[name][1:] == theirs[name][1:]]
            self.aligners.extend(nn.Conv2d(ours[name][0], theirs[name][0], 1) for name in self.pairs)

    @property
    def companions(self) -> tuple[SpectralUNet]:
        """The teacher."""
        return self._companions

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "distill": self.distill.model_dump(mode="json")}

    def forward(self, x0: Tensor, noise: Tensor, t: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        if not self.distill.follows:  # the ablation's plain training: no teacher is run
            return super().forward(x0, noise, t, labels)
        x_t, target = self.noised(x0, noise, t)
        (teacher,) = self.companions
        with torch.no_grad():
            goal, goal_taps = teacher.denoise_with_taps(x_t, teacher.temporal(t.float(), labels))
        out, taps = self.model.denoise_with_taps(x_t, self.model.temporal(t.float(), labels))
        differences = [(out - goal).float()]
        for name, aligner in zip(self.pairs, self.aligners, strict=True):
            goal_tap = goal_taps[name].float()
            scale = goal_tap.square().mean((1, 2, 3), keepdim=True).clamp_min(1e-12).rsqrt()
            differences.append((cast(Tensor, aligner(taps[name])).float() - goal_tap) * scale)
        terms = {"denoise": (out.float() - target).square().mean()}
        if self.distill.spatial_weight:
            spatial = torch.stack([difference.square().mean() for difference in differences]).mean()
            terms["spatial"] = self.distill.spatial_weight * spatial
        if self.distill.frequency_weight:
            sizes = [(d.shape[-2], d.shape[-1]) for d in differences]
            omega = {size: frequency_weights(x0, size, self.distill) for size in set(sizes)}
            distances = [frequency_distance(d, omega[size]) for d, size in zip(differences, sizes, strict=True)]
            terms["frequency"] = self.distill.frequency_weight * torch.stack(distances).mean()
        return terms


def _tap_shapes(model: SpectralUNet) -> dict[str, tuple[int, ...]]:
    """(c, h, w) of each of the model's taps, found by a run without arithmetic."""
    with torch.device("meta"):
        shadow = SpectralUNet(model.config)
        x, features = torch.empty(1, *model.config.sample_shape), torch.empty(1, model.feature_width)
        return {name: tuple(tap.shape[1:]) for name, tap in shadow.denoise_with_taps(x, features)[1].items()}
