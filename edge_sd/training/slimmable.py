"""Sandwich training: one set of weights that works at several widths (DDSM, 2310.03337, section 3.2; 1903.05134)."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from edge_sd.diffusion.plan import Plan, Prediction
from edge_sd.diffusion.schedule import NoiseSchedule
from edge_sd.errors import UsageError
from edge_sd.files import tensors_digest
from edge_sd.models.slim import SlimDenoiser
from edge_sd.models.unet import SpectralUNet
from edge_sd.training.batches import draw_choice
from edge_sd.training.config import TrainConfig
from edge_sd.training.learner import DenoiseLearner
from edge_sd.training.samples import Samples


class SlimmableLearner(DenoiseLearner):
    """Denoising at the full width, while narrow widths learn from it what it says of the same noisy images.

    In each step the smallest width learns, and one between it and the full one that is drawn anew. Taught by the full width
    (in-place distillation, 1903.05134, section 3.2; DDSM's code lets each width learn from the noise by itself) they are spared
    the variance of the target.

    Args:
        plan: one with widths. Each narrow width then learns in every step, and only of the timesteps that are nearest to those
            at which the plan calls it.

    Raises:
        UsageError: the model has no slim widths, or the plan has none or others.
    """

    splits_weights = False

    def __init__(self, model: SpectralUNet, schedule: NoiseSchedule, prediction: Prediction, plan: Plan | None = None) -> None:
        super().__init__(model, schedule, prediction)
        if not model.config.slim_widths:
            raise UsageError("the model has no slim widths to train", "give some")
        self.widths = model.config.slim_widths
        self.plan = plan
        called = None if plan is None else timesteps_of_widths(plan, schedule.timesteps)
        if called is not None and not set(called) <= {*self.widths, model.config.width}:
            known = ", ".join(map(str, (*self.widths, model.config.width)))
            raise UsageError(f"the plan calls widths {sorted(called)}, the model has {known}", "--slim-widths as in the plan")
        if called is not None:
            self.widths = tuple(width for width in self.widths if width in called)
        everywhere = np.ones(schedule.timesteps, dtype=bool)
        for width in self.widths:
            self.register_buffer(
                f"called{width}", torch.from_numpy(called[width] if called is not None else everywhere), persistent=False
            )
        self._companions = tuple(SlimDenoiser(model, width).train() for width in self.widths)  # in a tuple: no part of the state

    @property
    def companions(self) -> tuple[SlimDenoiser, ...]:
        """The narrow networks, which take their weights from the full one at each call."""
        return self._companions

    def settings(self) -> dict[str, Any]:
        plan = {} if self.plan is None else {"plan": tensors_digest(self.plan.columns)}
        return {**super().settings(), "slimmable": "sandwich, taught by the full width", **plan}

    def draw(self, samples: Samples, config: TrainConfig, step: int, share: slice) -> tuple[Tensor, ...]:
        x0, noise, t, *labels = super().draw(samples, config, step, share)
        between = 1 + draw_choice(config, step, max(1, len(self.widths) - 1))
        # The index stands once for each sample, as everything here that may be cut into slices.
        return x0, noise, t, torch.full((len(x0),), between), *labels

    def forward(  # type: ignore[override]
        self, x0: Tensor, noise: Tensor, t: Tensor, between: Tensor, labels: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Terms of the loss by width: of the full one against the target, of narrow ones against the full one.

        Args:
            between: (B,), all the same: which of the narrow widths learns beside the smallest where no plan says it.
        """
        weights = dict(self.model.named_parameters())
        x_t, target = self.noised(x0, noise, t)
        features = self.model.temporal(t.float(), labels)
        full = self.model.denoise(x_t, features)
        terms = {"full": (full.float() - target).square().mean()}
        every = range(len(self.widths))
        for index in every if self.plan is not None else sorted({0, min(int(between[0]), len(self.widths) - 1)}):
            called: Tensor = getattr(self, f"called{self.widths[index]}")
            chosen = called[t].nonzero()[:, 0]
            if not len(chosen):
                continue
            out = self._companions[index].denoise_with(weights, x_t[chosen], features[chosen])
            apart = (out.float() - full[chosen].detach().float()).square().flatten(1).mean(dim=1)
            # A mean over the whole batch, so that shares and slices of it add up, and over the timesteps that count.
            terms[f"width {self.widths[index]}"] = apart.sum() / len(t) / called.float().mean()
        return terms


def timesteps_of_widths(plan: Plan, timesteps: int) -> dict[int, np.ndarray]:
    """Which timesteps each width of a plan is nearest to, (T,) bool by width; together they are all.

    Raises:
        UsageError: the plan has no widths.
    """
    widths = np.array(plan.step_widths)
    nearest = np.abs(np.arange(timesteps)[:, None] - plan.timestep[None]).argmin(axis=1)
    return {int(width): widths[nearest] == width for width in dict.fromkeys(widths)}
