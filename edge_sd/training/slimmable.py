"""Sandwich training: one set of weights that works at several widths (DDSM, 2310.03337, section 3.2; 1903.05134)."""

from typing import Any

import torch
from torch import Tensor

from edge_sd.diffusion.plan import Prediction
from edge_sd.diffusion.schedule import NoiseSchedule
from edge_sd.errors import UsageError
from edge_sd.models.slim import SlimDenoiser
from edge_sd.models.unet import SpectralUNet
from edge_sd.training.batches import draw_passes
from edge_sd.training.config import TrainConfig
from edge_sd.training.learner import DenoiseLearner
from edge_sd.training.samples import Samples


class SlimmableLearner(DenoiseLearner):
    """Denoising at the full width, at the smallest, and at one between them, drawn anew at every step.

    All see the same images, each its own timesteps and noise; the gradients of their losses are added up. No width is taught by
    another (as in the authors' code).
    """

    splits_weights = False

    def __init__(self, model: SpectralUNet, schedule: NoiseSchedule, prediction: Prediction) -> None:
        super().__init__(model, schedule, prediction)
        if not model.config.slim_widths:
            raise UsageError("the model has no slim widths to train", "give some")
        self.widths = model.config.slim_widths
        self._companions = tuple(SlimDenoiser(model, width).train() for width in self.widths)  # in a tuple: no part of the state

    @property
    def companions(self) -> tuple[SlimDenoiser, ...]:
        """The narrow networks, which take their weights from the full one at each call."""
        return self._companions

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "slimmable": "sandwich"}

    def draw(self, samples: Samples, config: TrainConfig, step: int, share: slice) -> tuple[Tensor, ...]:
        passes = min(3, 1 + len(self.widths))
        between, x0, noise, t, labels = draw_passes(
            samples, self.schedule.timesteps, config, step, share, passes=passes, choices=max(1, len(self.widths) - 1)
        )
        # The index stands once for each sample, as everything here that may be cut into slices.
        drawn = (x0, noise, t, torch.full((len(x0),), 1 + between))
        return drawn if self.model.config.num_classes is None or labels is None else (*drawn, labels)

    def forward(  # type: ignore[override]
        self, x0: Tensor, noise: Tensor, t: Tensor, between: Tensor, labels: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Terms of the loss by pass.

        Args:
            noise: (B, passes, C, H, W).
            t: (B, passes).
            between: (B,), all the same: which of `widths` the third pass takes.
        """
        weights = dict(self.model.named_parameters())
        narrow = {"smallest": self.companions[0]}
        if t.shape[1] > 2:
            narrow["between"] = self.companions[int(between[0])]
        terms = {}
        for index, name in enumerate(("full", *narrow)):
            x_t, target = self.noised(x0, noise[:, index], t[:, index])
            features = self.model.temporal(t[:, index].float(), labels)
            out = self.model.denoise(x_t, features) if name == "full" else narrow[name].denoise_with(weights, x_t, features)
            terms[name] = (out.float() - target).square().mean()
        return terms
