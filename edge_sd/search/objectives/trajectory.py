"""Distance to the fine-grained trajectory: how far a plan's samples end from where many steps lead from the same noise.

The fine trajectory is UniPC at 100 steps. On the shipped model its end lies 0.009 from that of DDIM at 1000 steps, where DDIM at
200 steps is 0.049 away from it, and plans of 5 and 10 steps 0.5 and 0.35.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from edge_sd.diffusion.plan import Plan
from edge_sd.diffusion.solvers import compile_plan
from edge_sd.errors import EdgeSDError, UsageError
from edge_sd.files import fingerprint, read_tensors, tensors_digest, write_tensors
from edge_sd.search.objectives._base import Objective, Score
from edge_sd.search.subject import BATCH, Subject
from edge_sd.validation import Record

FINE_SOLVER, FINE_STEPS = "unipc", 100


class FineHeader(Record):
    """The metadata of a file of ends of fine-grained trajectories."""

    schema_version: Literal[1] = 1
    kind: Literal["fine-trajectories"] = "fine-trajectories"
    key: str  # model, process, classes, solver, steps
    seed: int
    start: int  # index of the first sample
    digest: str  # SHA-256 over the samples


class Trajectory(Objective):
    """Root mean square distance, over samples and their values, in units of the sample (a latent's, where the model makes them).

    Args:
        subject: the model.
        fine: steps of the fine-grained trajectory.
        solver: of it, a name of `edge_sd.diffusion.solvers()`, deterministic.
        cache: folder that keeps its ends; memory alone if left out.
    """

    name: ClassVar[str] = "trajectory"
    about: ClassVar[str] = "RMS distance to the end of the fine-grained trajectory from the same noise"
    samples: ClassVar[int] = 48
    evaluations: ClassVar[int] = 600
    positive: ClassVar[bool] = True

    def __init__(self, subject: Subject, *, fine: int = FINE_STEPS, solver: str = FINE_SOLVER, cache: Path | None = None) -> None:
        self.subject, self.cache = subject, cache
        self.plan = compile_plan(subject.noise_schedule, fine, solver=solver, prediction=subject.prediction)
        if self.plan.stochastic:
            raise UsageError(f"{solver} adds noise, so its trajectories end nowhere in particular", "ddim, dpmpp or unipc")
        process = subject.noise_schedule.model_dump()
        self.key = fingerprint([subject.digest, process, subject.prediction, subject.labels, solver, fine])
        self._ends: dict[tuple[int, int], NDArray[np.float32]] = {}

    @classmethod
    def open(cls, subject: Subject, settings: Mapping[str, str | int | None]) -> Self:
        cache = settings.get("cache")
        return cls(subject, fine=int(settings.get("fine") or FINE_STEPS), cache=None if cache is None else Path(str(cache)))

    def score(self, plan: Plan, *, seed: int, count: int) -> Score:
        if count < 2:
            raise UsageError(f"{count} samples have no standard error", "give -n 2 or more")
        samples = self.subject.draw(plan, seed, range(count))
        ends = np.concatenate([self.ends(seed, start) for start in range(0, count, BATCH)])[:count]
        squares = np.mean((samples.astype(np.float64) - ends) ** 2, axis=(1, 2, 3))
        if not np.isfinite(squares).all():
            raise EdgeSDError("a plan's samples hold a NaN or an infinity", "smaller relaxations, or another solver")
        left_out = (squares.sum() - squares) / (count - 1)
        return Score.jackknife(float(np.sqrt(squares.mean())), np.sqrt(left_out))

    def prepare(self, seed: int, indices: range) -> None:
        for start in range(indices.start // BATCH * BATCH, indices.stop, BATCH):
            self.ends(seed, start)

    def ends(self, seed: int, start: int) -> NDArray[np.float32]:
        """Where the fine-grained trajectories of samples `start` … `start` + 31 end, (32, C, H, W), drawn once."""
        if (seed, start) not in self._ends:
            found = self._read(seed, start)
            if found is None:
                found = self.subject.draw(self.plan, seed, range(start, start + BATCH))
                if not np.isfinite(found).all():
                    raise EdgeSDError("the fine-grained trajectory holds a NaN or an infinity", "look at the checkpoint")
                self._write(seed, start, found)
            self._ends[seed, start] = found
        return self._ends[seed, start]

    def _file(self, seed: int, start: int) -> Path | None:
        return None if self.cache is None else self.cache / f"fine-{self.key}-{seed}-{start}.safetensors"

    def _read(self, seed: int, start: int) -> NDArray[np.float32] | None:
        """What a file holds; None where there is none, or it is not what it should be: then it is drawn again."""
        path = self._file(seed, start)
        if path is None or not path.is_file():
            return None
        try:
            header, tensors = read_tensors(FineHeader, path)
        except EdgeSDError:
            return None
        expected = FineHeader(key=self.key, seed=seed, start=start, digest=tensors_digest(tensors))
        found = tensors.get("samples")
        shape = (BATCH, *self.subject.model.config.sample_shape)
        return found if header == expected and found is not None and found.shape == shape else None

    def _write(self, seed: int, start: int, samples: NDArray[np.float32]) -> None:
        path = self._file(seed, start)
        if path is not None:
            tensors = {"samples": samples}
            write_tensors(path, tensors, FineHeader(key=self.key, seed=seed, start=start, digest=tensors_digest(tensors)))
