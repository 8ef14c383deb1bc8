"""What the solvers share: signal and noise levels, conversions of predictions, and the rows they fill in."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from edge_sd.diffusion.plan import Float64, Plan, PlanHeader, Prediction
from edge_sd.diffusion.schedule import NoiseSchedule
from edge_sd.diffusion.spacing import timesteps
from edge_sd.errors import EdgeSDError


@dataclass
class Row:
    """One row before it becomes part of a table; see `plan` for the letters."""

    p: float
    q: float
    u: float = 1.0
    a: float = 0.0
    b: list[float] = field(default_factory=list)
    a_next: float = 0.0
    b_next: list[float] = field(default_factory=list)
    c: float = 0.0


@dataclass(frozen=True)
class Levels:
    """Signal α = √ᾱ, noise σ = √(1−ᾱ) and λ = log(α/σ) at each step's timestep and, last, at the clean image."""

    alpha: Float64
    sigma: Float64
    log_snr: Float64

    @classmethod
    def of(cls, alpha_bar: Float64) -> "Levels":
        """From ᾱ at the N timesteps: N + 1 levels, the last of them α = 1, σ = 0, λ = ∞."""
        alpha, sigma = np.append(np.sqrt(alpha_bar), 1.0), np.append(np.sqrt(1 - alpha_bar), 0.0)
        with np.errstate(divide="ignore"):
            return cls(alpha, sigma, np.log(alpha) - np.log(sigma))


def to_x0(prediction: Prediction, alpha: float, sigma: float) -> tuple[float, float]:
    """(p, q) with x0 = p·x + q·e."""
    return {"epsilon": (1 / alpha, -sigma / alpha), "v": (alpha, -sigma), "x0": (0.0, 1.0)}[prediction]


def to_epsilon(prediction: Prediction, alpha: float, sigma: float) -> tuple[float, float]:
    """(p, q) with ε = p·x + q·e."""
    return {"epsilon": (0.0, 1.0), "v": (sigma, alpha), "x0": (1 / sigma, -alpha / sigma)}[prediction]


def analytic_start(skipped: float, first: float) -> float:
    """Scale of the noise at the first evaluation, where a DDIM step from before it takes ε = x: noise is all that x is there.

    With z at α, σ and ε = z, x = α_1·(z − σz)/α + σ_1·z; and (1 − σ)/α = α/(1 + σ), which keeps its digits (USF's repository).

    Args:
        skipped, first: ᾱ where no evaluation is, and of the first that is.
    """
    return float(np.sqrt(first * skipped) / (1 + np.sqrt(1 - skipped)) + np.sqrt(1 - first))


def tabulated(
    rows: Sequence[Row],
    times: Float64,
    noise_schedule: NoiseSchedule,
    prediction: Prediction,
    *,
    solver: str,
    spacing: str,
    start: float | None = None,
) -> Plan:
    """Rows as a plan.

    Args:
        times: (N,) where the program is evaluated.
        start: what the first noise is multiplied by; None where nothing is.
    """
    steps = len(rows)
    history = max(1, *(len(weights) for row in rows for weights in (row.b, row.b_next)))
    columns = {name: np.array([getattr(row, name) for row in rows]) for name in ("p", "q", "u", "a", "a_next", "c")}
    for name in ("b", "b_next"):
        columns[name] = np.zeros((steps, history))
        for i, row in enumerate(rows):
            columns[name][i, : len(getattr(row, name))] = getattr(row, name)
    columns |= {"timestep": times, "guidance": np.ones(steps), "program": np.zeros(steps, dtype=np.int64)}
    if start is not None:
        columns["start"] = np.array([start])
    header = PlanHeader(
        solver=solver, steps=steps, spacing=spacing, prediction=prediction, noise_schedule=noise_schedule, history=history
    )
    return Plan(header, columns)


class Solver(ABC):
    """One way to walk from noise to an image; a pure function of the noise levels.

    Attributes:
        name: what `--solver` takes.
        about: one line for `edge-sd list solvers`.
        default_spacing: used where the user names none.
        includes_end: see `spacing.timesteps`.
    """

    name: str
    about: str
    default_spacing: str = "trailing"
    includes_end: bool = True

    def visits(self, schedule: NoiseSchedule, steps: int, spacing: str) -> tuple[Float64, Float64]:
        """Choose the timesteps at which the model is asked, decreasing, and the noise levels ᾱ there, (steps,) float64 each.

        Most solvers take a spacing's and the schedule's; FastDPM has levels of its own.

        Raises:
            UsageError: a spacing the solver does not know, or a number of steps that it cannot place.
        """
        times = timesteps(spacing, schedule.timesteps, steps, includes_end=self.includes_end)
        return times, schedule.alpha_bar(times)

    @abstractmethod
    def rows(self, levels: Levels, prediction: Prediction, eta: float) -> list[Row]:
        """Compile N + 1 noise levels to N rows; `eta` in [0, 1] is the share of fresh noise, for solvers that take one."""

    def _no_eta(self, eta: float) -> None:
        if eta:
            raise EdgeSDError(f"{self.name} is deterministic and takes no eta", "--solver ddim --eta 1, or leave --eta out")
