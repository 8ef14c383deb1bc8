"""FastDPM against the paper's formulas written down once more, and against the solvers that it contains as special cases."""

import math
from decimal import Context, Decimal, localcontext
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq

from edge_sd.diffusion import SCHEDULES, NoiseSchedule, Plan, compile_plan, execute, load_plan, solvers
from edge_sd.diffusion.continuous import alpha_bar
from edge_sd.errors import UsageError

BOTH, SPACINGS = ("fastdpm-step", "fastdpm-var"), ("linear", "quadratic")
SHAPE = (2, 3, 8, 8)
T, BETA_0, BETA_T = 1000, 1e-4, 0.02


def model(x: np.ndarray, t: float) -> np.ndarray:
    return np.tanh(1.3 * x + 0.001 * t) * 0.9 + 0.1 * np.roll(x, 1, -1)


# The formulas, for linear β. Nothing of the product is used up to `papers_sample`.


def papers_alpha_bars() -> list[float]:
    product, bars = 1.0, []
    for t in range(T):
        product *= 1 - (BETA_0 + (BETA_T - BETA_0) * t / (T - 1))
        bars.append(product)
    return bars


def papers_log_level(t: Decimal) -> Decimal:
    """log of Δβ^(t+1)·Γ(β̂ + 1)/Γ(β̂ − t), log Γ by Stirling in forty digits: log 2π/2 falls out of the difference."""
    step = Decimal(BETA_T - BETA_0) / (T - 1)
    hat = (1 - Decimal(BETA_0)) / step

    def log_gamma(z: Decimal) -> Decimal:
        return (z - Decimal("0.5")) * z.ln() - z + 1 / (12 * z) - 1 / (360 * z**3)

    return (t + 1) * step.ln() + log_gamma(hat + 1) - log_gamma(hat - t)


def papers_timestep(level: float) -> float:
    with localcontext(Context(prec=40)):
        low, high, target = Decimal(0), Decimal(T - 1), Decimal(level).ln()
        for _ in range(50):
            middle = (low + high) / 2
            low, high = (middle, high) if papers_log_level(middle) > target else (low, middle)
        return float((low + high) / 2)


@cache
def papers_visits(solver: str, spacing: str, S: int) -> tuple[list[float], list[float]]:
    """(timesteps, noise levels), the nearly clean one first."""
    bars = papers_alpha_bars()
    if solver == "fastdpm-step":
        if spacing == "linear":
            taus = [math.floor(i * (T - 1) / (S - 1)) for i in range(S)]
            return [float(tau) for tau in taus], [bars[tau] for tau in taus]
        times = np.linspace(0, math.sqrt(0.8 * T), S) ** 2
        return times.tolist(), np.exp(np.interp(times, range(T), np.log(bars))).tolist()

    def etas(x: float) -> np.ndarray:
        return np.linspace(BETA_0, x, S) if spacing == "linear" else BETA_0 * (1 + np.arange(S) * x) ** 2

    domain = (BETA_0, 0.999) if spacing == "linear" else (0.0, (math.sqrt(0.999 / BETA_0) - 1) / (S - 1))
    x = brentq(lambda x: np.log(1 - etas(x)).sum() - math.log(bars[-1]), *domain, xtol=1e-17, rtol=1e-15)
    levels = np.cumprod(1 - etas(x))
    assert levels[-1] == pytest.approx(bars[-1], rel=1e-11)
    return [*(papers_timestep(float(level)) for level in levels[:-1]), T - 1.0], levels.tolist()


def papers_sample(times: list[float], levels: list[float], kappa: float, x: np.ndarray, z: np.ndarray) -> np.ndarray:
    for s in reversed(range(len(times))):
        a, a_next = levels[s], levels[s - 1] if s else 1.0
        sigma = kappa * math.sqrt((1 - a_next) / (1 - a) * (1 - a / a_next))
        epsilon = model(x, times[s])
        direction = math.sqrt(1 - a_next - sigma**2) - math.sqrt(1 - a) * math.sqrt(a_next / a)
        x = math.sqrt(a_next / a) * x + direction * epsilon + sigma * z[s]
    return x


def draw(plan: Plan, x: np.ndarray, z: np.ndarray) -> np.ndarray:
    return execute(plan, lambda x, row: model(x, float(plan.timestep[row])), x, lambda row: z[len(plan) - 1 - row])


def same(ours: np.ndarray, theirs: np.ndarray, tolerance: float) -> None:
    assert np.abs(ours - theirs).max() <= tolerance * np.abs(theirs).max()


@pytest.mark.parametrize("steps", [10, 20, 50, 100])
@pytest.mark.parametrize("kappa", [0.0, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("solver", BOTH)
def test_a_plan_is_the_papers_formulas(solver: str, spacing: str, kappa: float, steps: int) -> None:
    rng = np.random.default_rng(steps)
    x, z = rng.standard_normal(SHAPE), rng.standard_normal((steps, *SHAPE))
    times, levels = papers_visits(solver, spacing, steps)
    plan = compile_plan(NoiseSchedule(), steps, solver=solver, spacing=spacing, eta=kappa)
    np.testing.assert_allclose(plan.timestep[::-1], times, rtol=0, atol=1e-9)
    same(draw(plan, x, z), papers_sample(times, levels, kappa, x, z), 1e-10)
    assert (plan.header.solver, plan.header.spacing, len(plan)) == (solver, spacing, steps)
    assert plan.stochastic == (kappa > 0)
    assert plan.c[-1] == 0


# What it contains


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("name", SCHEDULES)
def test_by_steps_it_is_ddim_at_those_timesteps(name: str, spacing: str, eta: float) -> None:
    ours = compile_plan(SCHEDULES[name], 20, solver="fastdpm-step", spacing=spacing, eta=eta, prediction="v")
    ddim = compile_plan(SCHEDULES[name], 20, solver="ddim", times=ours.timestep, eta=eta, prediction="v")
    for column, expected in ddim.columns.items():
        np.testing.assert_allclose(ours.columns[column], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_with_all_the_noise_it_is_ddpm(spacing: str) -> None:
    """DDPM remembers x0 and takes the posterior mean, so only the trajectories can be compared."""
    ours = compile_plan(NoiseSchedule(), 20, solver="fastdpm-step", spacing=spacing, eta=1)
    ddpm = compile_plan(NoiseSchedule(), 20, solver="ddpm", times=ours.timestep)
    rng = np.random.default_rng(0)
    x, z = rng.standard_normal(SHAPE), rng.standard_normal((20, *SHAPE))
    same(draw(ours, x, z), draw(ddpm, x, z), 1e-10)


@pytest.mark.parametrize("timesteps", [2, 10, 100, 1000])
def test_as_many_linear_variances_as_timesteps_are_the_schedules_own(timesteps: int) -> None:
    schedule = NoiseSchedule(timesteps=timesteps)
    times, levels = solvers()["fastdpm-var"].visits(schedule, timesteps, "linear")
    np.testing.assert_allclose(times, np.arange(timesteps)[::-1], rtol=0, atol=1e-9)
    np.testing.assert_allclose(levels, schedule.alpha_bar(np.arange(timesteps)[::-1]), rtol=1e-11)


@pytest.mark.parametrize("timesteps", [2, 10, 100, 1000])
def test_as_many_linear_steps_as_timesteps_are_all_of_them(timesteps: int) -> None:
    plan = compile_plan(NoiseSchedule(timesteps=timesteps), timesteps, solver="fastdpm-step")
    np.testing.assert_array_equal(plan.timestep, np.arange(timesteps)[::-1])


@pytest.mark.parametrize("steps", [2, 10, 50])
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("name", SCHEDULES)
def test_variances_span_the_schedule_and_lie_on_it(name: str, spacing: str, steps: int) -> None:
    schedule = SCHEDULES[name]
    times, levels = solvers()["fastdpm-var"].visits(schedule, steps, spacing)
    np.testing.assert_allclose(alpha_bar(schedule, times), levels, rtol=1e-9)
    assert times[0] == schedule.timesteps - 1
    assert times[-1] == pytest.approx(0, abs=1e-9)

    eta = 1 - np.append(levels[:-1] / levels[1:], levels[-1])[::-1]
    even = eta if spacing == "linear" else np.sqrt(eta)
    np.testing.assert_allclose(even, np.linspace(even[0], even[-1], steps), rtol=1e-7)


@settings(deadline=None)
@given(
    st.sampled_from(BOTH),
    st.sampled_from(SPACINGS),
    st.sampled_from(["linear", "scaled_linear", "cosine"]),
    st.integers(2, 300),
    st.data(),
)
def test_any_number_of_steps_is_placed(solver: str, spacing: str, kind: Any, total: int, data: st.DataObject) -> None:
    steps = data.draw(st.integers(1, total))
    schedule = NoiseSchedule(kind=kind, timesteps=total, beta_end=data.draw(st.floats(1e-4, 0.3)))
    plan = compile_plan(schedule, steps, solver=solver, spacing=spacing, eta=data.draw(st.floats(0, 1)))
    assert (np.diff(plan.timestep) < 0).all()
    assert 0 <= plan.timestep[-1] <= plan.timestep[0] <= total - 1
    if solver == "fastdpm-var" or spacing == "linear":
        assert plan.timestep[0] == total - 1


@pytest.mark.parametrize("spacing", SPACINGS)
def test_one_step_starts_from_noise(spacing: str) -> None:
    """Where the paper's formulas divide by S − 1 = 0."""
    by_steps = compile_plan(NoiseSchedule(), 1, solver="fastdpm-step", spacing=spacing)
    assert by_steps.timestep.tolist() == [999 if spacing == "linear" else pytest.approx(800)]
    times, levels = solvers()["fastdpm-var"].visits(NoiseSchedule(), 1, spacing)
    assert times.tolist() == [999]
    assert levels == pytest.approx(NoiseSchedule().alpha_bar([999]), rel=1e-12)


@pytest.mark.parametrize("steps", [2, 3, 5, 20])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_a_last_level_that_takes_a_variance_of_almost_one_is_reached(spacing: str, steps: int) -> None:
    """The authors' code looks no further than 0.99 and then stops at an assertion."""
    schedule = NoiseSchedule(beta_end=0.2)  # ᾱ_T = 2e-47
    times, levels = solvers()["fastdpm-var"].visits(schedule, steps, spacing)
    assert levels[0] == pytest.approx(float(schedule.alpha_bar(999)), rel=1e-10)
    eta = 1 - np.append(levels[:-1] / levels[1:], levels[-1])[::-1]
    even = eta if spacing == "linear" else np.sqrt(eta)
    np.testing.assert_allclose(even, np.linspace(1e-4 if spacing == "linear" else 1e-2, even[-1], steps), rtol=1e-7)
    assert (np.diff(times) < 0).all()


def test_a_plan_with_levels_of_its_own_comes_back(tmp_path: Any) -> None:
    plan = compile_plan(NoiseSchedule(), 10, solver="fastdpm-var", spacing="quadratic", eta=0.5)
    plan.save(tmp_path / "plan")
    after = load_plan(tmp_path / "plan")
    assert after.header == plan.header
    np.testing.assert_array_equal(after.timestep, plan.timestep)


# What cannot be meant


@pytest.mark.parametrize("steps", [0, -1, 1001])
@pytest.mark.parametrize("solver", BOTH)
def test_steps_out_of_range_are_refused(solver: str, steps: int) -> None:
    with pytest.raises(UsageError, match=f"{steps} steps: a plan needs at least 1 and at most the schedule's 1000"):
        compile_plan(NoiseSchedule(), steps, solver=solver)


@pytest.mark.parametrize("spacing", ["trailing", "quadratics"])
@pytest.mark.parametrize("solver", BOTH)
def test_an_unknown_spacing_is_named_with_the_known_ones(solver: str, spacing: str) -> None:
    with pytest.raises(UsageError, match=f"unknown spacing of {solver} '{spacing}'") as caught:
        compile_plan(NoiseSchedule(), 10, solver=solver, spacing=spacing)
    assert caught.value.hint == ("quadratic? " if spacing == "quadratics" else "") + "one of linear, quadratic"


def test_the_other_solvers_do_not_know_its_spacing() -> None:
    with pytest.raises(UsageError, match="unknown spacing 'linear'") as caught:
        compile_plan(NoiseSchedule(), 10, solver="ddim", spacing="linear")
    assert caught.value.hint == "one of leading, trailing, linspace, quadratic"


@pytest.mark.parametrize("kappa", [-0.1, 1.1, math.nan])
def test_kappa_out_of_range_is_refused(kappa: float) -> None:
    with pytest.raises(UsageError, match=r"is not in \[0, 1\]"):
        compile_plan(NoiseSchedule(), 10, solver="fastdpm-var", eta=kappa)
