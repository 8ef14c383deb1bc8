"""Diffusers' schedulers as a reference in float64, and a stand-in for a denoiser to run them on."""

from typing import Any

import numpy as np
import torch

from edge_sd.diffusion import NoiseSchedule

SHAPE = (2, 3, 8, 8)
SCHEDULE = {"linear": "linear", "scaled_linear": "scaled_linear", "cosine": "squaredcos_cap_v2"}
PREDICTION = {"epsilon": "epsilon", "v": "v_prediction", "x0": "sample"}


def model(x: np.ndarray, t: float) -> np.ndarray:
    """A smooth, nonlinear, non-local stand-in for a denoiser: the solvers do not care, and float64 shows every digit."""
    return np.tanh(1.3 * x + 0.001 * t) * 0.9 + 0.1 * np.roll(x, 1, -1)


class Double(torch.Tensor):
    """A float64 tensor that stays one: DPM-Solver's step casts its sample to float32, which alone costs 1e-6 over 50 steps."""

    def to(self, *args: Any, **kwargs: Any) -> "Double":
        return self


def their_trajectory(
    scheduler: Any, schedule: NoiseSchedule, steps: int, **step_arguments: Any
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Run diffusers' scheduler in float64 (it keeps its levels in float32, which alone would cost 1e-6)."""
    abar = torch.from_numpy(schedule.alpha_bar(np.arange(schedule.timesteps)))
    torch.testing.assert_close(scheduler.alphas_cumprod, abar.float(), rtol=2e-4, atol=1e-7)
    scheduler.alphas_cumprod = abar
    scheduler.set_timesteps(steps)
    if hasattr(scheduler, "sigmas"):
        at = abar[scheduler.timesteps.long()]
        scheduler.sigmas = torch.cat([((1 - at) / at).sqrt(), torch.zeros(1, dtype=torch.float64)])
    x = torch.from_numpy(np.random.default_rng(0).standard_normal(SHAPE)).as_subclass(Double)
    points = []
    for t in scheduler.timesteps:
        points.append(x.numpy())
        x = scheduler.step(torch.from_numpy(model(x.numpy(), float(t))).as_subclass(Double), t, x, **step_arguments).prev_sample
    return x.numpy(), points
