"""Golden trajectories: what the reference saw and said at every step, so that any device can prove that it does the same."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from edge_sd.diffusion.execute import execute
from edge_sd.diffusion.noise import gaussian
from edge_sd.diffusion.plan import Plan
from edge_sd.errors import EdgeSDError
from edge_sd.files import read_tensors, write_tensors
from edge_sd.runnable import Session
from edge_sd.validation import Record


class GoldenHeader(Record):
    """Which noise the trajectories start from, and what drew them."""

    schema_version: Literal[1] = 1
    kind: Literal["golden"] = "golden"
    seed: int = Field(ge=0)
    reference: str


@dataclass(frozen=True)
class Trajectory:
    """One denoising trajectory over N steps.

    Attributes:
        samples: x before each step, (N, C, H, W) float32; the first is the noise it started from.
        predictions: the program's output at each, (N, C, H, W).
        final: x after the last step, (C, H, W).
    """

    samples: NDArray[np.float32]
    predictions: NDArray[np.float32]
    final: NDArray[np.float32]


def trace(plan: Plan, session: Session, seed: int, index: int) -> Trajectory:
    """Run a plan from the noise of (seed, index), one image, and keep everything."""
    shape = (1, *session.sample_shape)
    samples: list[np.ndarray] = []
    predictions: list[np.ndarray] = []

    def observe(row: int, x: np.ndarray, e: np.ndarray) -> None:
        samples.append(x[0])
        predictions.append(e[0])

    def noise(row: int) -> np.ndarray:
        return gaussian(seed, index, row, shape)

    final = execute(plan, lambda x, row: session(x, plan.features[row : row + 1]), noise(-1), noise, observe)
    return Trajectory(np.stack(samples), np.stack(predictions), final[0])


@dataclass(frozen=True)
class Golden:
    """Several trajectories, image i from the noise of (header.seed, i)."""

    header: GoldenHeader
    trajectories: tuple[Trajectory, ...]

    def save(self, path: Path) -> None:
        """Write golden.safetensors."""
        tensors = {
            f"{index}.{name}": getattr(trajectory, name)
            for index, trajectory in enumerate(self.trajectories)
            for name in ("samples", "predictions", "final")
        }
        write_tensors(path, tensors, self.header)


def load_golden(path: Path, steps: int, shape: tuple[int, int, int]) -> Golden:
    """Read golden trajectories.

    Raises:
        EdgeSDError: damaged, empty, not finite, or not of `steps` steps of samples of `shape`.
    """
    header, tensors = read_tensors(GoldenHeader, path)
    count = len({name.partition(".")[0] for name in tensors})
    expected = {"samples": (steps, *shape), "predictions": (steps, *shape), "final": shape}
    found = {name: value.shape for name, value in tensors.items()}
    wanted = {f"{index}.{name}": size for index in range(count) for name, size in expected.items()}
    if not count or found != wanted or any(value.dtype != np.float32 for value in tensors.values()):
        raise EdgeSDError(
            f"{path} does not hold float32 trajectories of {steps} steps and shape {shape}: {found}", "export the bundle again"
        )
    return Golden(header, tuple(Trajectory(*(tensors[f"{index}.{name}"] for name in expected)) for index in range(count)))
