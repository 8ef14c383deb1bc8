"""The plan: everything of a sampler that depends on time, as a table with one row a step.

With e the program's output at x, a row does

    m    ← p·x + q·e                          what the solver remembers (ε or x0), newest first in a short history
    base ← u·x + a·base + Σ_j b_j·m_j         where the next step starts from; a corrector acts here
    x    ← a_next·base + Σ_j b_next_j·m_j + c·z    the next point to evaluate, z fresh noise

x and base begin as `start`·z, z unit Gaussian noise; start is 1 where the plan has no such column. Every solver compiles to rows
(`solvers/`), and ten lines in any language run them (`execute.py`).
"""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from edge_sd.diffusion.schedule import NoiseSchedule
from edge_sd.errors import EdgeSDError, UsageError
from edge_sd.files import read_tensors, write_tensors
from edge_sd.validation import Record

Prediction = Literal["epsilon", "v", "x0"]
Float64 = NDArray[np.float64]

_VECTORS = ("timestep", "p", "q", "u", "a", "a_next", "c", "guidance")
_MATRICES = ("b", "b_next")
_AGAIN = "compile the plan again, as edge-sd export does"


class Tuned(Record):
    """How a plan's timesteps came to be others than its coefficients are for (TimeTuner, 2310.09469).

    Attributes:
        mode: see `edge_sd.search.timesteps`.
        weights: digest of the model they were tuned for; of another they are not the best times.
        times: the timesteps that the coefficients are for, one a row.
    """

    mode: Literal["joint", "sequential", "parallel"]
    weights: str = Field(pattern=r"^[0-9a-f]{64}$")
    times: tuple[Annotated[float, Field(allow_inf_nan=False)], ...] = Field(min_length=1)


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
    tuned: Tuned | None = None  # None: the program is evaluated at the times that the coefficients are for
    widths: tuple[int, ...] = ()  # of each program, where they differ in it: channels of the first level (`models.slim`)


class Plan:
    """A header and its columns; the number of rows is the number of function evaluations (NFE).

    Attributes:
        header: see `PlanHeader`.
        columns: float64 (N,) timestep, p, q, u, a, a_next, c, guidance; float64 (N, history) b, b_next; int64 (N,) program;
            where it has been filled in, float32 (N, feature_width) features; and, where the loop does not start from unit noise,
            float64 (1,) start, which that is multiplied by.
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

    @property
    def start_scale(self) -> float:
        """What the noise that the loop starts from is multiplied by."""
        return float(self.columns["start"][0]) if "start" in self.columns else 1.0

    @property
    def levels_at(self) -> Float64:
        """(N,) timesteps that the coefficients are for: `timestep`, unless that was tuned."""
        return np.array(self.header.tuned.times) if self.header.tuned else self.columns["timestep"]

    def with_timesteps(self, times: Float64, tuned: Tuned) -> "Plan":
        """Return this plan, without rows of time features, with the program evaluated at other times, (N,)."""
        bare = self.bare()
        return Plan(bare.header.model_copy(update={"tuned": tuned}), {**bare.columns, "timestep": times.astype(np.float64)})

    def with_features(self, features: NDArray[np.float32]) -> "Plan":
        """Return this plan with its rows of time features, (N, F) float32."""
        header = self.header.model_copy(update={"feature_width": features.shape[1]})
        return Plan(header, {**self.columns, "features": features})

    def bare(self) -> "Plan":
        """Return this plan without what belongs to one model: rows of time features, and programs of groups of steps."""
        columns = {name: column for name, column in self.columns.items() if name != "features"}
        if self.header.widths:
            return Plan(self.header.model_copy(update={"feature_width": 0}), columns)
        header = self.header.model_copy(update={"feature_width": 0, "programs": ("denoiser",)})
        return Plan(header, {**columns, "program": np.zeros(len(self), dtype=np.int64)})

    def with_programs(self, starts: Sequence[int]) -> "Plan":
        """Return this plan with one program for each group of steps.

        Args:
            starts: the row with which each group begins, ascending, the first 0.
        """
        program = np.searchsorted(np.asarray(starts), np.arange(len(self)), side="right") - 1
        columns = {**self.columns, "program": program.astype(np.int64)}
        return Plan(self.header.model_copy(update={"programs": _names(len(starts))}), columns)

    @property
    def step_widths(self) -> list[int]:
        """The width of each row.

        Raises:
            UsageError: the plan has no widths.
        """
        if not self.header.widths:
            raise UsageError("the plan has one width for all steps", "a plan of edge-sd widths, or of edge-sd plan make --widths")
        return [self.header.widths[program] for program in self.program]

    def with_widths(self, widths: Sequence[int], known: Sequence[int] | None = None) -> "Plan":
        """Return this plan with one program for each width.

        Args:
            widths: of each row, in channels of the network's first level.
            known: of each program; those that are needed, the first one first, if left out.
        """
        kinds = tuple(known or dict.fromkeys(widths))
        columns = {**self.columns, "program": np.array([kinds.index(width) for width in widths], dtype=np.int64)}
        return Plan(self.header.model_copy(update={"programs": _names(len(kinds)), "widths": kinds}), columns)

    def head(self, rows: int) -> "Plan":
        """The first rows alone: for a look at shapes, not for a picture."""
        header = self.header.model_copy(update={"steps": min(rows, self.header.steps)})
        if header.tuned:
            header = header.model_copy(update={"tuned": header.tuned.model_copy(update={"times": header.tuned.times[:rows]})})
        return Plan(header, {name: column[:rows] for name, column in self.columns.items()})

    def save(self, path: Path) -> None:
        """Write it as safetensors, the header in the metadata."""
        write_tensors(path, self.columns, self.header)


def _names(programs: int) -> tuple[str, ...]:
    return tuple("denoiser" if index == 0 else f"denoiser.{index}" for index in range(programs))


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


def refuse_other_process(
    plan: Plan, schedule: NoiseSchedule, prediction: Prediction, source: Path | str, weights: Collection[str] = ()
) -> None:
    """Refuse a plan that was made for another kind of model or, if its timesteps were tuned, for another model.

    Args:
        schedule, prediction: the model's.
        source: where the plan comes from, for the message.
        weights: digests of the model and of what it was quantized or rounded from; empty where nobody knows.

    Raises:
        EdgeSDError: another noise schedule, coefficients for another prediction, or timesteps tuned for other weights.
    """
    header = plan.header
    if weights and header.tuned and header.tuned.weights not in weights:
        raise EdgeSDError(
            f"{source}: the plan's timesteps were tuned for other weights ({header.tuned.weights[:16]}…)",
            "tune them for this model: edge-sd plan tune MODEL",
        )
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
    if "start" in columns:
        expected["start"] = ((1,), np.float64)
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
    if len(header.widths) not in (0, len(header.programs)):
        raise EdgeSDError(f"a plan of {len(header.programs)} programs names {len(header.widths)} widths", _AGAIN)
    if plan.start_scale <= 0:
        raise EdgeSDError(f"plan column start is {plan.start_scale:g}: the loop starts from noise", _AGAIN)
    if header.tuned and len(header.tuned.times) != rows:
        raise EdgeSDError(f"the plan's {rows} timesteps were tuned, and {len(header.tuned.times)} are named", _AGAIN)
    times, last = np.append(columns["timestep"], plan.levels_at), header.noise_schedule.timesteps - 1
    if times.min() < 0 or times.max() > last:
        raise EdgeSDError(f"plan timesteps {times.min():g}–{times.max():g} leave the schedule's range 0–{last}", _AGAIN)
