"""What every objective shares: a score knows its own error, and that of its difference to another."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from edge_sd.diffusion.plan import Float64, Plan
from edge_sd.search.subject import Subject


@dataclass(frozen=True)
class Score:
    """How good a plan is.

    Attributes:
        value: lower is better.
        standard_error: over another draw of the same number of samples.
        deviations: how far leaving out one sample (or one real image) moves the value, scaled so that the sum of squares is
            the squared standard error: two plans scored on the same noise differ by far less than their errors say.
    """

    value: float
    standard_error: float
    deviations: NDArray[np.float64]

    @classmethod
    def jackknife(cls, value: float, *left_out: Float64) -> "Score":
        """From the values with one item left out, of each independent set of items (Efron and Stein 1981, equation 1.3)."""
        parts = [np.sqrt((len(values) - 1) / len(values)) * (values - values.mean()) for values in left_out]
        deviations = np.concatenate(parts)
        return cls(value, float(np.linalg.norm(deviations)), deviations)

    def minus(self, other: "Score") -> tuple[float, float]:
        """(difference, its standard error), of two plans scored on the same noise."""
        return self.value - other.value, float(np.linalg.norm(self.deviations - other.deviations))


class Objective(ABC):
    """One way to say how good a plan is for a model.

    Attributes:
        name: what `--objective` takes.
        about: one line for a person: what is measured, in which unit.
        samples: how many a search draws for each plan where no other number is given.
        evaluations: how many plans it tries, likewise.
        positive: whether the value is a length: then a search sees its logarithm.
    """

    name: ClassVar[str]
    about: ClassVar[str]
    samples: ClassVar[int]
    evaluations: ClassVar[int]
    positive: ClassVar[bool]

    @classmethod
    @abstractmethod
    def open(cls, subject: Subject, settings: Mapping[str, str | int | None]) -> Self:
        """Make it from what another process can be told: names, numbers and paths."""

    @abstractmethod
    def score(self, plan: Plan, *, seed: int, count: int) -> Score:
        """Score a plan by `count` samples, those of (seed, 0) … (seed, count − 1).

        Raises:
            UsageError: fewer than 2 samples.
            EdgeSDError: the samples are not finite.
        """

    def prepare(self, seed: int, indices: range) -> None:  # noqa: B027 (most need none)
        """Make and keep what the scores by these samples will need, whatever the plan; in blocks, by any process."""
