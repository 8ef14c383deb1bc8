"""Golden trajectories: what the reference saw and said at every step, so that any device can prove that it does the same."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from edge_sd.diffusion.execute import trace as traced
from edge_sd.diffusion.noise import NAME
from edge_sd.diffusion.plan import Plan
from edge_sd.errors import EdgeSDError
from edge_sd.files import read_tensors, write_tensors
from edge_sd.runnable import Session
from edge_sd.validation import Record


class GoldenHeader(Record):
    """Which noise the trajectories start from, and what drew them.

    Attributes:
        noise: the generator that turns (seed, index of the trajectory, row) into noise, see `diffusion.noise`.
        labels: class of each trajectory; empty where the model knows none.
    """

    schema_version: Literal[2] = 2
    kind: Literal["golden"] = "golden"
    seed: int = Field(ge=0)
    noise: Literal["philox4x32-10/box-muller"] = NAME
    reference: str
    labels: tuple[int, ...] = ()


@dataclass(frozen=True)
class Trajectory:
    """One denoising trajectory over N steps.

    Attributes:
        samples: x before each step, (N, C, H, W) float32; the first is the noise it started from.
        predictions: the program's output at each, (N, C, H, W).
        final: x after the last step, (C, H, W).
        features: the rows of time features that the program was given, (N, F).
        image: what the decoder makes of `final`, (3, H', W'), where there is a decoder.
    """

    samples: NDArray[np.float32]
    predictions: NDArray[np.float32]
    final: NDArray[np.float32]
    features: NDArray[np.float32]
    image: NDArray[np.float32] | None = None


def trace(plan: Plan, session: Session, seed: int, index: int, features: NDArray[np.float32] | None = None) -> Trajectory:
    """Run a plan from the noise of (seed, index), one image, and keep everything.

    Args:
        features: rows for a class, (N, F); the plan's own if left out.
    """
    rows: NDArray[np.float32] = plan.features if features is None else features

    def program(x: NDArray[np.float32], row: int) -> NDArray[np.float32]:
        session.select(int(plan.program[row]))
        return session(x, rows[row : row + 1])

    samples, predictions, final = traced(plan, program, seed, index, session.sample_shape)
    return Trajectory(np.stack(samples), np.stack(predictions), final, rows)


@dataclass(frozen=True)
class Golden:
    """Several trajectories, image i from the noise of (header.seed, i)."""

    header: GoldenHeader
    trajectories: tuple[Trajectory, ...]

    def save(self, path: Path) -> None:
        """Write golden.safetensors."""
        tensors = {
            f"{index}.{field.name}": value
            for index, trajectory in enumerate(self.trajectories)
            for field in fields(Trajectory)
            if (value := getattr(trajectory, field.name)) is not None
        }
        write_tensors(path, tensors, self.header)


def load_golden(
    path: Path, steps: int, shape: tuple[int, int, int], feature_width: int, image_shape: tuple[int, int, int] | None = None
) -> Golden:
    """Read golden trajectories.

    Args:
        image_shape: of the decoded images, where the bundle has a decoder.

    Raises:
        EdgeSDError: damaged, empty, not finite, or not of `steps` steps of samples of `shape`.
    """
    header, tensors = read_tensors(GoldenHeader, path)
    count = len({name.partition(".")[0] for name in tensors})
    expected = {"samples": (steps, *shape), "predictions": (steps, *shape), "final": shape, "features": (steps, feature_width)}
    if image_shape is not None:
        expected["image"] = image_shape
    found = {name: value.shape for name, value in tensors.items()}
    wanted = {f"{index}.{name}": size for index in range(count) for name, size in expected.items()}
    if not count or found != wanted or any(value.dtype != np.float32 for value in tensors.values()):
        raise EdgeSDError(
            f"{path} does not hold float32 trajectories of {steps} steps and shape {shape}: {found}", "export the bundle again"
        )
    if len(header.labels) not in (0, count):
        raise EdgeSDError(f"{path} has {len(header.labels)} labels for {count} trajectories", "export the bundle again")
    return Golden(header, tuple(Trajectory(**{name: tensors[f"{index}.{name}"] for name in expected}) for index in range(count)))
