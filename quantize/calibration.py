"""Calibration: inputs captured from the real denoising loop, under the plan that the quantized model is for.

Which steps they come from is a choice of the literature's: every step; uniform intervals (Q-Diffusion, 2302.04304); or steps
drawn from a skew-normal distribution that leans towards the image (PTQ4DM, 2211.15736).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from edge_sd.diffusion.execute import execute
from edge_sd.diffusion.noise import gaussian_batch
from edge_sd.diffusion.plan import Plan
from edge_sd.errors import EdgeSDError, UsageError
from edge_sd.files import read_tensors, tensors_digest, write_tensors
from edge_sd.models.unet import SpectralUNet
from edge_sd.sampling import plan_features
from edge_sd.validation import Record

Coverage = Literal["every", "uniform", "skew-normal"]
# PTQ4DM leans towards x_0; these put the mode at four fifths of the way, a spread of a third of it (our reading: METHODS 15).
_SKEW_MEAN, _SKEW_SPREAD, _SKEW_SHAPE = 0.9, 0.35, -2.0
_BATCH = 16
# Not that of anybody's samples or goldens.
SEED = 1000
MOST_TRAJECTORIES = 128
# Large maps have many values in each image: so many positions at full resolution are enough, and so many images at least.
_POSITIONS, _FEWEST_TRAJECTORIES = 32768, 16


def enough_trajectories(image_size: int) -> int:
    """How many images to draw for samples of a height and width."""
    return max(_FEWEST_TRAJECTORIES, min(MOST_TRAJECTORIES, _POSITIONS // image_size**2))


class CalibrationRequest(Record):
    """What to capture.

    Attributes:
        trajectories: how many images are drawn.
        coverage: which of a trajectory's steps are kept.
        interval: of "uniform": every so many steps.
        seed: of the noise, and of skew-normal steps.
    """

    trajectories: int = Field(default=MOST_TRAJECTORIES, ge=1)
    coverage: Coverage = "every"
    interval: int = Field(default=2, ge=1)
    seed: int = Field(default=SEED, ge=0)


class CalibrationHeader(Record):
    """The metadata of a calibration file: whose inputs they are, and what was asked for."""

    schema_version: Literal[1] = 1
    kind: Literal["calibration"] = "calibration"
    request: CalibrationRequest
    weights_digest: str  # of the model that drew them
    plan_digest: str  # of the plan's columns
    digest: str  # of the tensors below


@dataclass(frozen=True)
class Calibration:
    """Captured inputs of the denoiser.

    Attributes:
        samples: x before a step, (n, C, H, W) float32.
        rows: which step of the plan, (n,) int64, ascending.
        features: the time features it came with, (n, F) float32.
    """

    header: CalibrationHeader
    samples: NDArray[np.float32]
    rows: NDArray[np.int64]
    features: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def covered(self) -> list[int]:
        """The steps that there are inputs of."""
        return sorted(set(self.rows.tolist()))

    def spread(self, inputs: int) -> "Calibration":
        """At most so many of them, evenly over the steps."""
        chosen = np.unique(np.linspace(0, len(self) - 1, min(inputs, len(self))).round().astype(np.int64))
        return replace(self, samples=self.samples[chosen], rows=self.rows[chosen], features=self.features[chosen])

    def save(self, path: Path) -> None:
        """Write it as safetensors."""
        write_tensors(path, _tensors(self.samples, self.rows, self.features), self.header)


def _tensors(samples: np.ndarray, rows: np.ndarray, features: np.ndarray) -> dict[str, np.ndarray]:
    return {"samples": samples, "rows": rows, "features": features}


def covered_steps(request: CalibrationRequest, steps: int) -> list[list[int]]:
    """The steps that are kept of each trajectory.

    Every step of the plan; every `interval`-th, counted from the last so that the image's end is among them; or as many as there
    are steps, drawn with repetition avoided from a skew-normal distribution over the way from noise (0) to image (1).
    """
    every = list(range(steps))
    if request.coverage == "every":
        return [every] * request.trajectories
    if request.coverage == "uniform":
        return [every[:: -request.interval][::-1]] * request.trajectories
    places = (np.arange(steps) + 0.5) / steps
    z = (places - _SKEW_MEAN) / _SKEW_SPREAD
    weight = np.exp(-(z**2) / 2) * (1 + np.array([math.erf(_SKEW_SHAPE * value / math.sqrt(2)) for value in z]))
    generator = np.random.default_rng(request.seed)
    wanted = max(steps // 2, 1)
    return [
        sorted(generator.choice(steps, wanted, replace=False, p=weight / weight.sum()).tolist())
        for _ in range(request.trajectories)
    ]


def capture(
    model: SpectralUNet,
    plan: Plan,
    request: CalibrationRequest,
    weights_digest: str,
    observe: Callable[[int, int], None] = lambda done, total: None,
) -> Calibration:
    """Draw trajectories with the full-precision model and keep what the denoiser is given.

    Args:
        observe: called with (steps done, steps in all).

    Raises:
        EdgeSDError: a trajectory ran to infinity.
    """
    keep, labels = covered_steps(request, len(plan)), model.config.num_classes
    shape, F = model.config.sample_shape, model.feature_width
    rows_of = {label: plan_features(model, plan, label) for label in (range(labels) if labels else [None])}
    kept: list[tuple[int, np.ndarray, np.ndarray]] = []
    starts = range(0, request.trajectories, _BATCH)
    for batch, start in enumerate(starts):
        indices = range(start, min(start + _BATCH, request.trajectories))
        features = np.stack([rows_of[index % labels if labels else None] for index in indices])  # (n, steps, F)

        def noise(row: int, indices: range = indices) -> torch.Tensor:
            return torch.from_numpy(gaussian_batch(request.seed, indices, row, shape))

        def program(
            x: torch.Tensor, row: int, batch: int = batch, indices: range = indices, features: np.ndarray = features
        ) -> torch.Tensor:
            values = x.numpy()
            if not np.isfinite(values).all():
                raise EdgeSDError(f"the trajectory is not finite at step {row}", "is the checkpoint a trained one?")
            kept.extend(
                (row, values[place].copy(), features[place, row]) for place, index in enumerate(indices) if row in keep[index]
            )
            observe(batch * len(plan) + row + 1, len(starts) * len(plan))
            return model.denoise(x, torch.from_numpy(features[:, row]))

        with torch.no_grad():
            execute(plan, program, noise(-1), noise)
    kept.sort(key=lambda item: item[0])
    samples, rows = np.stack([item[1] for item in kept]), np.array([item[0] for item in kept], dtype=np.int64)
    given = np.stack([item[2] for item in kept]).reshape(len(kept), F)
    header = CalibrationHeader(
        request=request,
        weights_digest=weights_digest,
        plan_digest=tensors_digest(plan.columns),
        digest=tensors_digest(_tensors(samples, rows, given)),
    )
    return Calibration(header, samples, rows, given)


def load_calibration(path: Path, weights_digest: str, plan: Plan) -> Calibration:
    """Read captured inputs back.

    Raises:
        EdgeSDError: damaged, not finite, or changed since.
        UsageError: of another model or another plan.
    """
    header, tensors = read_tensors(CalibrationHeader, path)
    if tensors.keys() != {"samples", "rows", "features"} or tensors_digest(tensors) != header.digest:
        raise EdgeSDError(f"{path} has changed since it was written", "delete it: it will be captured again")
    if header.weights_digest != weights_digest:
        raise UsageError(
            f"{path} was captured from another model (weights {header.weights_digest[:16]}…, here {weights_digest[:16]}…)",
            "give --overwrite to capture again, or the model's own calibration file",
        )
    if header.plan_digest != tensors_digest(plan.columns):
        raise UsageError(
            f"{path} was captured under another plan", "give the solver and steps it was captured with, or --overwrite"
        )
    if tensors["rows"].max(initial=0) >= len(plan):
        raise EdgeSDError(f"{path} names a step that the plan does not have", "delete it: it will be captured again")
    return Calibration(header, **tensors)
