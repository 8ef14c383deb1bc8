"""What each step of the unified solver decides (USF, 2312.07243, section 3.2), and all of it as a file that is checked whole."""

import math
from typing import Literal

import numpy as np
from pydantic import Field, model_validator
from typing_extensions import Self

from edge_sd.diffusion._taylor import Expansion
from edge_sd.diffusion.plan import Prediction
from edge_sd.diffusion.schedule import NoiseSchedule
from edge_sd.diffusion.solvers._base import Levels
from edge_sd.validation import Record

HISTORY = 8  # the longest a plan holds
_CLOSEST = 1e-8  # in λ; float64 tells h from there on to seven digits


class Decision(Record):
    """What one step does, from `timestep` to the next step's, the last to the clean image.

    Attributes:
        timestep: where the program is evaluated; real.
        prediction: what is expanded in a Taylor series over λ.
        order: n of that expansion; its n − 1 derivatives are finite differences.
        points: how many steps back each earlier point of the differences lies, ascending, at least n − 1 of them; None takes the
            n − 1 nearest. With more of them the polynomial through all is the better estimate.
        relaxation: c_1, c_2, …: the estimate of the k-th derivative is multiplied by 1 + c_k·h, h the step's length in λ.
        corrector: "pseudo" takes the step again, one order higher, once the next evaluation is there: a free point more. The
            next step then starts from the result, and the evaluation is not repeated (UniC, 2302.04867).
        corrector_relaxation: c_1 … c_n of the corrector's expansion.
    """

    timestep: float = Field(ge=0, allow_inf_nan=False)
    prediction: Expansion
    order: int = Field(default=1, ge=1, le=4)
    points: tuple[int, ...] | None = None
    relaxation: tuple[float, ...] = ()
    corrector: Literal["none", "pseudo"] = "none"
    corrector_relaxation: tuple[float, ...] = ()

    @property
    def looks_back(self) -> tuple[int, ...]:
        """`points`, resolved."""
        return tuple(range(1, self.order)) if self.points is None else self.points

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        points, corrected = self.looks_back, self.corrector == "pseudo"
        if list(points) != sorted(set(points)) or any(point < 1 for point in points):
            raise ValueError(f"points {points} are not different, ascending and from 1")
        if len(points) < self.order - 1:
            raise ValueError(f"order {self.order} needs {self.order - 1} earlier points, not {len(points)}")
        if points and self.order == 1 and not corrected:
            raise ValueError("order 1 without a corrector has no derivative that earlier points could estimate")
        furthest = HISTORY - 1 - corrected  # a corrector works one row later
        if points and points[-1] > furthest:
            raise ValueError(f"point {points[-1]} lies further back than {furthest}, the most that {HISTORY} rows hold")
        if len(self.relaxation) > self.order - 1:
            raise ValueError(f"{len(self.relaxation)} relaxations, but order {self.order} has {self.order - 1} derivatives")
        if len(self.corrector_relaxation) > self.order * corrected:
            raise ValueError(
                f"{len(self.corrector_relaxation)} relaxations of a corrector with {self.order * corrected} derivatives"
            )
        if not all(map(math.isfinite, (*self.relaxation, *self.corrector_relaxation))):
            raise ValueError("a relaxation is not finite")
        return self


class SolverSchedule(Record):
    """All decisions, for one noise schedule and one kind of program; steps count from 0.

    Attributes:
        schedule: the process the model was trained for.
        prediction: what the program returns, whatever the steps expand.
        decisions: one a step, timesteps decreasing inside the schedule.
        start: where the first decision's timestep is reached from. "noise": it is where the noise is. "analytic": from T − 1, by
            a step of DDIM with ε = x, which costs no evaluation: there is nothing else at T.
    """

    kind: Literal["solver-schedule"] = "solver-schedule"
    schema_version: Literal[1] = 1
    schedule: NoiseSchedule
    prediction: Prediction
    decisions: tuple[Decision, ...] = Field(min_length=1)
    start: Literal["noise", "analytic"] = "noise"

    @model_validator(mode="after")
    def _steps_are_possible(self) -> Self:
        steps, last = len(self.decisions), self.schedule.timesteps - 1
        if steps > last + 1:
            raise ValueError(f"{steps} steps, but the schedule has {last + 1}")
        for i, decision in enumerate(self.decisions):
            here = f"step {i} (timestep {decision.timestep:g})"
            if decision.timestep > last:
                raise ValueError(f"{here} leaves the schedule's range 0–{last}")
            if i and decision.timestep >= self.decisions[i - 1].timestep:
                raise ValueError(f"{here} does not lie below step {i - 1}'s, {self.decisions[i - 1].timestep:g}")
            if decision.looks_back and decision.looks_back[-1] > i:
                raise ValueError(
                    f"{here}, order {decision.order}, looks {decision.looks_back[-1]} steps back, and {i} lie behind it"
                )
        if self.decisions[-1].order > 1:
            raise ValueError(f"{here}, the last, has order {self.decisions[-1].order}: λ of the clean image is infinite, so 1")
        if self.decisions[-1].corrector != "none":
            raise ValueError(f"{here}, the last, has a corrector, which no evaluation follows")
        gaps = np.diff(self.levels().log_snr[:-1])
        if steps > 1 and gaps.min() < _CLOSEST:
            i = int(gaps.argmin())
            raise ValueError(f"steps {i} and {i + 1} lie {gaps[i]:.1g} apart in λ: too close for a derivative between them")
        return self

    def levels(self) -> Levels:
        """α, σ and λ at each step, and at the clean image."""
        return Levels.of(self.schedule.alpha_bar([decision.timestep for decision in self.decisions]))
