"""The analytic first step: a plan that starts behind an evaluation equals the longer plan whose first one says ε = x."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_sd.diffusion import NoiseSchedule, Plan, compile_plan, execute, load_plan
from edge_sd.diffusion.unified import Decision, SolverSchedule, compile_schedule
from edge_sd.errors import EdgeSDError, UsageError
from edge_sd.files import write_tensors
from schedulers import PREDICTION, SCHEDULE, SHAPE, model


def noise_alone(x: np.ndarray, abar: float, prediction: str) -> np.ndarray:
    """What a program returns that takes all of x for noise."""
    alpha, sigma = np.sqrt(abar), np.sqrt(1 - abar)
    x0 = (x - sigma * x) / alpha
    return {"epsilon": x, "v": alpha * x - sigma * x0, "x0": x0}[prediction]


def final(plan: Plan, first: Any = None, dtype: Any = np.float64) -> np.ndarray:
    """Of one noise; the program at row 0 is `first`, where there is one."""

    def program(x: np.ndarray, row: int) -> np.ndarray:
        return first(x) if first is not None and row == 0 else model(x, float(plan.timestep[row]))

    return execute(plan, program, np.random.default_rng(0).standard_normal(SHAPE).astype(dtype), pytest.fail)


@pytest.mark.parametrize("kind", SCHEDULE)
@pytest.mark.parametrize("prediction", PREDICTION)
@pytest.mark.parametrize(("steps", "spacing"), [(1, "trailing"), (5, "trailing"), (10, "leading"), (7, "quadratic")])
def test_ddim_is_the_longer_plan_whose_first_evaluation_is_x(kind: Any, prediction: Any, steps: int, spacing: str) -> None:
    schedule = NoiseSchedule(kind=kind)
    choices: dict[str, Any] = {"solver": "ddim", "prediction": prediction, "spacing": spacing}
    short = compile_plan(schedule, steps, **choices, analytic_first_step=True)
    whole = compile_plan(schedule, steps + 1, **choices)
    assert len(short) == steps
    np.testing.assert_array_equal(short.timestep, whole.timestep[1:])
    first = float(schedule.alpha_bar(whole.timestep[0]))
    expected = final(whole, lambda x: noise_alone(x, first, prediction))
    np.testing.assert_allclose(final(short), expected, rtol=0, atol=1e-9 * np.abs(expected).max())


@pytest.mark.parametrize("solver", ["dpmpp", "unipc", "dpmpp-3m", "unipc-3", "fastdpm-step"])
def test_other_solvers_begin_behind_it(solver: str) -> None:
    """With nothing to look back on: their own plan of the same times, from the noise that DDIM's step leaves."""
    short = compile_plan(NoiseSchedule(), 6, solver=solver, analytic_first_step=True)
    own = compile_plan(NoiseSchedule(), 6, solver="ddim" if solver.startswith("fast") else solver, times=short.timestep)
    for name, column in own.columns.items():
        np.testing.assert_allclose(short.columns[name], column, atol=1e-12)
    assert 0 < short.start_scale < 1
    assert own.start_scale == 1


@pytest.mark.parametrize("kind", SCHEDULE)
def test_a_solver_schedule_starts_at_the_last_timestep(kind: Any) -> None:
    schedule, times = NoiseSchedule(kind=kind), (810.5, 400.0, 90.0)
    decisions = tuple(Decision(timestep=t, prediction="epsilon") for t in times)
    given = SolverSchedule(schedule=schedule, prediction="v", decisions=decisions, start="analytic")
    whole = compile_plan(schedule, 4, solver="ddim", prediction="v", times=np.array([999, *times]))
    expected = final(whole, lambda x: noise_alone(x, float(schedule.alpha_bar(999)), "v"))
    np.testing.assert_allclose(final(compile_schedule(given)), expected, rtol=0, atol=1e-9 * np.abs(expected).max())
    np.testing.assert_allclose(
        final(compile_plan(schedule, 3, solver="ddim", prediction="v", times=np.array(times), analytic_first_step=True)),
        expected, rtol=0, atol=1e-9 * np.abs(expected).max(),
    )  # fmt: skip
    assert "start" not in compile_schedule(given.model_copy(update={"start": "noise"})).columns


def test_at_the_last_timestep_there_is_nothing_to_skip() -> None:
    given = SolverSchedule(
        schedule=NoiseSchedule(), prediction="v", decisions=(Decision(timestep=999, prediction="x0"),), start="analytic"
    )
    assert compile_schedule(given).start_scale == pytest.approx(1, abs=1e-15)


def test_it_is_kept_in_the_file(tmp_path: Path) -> None:
    plan = compile_plan(NoiseSchedule(), 4, solver="unipc", analytic_first_step=True)
    plan.save(tmp_path / "plan")
    again = load_plan(tmp_path / "plan")
    assert again.columns["start"].tolist() == [plan.start_scale]
    assert again.bare().head(2).start_scale == plan.start_scale
    np.testing.assert_array_equal(final(again), final(plan))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_loop_rounds_it_to_the_sample_s_type(dtype: Any) -> None:
    plan = compile_plan(NoiseSchedule(), 3, analytic_first_step=True)
    seen: list[np.ndarray] = []
    z = np.random.default_rng(1).standard_normal(SHAPE).astype(dtype)
    execute(plan, lambda x, row: seen.append(x) or x, z, pytest.fail)  # type: ignore[func-returns-value]
    assert seen[0].dtype == dtype
    np.testing.assert_array_equal(seen[0], dtype(plan.start_scale) * z)


@pytest.mark.parametrize(("start", "said"), [([0.0], "is 0"), ([-1.0], "is -1"), ([1.0, 1.0], r"\(2,\)"), ([[1.0]], r"\(1, 1\)")])
def test_a_start_that_cannot_be(start: Any, said: str, tmp_path: Path) -> None:
    plan = compile_plan(NoiseSchedule(), 3)
    write_tensors(tmp_path / "plan", {**plan.columns, "start": np.array(start)}, plan.header)
    with pytest.raises(EdgeSDError, match=f"plan column start {said}|plan column start is float64 {said}"):
        load_plan(tmp_path / "plan")


def test_what_adds_noise_or_has_no_room_for_it_is_refused() -> None:
    with pytest.raises(UsageError, match="adds no noise"):
        compile_plan(NoiseSchedule(), 5, solver="ddpm", analytic_first_step=True)
    with pytest.raises(UsageError, match="adds no noise"):
        compile_plan(NoiseSchedule(), 5, solver="ddim", eta=0.5, analytic_first_step=True)
    with pytest.raises(UsageError, match="0 steps"):
        compile_plan(NoiseSchedule(), 0, analytic_first_step=True)
    with pytest.raises(UsageError, match="1001 steps"):
        compile_plan(NoiseSchedule(), 1000, solver="ddim", analytic_first_step=True)
