"""Noise schedules on continuous time: how much of the image is left at timestep t.

x_t = √ᾱ(t)·x_0 + √(1−ᾱ(t))·ε, with t in training timesteps, 0 (nearly clean) to T−1 (nearly noise), any real number between.
"""

from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field, model_validator
from typing_extensions import Self

from edge_sd.errors import UsageError
from edge_sd.validation import Record


class NoiseSchedule(Record):
    """ᾱ(t) of a variance-preserving process.

    At integer t it is the discrete product Π(1−β_i), i ≤ t; between them log ᾱ is interpolated linearly, which keeps ᾱ
    continuous and strictly decreasing.

    Attributes:
        kind: "linear" β (DDPM, 2006.11239), "scaled_linear" √β (latent diffusion, 2112.10752) or "cosine" ᾱ (2102.09672).
        beta_start, beta_end: of the first two kinds.
        timesteps: T, the number of timesteps it was trained with.
    """

    kind: Literal["linear", "scaled_linear", "cosine"] = "linear"
    beta_start: float = Field(default=1e-4, gt=0, lt=1)
    beta_end: float = Field(default=0.02, gt=0, lt=1)
    timesteps: int = Field(default=1000, ge=2, le=100_000)

    @model_validator(mode="after")
    def _increasing(self) -> Self:
        if self.beta_end < self.beta_start:
            raise ValueError(f"beta_end {self.beta_end} is below beta_start {self.beta_start}")
        first, last = np.exp(_log_alpha_bars(self)[[0, -1]])
        if not (first < 1 and last > 0):
            raise ValueError(f"ᾱ runs from {first:g} to {last:g}: float64 must be able to tell it from 1 and from 0")
        return self

    def alpha_bar(self, t: ArrayLike) -> NDArray[np.float64]:
        """ᾱ(t) in (0, 1), float64, of t's shape.

        Raises:
            UsageError: a t outside [0, T−1].
        """
        times = np.asarray(t, dtype=np.float64)
        if times.size and not (times.min() >= 0 and times.max() <= self.timesteps - 1):
            raise UsageError(
                f"timesteps {times.min():g}–{times.max():g} leave the schedule's range 0–{self.timesteps - 1}",
                "give times inside it",
            )
        return np.exp(np.interp(times, np.arange(self.timesteps), _log_alpha_bars(self)))


@lru_cache
def _log_alpha_bars(schedule: NoiseSchedule) -> NDArray[np.float64]:
    """log ᾱ at t = 0 … T−1."""
    if schedule.kind == "cosine":
        s = 0.008
        f = np.cos((np.arange(schedule.timesteps + 1) / schedule.timesteps + s) / (1 + s) * np.pi / 2) ** 2
        betas = np.minimum(1 - f[1:] / f[:-1], 0.999)
    elif schedule.kind == "scaled_linear":
        betas = np.linspace(schedule.beta_start**0.5, schedule.beta_end**0.5, schedule.timesteps) ** 2
    else:
        betas = np.linspace(schedule.beta_start, schedule.beta_end, schedule.timesteps)
    return np.cumsum(np.log1p(-betas))


SCHEDULES: dict[str, NoiseSchedule] = {
    "linear": NoiseSchedule(),
    "cosine": NoiseSchedule(kind="cosine"),
    # Latent diffusion calls √β linear "linear"; Church has its own end.
    "ldm": NoiseSchedule(kind="scaled_linear", beta_start=0.0015, beta_end=0.0195),
    "ldm-church": NoiseSchedule(kind="scaled_linear", beta_start=0.0015, beta_end=0.0155),
}
