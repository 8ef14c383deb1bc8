"""The plan: everything of a sampler that depends on time, as a table with one row a step.

With e the program's output at x, a row does

    m    ← p·x + q·e                          what the solver remembers (ε or x0), newest first in a short history
    base ← u·x + a·base + Σ_j b_j·m_j         where the next step starts from; a corrector acts here
    x    ← a_next·base + Σ_j b_next_j·m_j + c·z    the next point to evaluate, z fresh noise

Every solver compiles to rows (`solvers/`), and ten lines in any language run them (`execute.py`).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from edge_sd.diffusion.schedule import NoiseSchedule
from edge_sd.errors import EdgeSDError
from edge_sd.files import read_tensors, write_tensors
from edge_sd.validation import Record

Prediction = Literal["epsilon", "v", "x0"]
Float64 = NDArray[np.float64]

_VECTORS = ("timestep", "p", "q", "u", "a", "a_next", "c", "guidance")
_MATRICES = ("b", "b_next")
_AGAIN = "compile the plan again, as edge-sd export does"


class PlanHeader(Record):
    """What a plan says of itself; the columns beside it say the rest."""

    schema_version: Literal[1] = 1
    solver: str
    steps: int = Field(ge=1)
    spacing: str
    prediction: Prediction
    noise_schedule: NoiseSchedule
    history: int = Field(ge=1, le=8)  # how many m the widest row looks back
    feature_width: int = Field(default=0, ge=0)  # columns of `features`; 0 while they are not filled in
    programs: tuple[str, ...] = ("denoiser",)  # what the column `program` indexes


class Plan:
    """A header and its columns; the number of rows is the number of function evaluations (NFE).

    Attributes:
        header: see `PlanHeader`.
        columns: float64 (N,) timestep, p, q, u, a, a_next, c, guidance; float64 (N, history) b, b_next; int64 (N,) program;
            and, where it has been filled in, float32 (N, feature_width) features.
    """

    def __init__(self, header: PlanHeader, columns: dict[str, np.ndarray]) -> None:
        self.header, self.columns = header, columns
        _check(self)

    def __len__(self) -> int:
        return len(self.columns["timestep"])

    def __getattr__(self, name: str) -> np.ndarray:
        try:
            return self.__dict__["columns"][name]  # type: ignore[no-any-return]
        except KeyError:
            raise AttributeError(name) from None

    @property
    def stochastic(self) -> bool:
        """Whether any row adds noise."""
        return bool(self.columns["c"].any())

    def with_features(self, features: NDArray[np.float32]) -> "Plan":
        """Return this plan with its rows of time features, (N, F) float32."""
        header = self.header.model_copy(update={"feature_width": features.shape[1]})
        return Plan(header, {**self.columns, "features": features})

    def bare(self) -> "Plan":
        """Return this plan without what belongs to one model: rows of time features, and programs of groups of steps."""
        header = self.header.model_copy(update={"feature_width": 0, "programs": ("denoiser",)})
        columns = {name: column for name, column in self.columns.items() if name != "features"}
        return Plan(header, {**columns, "program": np.zeros(len(self), dtype=np.int64)})

    def with_programs(self, starts: Sequence[int]) -> "Plan":
        """Return this plan with one program for each group of steps.

        Args:
            starts: the row with which each group begins, ascending, the first 0.
        """
        names = tuple("denoiser" if index == 0 else f"denoiser.{index}" for index in range(len(starts)))
        program = np.searchsorted(np.asarray(starts), np.arange(len(self)), side="right") - 1
        columns = {**self.columns, "program": program.astype(np.int64)}
        return Plan(self.header.model_copy(update={"programs": names}), columns)

    def head(self, rows: int) -> "Plan":
        """The first rows alone: for a look at shapes, not for a picture."""
        header = self.header.model_copy(update={"steps": min(rows, self.header.steps)})
        return Plan(header, {name: column[:rows] for name, column in self.columns.items()})

    def save(self, path: Path) -> None:
        """Write it as safetensors, the header in the metadata."""
        write_tensors(path, self.columns, self.header)


def load_plan(path: Path) -> Plan:
    """Read a plan back.

    Raises:
        EdgeSDError: not a plan, a column missing, of the wrong shape or dtype, or not finite.
    """
    header, columns = read_tensors(PlanHeader, path)
    try:
        return Plan(header, columns)
    except EdgeSDError as error:
        raise EdgeSDError(f"{path}: {error.message}", error.hint) from error


def refuse_other_process(plan: Plan, schedule: NoiseSchedule, prediction: Prediction, source: Path | str) -> None:
    """Refuse a plan that was made for another kind of model.

    Args:
        schedule, prediction: the model's.
        source: where the plan comes from, for the message.

    Raises:
        EdgeSDError: another noise schedule, or coefficients for another prediction.
    """
    header = plan.header
    if (header.prediction, header.noise_schedule) == (prediction, schedule):
        return
    ours, theirs = header.noise_schedule, schedule
    kinds = [one.kind if ours.kind != theirs.kind or ours == theirs else _described(one) for one in (ours, theirs)]
    raise EdgeSDError(
        f"{source}: the plan is of another schedule or prediction than the model "
        f"({kinds[0]}, {header.prediction}; the model's are {kinds[1]}, {prediction})",
        "compile a plan for this model: edge-sd plan make --for MODEL",
    )


def _described(schedule: NoiseSchedule) -> str:
    return f"{schedule.kind}, β {schedule.beta_start:g}–{schedule.beta_end:g} in {schedule.timesteps} timesteps"


def _check(plan: Plan) -> None:
    header, columns = plan.header, plan.columns
    rows = int(np.size(columns.get("timestep", ())))
    expected: dict[str, tuple[tuple[int, ...], type]] = dict.fromkeys(_VECTORS, ((rows,), np.float64))
    expected |= dict.fromkeys(_MATRICES, ((rows, header.history), np.float64))
    expected["program"] = ((rows,), np.int64)
    if header.feature_width:
        expected["features"] = ((rows, header.feature_width), np.float32)
    if columns.keys() != expected.keys():
        raise EdgeSDError(
            f"a plan has the columns {', '.join(sorted(expected))}; this one has {', '.join(sorted(columns))}", _AGAIN
        )
    for name, (shape, dtype) in expected.items():
        value = columns[name]
        if value.shape != shape or value.dtype != dtype:
            raise EdgeSDError(f"plan column {name} is {value.dtype} {value.shape}, expected {np.dtype(dtype)} {shape}", _AGAIN)
        if not np.isfinite(value).all():
            raise EdgeSDError(f"plan column {name} is not finite", _AGAIN)
    if rows < 1:
        raise EdgeSDError("a plan needs at least one row", _AGAIN)
    programs = columns["program"]
    if programs.min() < 0 or programs.max() >= len(header.programs):
        wrong = programs[(programs < 0) | (programs >= len(header.programs))][0]
        raise EdgeSDError(f"plan column program names {wrong}, but there are {len(header.programs)} programs", _AGAIN)
    times, last = columns["timestep"], header.noise_schedule.timesteps - 1
    if times.min() < 0 or times.max() > last:
        raise EdgeSDError(f"plan timesteps {times.min():g}–{times.max():g} leave the schedule's range 0–{last}", _AGAIN)
