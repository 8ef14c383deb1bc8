"""The space that is searched: what each step decides and by how much, apart, so that both can be changed one at a time.

Times are measured by z in [0, 1], half of it time and half log-SNR: steps of equal z are neither crowded at the noisy end, as
those of equal log-SNR are, nor at the clean one. Relaxations are kept as factors 1 + c·h of the derivatives' estimates, 1 where
there is none, so that a step which grows longer keeps its factor.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from pydantic import ValidationError

from edge_sd.diffusion._decisions import Decision, SolverSchedule
from edge_sd.diffusion._taylor import Expansion
from edge_sd.diffusion.execute import execute
from edge_sd.diffusion.plan import Float64, Plan, Prediction
from edge_sd.diffusion.schedule import NoiseSchedule
from edge_sd.diffusion.solvers._base import Levels
from edge_sd.diffusion.unified import compile_schedule
from edge_sd.errors import UsageError

Start = Literal["noise", "analytic"]

HIGHEST = 4  # Taylor order
FACTORS = slice(1, HIGHEST)  # columns of a step's values: of its derivatives, …
CORRECTOR = slice(HIGHEST, 2 * HIGHEST)  # … and of its corrector's


@dataclass(frozen=True)
class Kind:
    """What a step decides among a few."""

    prediction: Expansion
    order: int = 1
    points: tuple[int, ...] | None = None
    corrected: bool = False


@dataclass(frozen=True, eq=False)
class Candidate:
    """A schedule taken apart.

    Attributes:
        kinds: one a step.
        values: (N, 8) z, the factors of three derivatives and those of a corrector's four; 1 where a step has none.
        start: see `SolverSchedule`.
    """

    kinds: tuple[Kind, ...]
    values: Float64
    start: Start = "noise"


@dataclass(frozen=True)
class Space:
    """All schedules of one number of steps for one process.

    Attributes:
        noise_schedule, prediction: what the model was trained for.
        steps: function evaluations.
    """

    noise_schedule: NoiseSchedule
    prediction: Prediction
    steps: int

    def z(self, times: ArrayLike) -> Float64:
        """Timesteps in [0, T−1] → [0, 1], increasing."""
        return np.interp(np.asarray(times, dtype=np.float64), *self._scale)

    def times(self, z: ArrayLike) -> Float64:
        """The inverse of `z`; what lies outside of [0, 1] is taken as its end."""
        return np.interp(np.asarray(z, dtype=np.float64), self._scale[1], self._scale[0])

    @cached_property
    def _scale(self) -> tuple[Float64, Float64]:
        last = self.noise_schedule.timesteps - 1
        grid = np.linspace(0, last, 4 * last + 1)
        log_snr = Levels.of(self.noise_schedule.alpha_bar(grid)).log_snr[:-1]
        return grid, 0.5 * grid / last + 0.5 * (log_snr[0] - log_snr) / (log_snr[0] - log_snr[-1])

    def apart(self, schedule: SolverSchedule) -> Candidate:
        """Take a schedule apart."""
        lam, values, kinds = schedule.levels().log_snr, np.ones((self.steps, 2 * HIGHEST)), []
        values[:, 0] = self.z([decision.timestep for decision in schedule.decisions])
        for i, decision in enumerate(schedule.decisions):
            h = float(lam[i + 1] - lam[i])
            for c, column in zip(decision.relaxation, range(*FACTORS.indices(8)), strict=False):
                values[i, column] = 1 + c * h
            for c, column in zip(decision.corrector_relaxation, range(*CORRECTOR.indices(8)), strict=False):
                values[i, column] = 1 + c * h
            kinds.append(Kind(decision.prediction, decision.order, decision.points, decision.corrector == "pseudo"))
        return Candidate(tuple(kinds), values, schedule.start)

    def together(self, candidate: Candidate) -> SolverSchedule | None:
        """The schedule of a candidate, mended where that is easy; None where it is no schedule.

        Times are sorted, orders cut to what lies behind a step, points that reach too far forgotten; the last step has order 1
        and no corrector.
        """
        times = np.sort(self.times(candidate.values[:, 0]))[::-1]
        lam, decisions = Levels.of(self.noise_schedule.alpha_bar(times)).log_snr, []
        if (np.diff(lam[:-1]) <= 0).any():  # two at the same time
            return None
        for i, (kind, values) in enumerate(zip(candidate.kinds, candidate.values, strict=True)):
            last = i == self.steps - 1
            order = 1 if last else min(kind.order, i + 1)
            corrected = kind.corrected and not last
            points = kind.points
            if last or points is None or max(points, default=0) > i or len(points) < order - 1 or (order == 1 and not corrected):
                points = None
            h = float(lam[i + 1] - lam[i])
            decisions.append(
                {
                    "timestep": float(times[i]),
                    "prediction": kind.prediction,
                    "order": order,
                    "points": points,
                    "relaxation": _relaxations(values[FACTORS][: order - 1], h),
                    "corrector": "pseudo" if corrected else "none",
                    "corrector_relaxation": _relaxations(values[CORRECTOR][: order * corrected], h),
                }
            )
        try:
            return SolverSchedule(
                schedule=self.noise_schedule,
                prediction=self.prediction,
                decisions=tuple(Decision.model_validate(one) for one in decisions),
                start=candidate.start,
            )
        except ValidationError:
            return None

    def compile(self, candidate: Candidate) -> tuple[SolverSchedule, Plan] | None:
        """Schedule and plan of a candidate; None where it has none."""
        schedule = self.together(candidate)
        if schedule is None:
            return None
        try:
            return schedule, compile_schedule(schedule)
        except UsageError:  # a change of type that the history does not hold
            return None


def _relaxations(factors: Float64, h: float) -> tuple[float, ...]:
    """Factors 1 + c·h → c, without the ones at the end."""
    found = [float(value - 1) / h if value != 1 else 0.0 for value in factors] if np.isfinite(h) else []
    while found and found[-1] == 0:
        found.pop()
    return tuple(found)


def encoded(space: Space, plan: Plan) -> Float64:
    """What a plan does, as a vector: its times and the weights of x_T and of every prediction in each x that it passes through.

    x is linear in these, so the loop itself tells the weights, run on unit vectors. Two schedules that do the same look the same,
    however they say it.

    Returns:
        (N + (N + 1)(N + 2)/2,): z of each step; then x at each step, and at the end, by x_T and the predictions before it.
    """
    rows = len(plan)
    unit, passed = np.eye(rows + 1), []
    final = execute(plan, lambda x, row: unit[row + 1], unit[0], lambda row: 0 * unit[0], lambda row, x, e: passed.append(x))
    weights = [x[: i + 1] for i, x in enumerate([*passed, final])]
    return np.concatenate([space.z(plan.timestep), *weights])
