"""ᾱ at real timesteps against log Γ in forty digits and the product it continues, and its inverse."""

import math
from decimal import Context, Decimal, localcontext
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sd.diffusion import SCHEDULES, NoiseSchedule
from edge_sd.diffusion.continuous import alpha_bar, bisect, timestep
from edge_sd.errors import UsageError

LINEAR = [
    NoiseSchedule(),
    NoiseSchedule(timesteps=100),
    NoiseSchedule(timesteps=4000),
    NoiseSchedule(timesteps=2),
    NoiseSchedule(timesteps=10, beta_end=0.5),
    NoiseSchedule(timesteps=10, beta_start=0.01, beta_end=0.3),  # where Stirling's series begins to hold
    NoiseSchedule(timesteps=3, beta_start=0.1, beta_end=0.95),  # Γ of less than 1
    NoiseSchedule(beta_start=0.0015, beta_end=0.0195),
    NoiseSchedule(beta_start=1e-5, beta_end=0.05, timesteps=1500),
    NoiseSchedule(beta_start=0.01, beta_end=0.01),
    NoiseSchedule(beta_start=0.01, beta_end=0.01 + 1e-15),
]

schedules = st.builds(
    NoiseSchedule,
    kind=st.sampled_from(["linear", "scaled_linear", "cosine"]),
    beta_start=st.floats(1e-5, 1e-3),
    beta_end=st.floats(1e-3, 0.05),
    timesteps=st.integers(2, 1500),
)


def log_gamma(z: Decimal) -> Decimal:
    """log Γ(z) − ½ log 2π by Stirling's series, after moving z to where three of its terms leave less than 1e-18."""
    moved = Decimal(0)
    while z < 300:
        moved += z.ln()
        z += 1
    return (z - Decimal("0.5")) * z.ln() - z + 1 / (12 * z) - 1 / (360 * z**3) + 1 / (1260 * z**5) - moved


def log_closed_form(schedule: NoiseSchedule, t: float) -> float:
    """log of Δβ^(t+1)·Γ(β̂ + 1)/Γ(β̂ − t), as it is printed."""
    with localcontext(Context(prec=40)):
        start, end = Decimal(schedule.beta_start), Decimal(schedule.beta_end)
        step = (end - start) / (schedule.timesteps - 1)
        hat = (1 - start) / step
        return float((Decimal(t) + 1) * step.ln() + log_gamma(hat + 1) - log_gamma(hat - Decimal(t)))


# ᾱ


@pytest.mark.parametrize("schedule", LINEAR)
def test_at_whole_timesteps_it_is_the_product(schedule: NoiseSchedule) -> None:
    T = schedule.timesteps
    betas = [schedule.beta_start + (schedule.beta_end - schedule.beta_start) * t / (T - 1) for t in range(T)]
    logs = [math.log1p(-beta) for beta in betas]
    expected = [math.fsum(logs[: t + 1]) for t in range(T)]
    np.testing.assert_allclose(np.log(alpha_bar(schedule, np.arange(T))), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("schedule", [schedule for schedule in LINEAR if schedule.beta_end - schedule.beta_start > 1e-12])
def test_between_them_it_is_the_closed_form(schedule: NoiseSchedule) -> None:
    times = np.random.default_rng(0).uniform(0, schedule.timesteps - 1, 30)
    expected = [log_closed_form(schedule, float(t)) for t in times]
    np.testing.assert_allclose(np.log(alpha_bar(schedule, times)), expected, rtol=0, atol=1e-12)


def test_constant_beta_is_a_power() -> None:
    times = np.linspace(0, 999, 77)
    expected = 0.99 ** (times + 1)
    np.testing.assert_allclose(alpha_bar(NoiseSchedule(beta_start=0.01, beta_end=0.01), times), expected, rtol=1e-12)
    np.testing.assert_allclose(alpha_bar(NoiseSchedule(beta_start=0.01, beta_end=0.01 + 1e-15), times), expected, rtol=1e-11)


@pytest.mark.parametrize("name", ["cosine", "ldm", "ldm-church"])
def test_the_other_schedules_are_log_linear(name: str) -> None:
    times = np.random.default_rng(1).uniform(0, 999, 50)
    np.testing.assert_array_equal(alpha_bar(SCHEDULES[name], times), SCHEDULES[name].alpha_bar(times))


@given(schedules, st.data())
def test_it_falls_strictly(schedule: NoiseSchedule, data: st.DataObject) -> None:
    times = st.integers(0, 1000 * (schedule.timesteps - 1)).map(lambda thousandths: thousandths / 1000)
    earlier, later = sorted(data.draw(st.tuples(times, times).filter(lambda pair: pair[0] != pair[1])))
    assert 1 > alpha_bar(schedule, earlier) > alpha_bar(schedule, later) > 0


@pytest.mark.parametrize("t", [-1e-9, 999.0001, math.inf, math.nan, [0, 1000]])
def test_a_timestep_out_of_range_is_refused(t: Any) -> None:
    with pytest.raises(UsageError, match="leave the schedule's range 0–999"):
        alpha_bar(NoiseSchedule(), t)


# Its inverse


@given(schedules, st.data())
def test_a_timestep_comes_back(schedule: NoiseSchedule, data: st.DataObject) -> None:
    t = data.draw(st.floats(0, schedule.timesteps - 1))
    assert float(timestep(schedule, alpha_bar(schedule, t))) == pytest.approx(t, rel=0, abs=1e-9)


@given(schedules, st.floats(0, 1))
def test_a_level_comes_back(schedule: NoiseSchedule, share: float) -> None:
    top, bottom = np.log(alpha_bar(schedule, [0, schedule.timesteps - 1]))
    level = math.exp(top + share * (bottom - top))
    assert float(alpha_bar(schedule, timestep(schedule, level))) == pytest.approx(level, rel=1e-9)


@pytest.mark.parametrize("schedule", [*LINEAR, *SCHEDULES.values()])
def test_whole_timesteps_come_back_and_the_ends_stay_inside(schedule: NoiseSchedule) -> None:
    """Their levels are products, which differ from the closed form by rounding, on either side."""
    whole = np.arange(schedule.timesteps, dtype=np.float64)
    times = timestep(schedule, schedule.alpha_bar(whole))
    np.testing.assert_allclose(times, whole, rtol=0, atol=1e-9)
    assert (np.diff(times) > 0).all()
    assert times[0] >= 0
    assert times[-1] <= schedule.timesteps - 1


@pytest.mark.parametrize("name", ["cosine", "ldm"])
def test_the_inverse_of_a_log_linear_schedule_is_an_interpolation(name: str) -> None:
    table = np.log(SCHEDULES[name].alpha_bar(np.arange(1000)))
    logs = np.random.default_rng(2).uniform(table[-1], table[0], 50)
    expected = np.interp(-logs, -table, np.arange(1000))
    np.testing.assert_allclose(timestep(SCHEDULES[name], np.exp(logs)), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("level", [0.99991, 1, 1.5, 4.0358e-05, 0, -0.5, math.nan, math.inf, [0.5, 1e-6]])
def test_a_level_outside_the_schedule_is_refused(level: Any) -> None:
    with pytest.raises(UsageError, match=r"is not of this schedule, which runs from 0\.9999 down to 4\.03583e-05"):
        timestep(NoiseSchedule(), level)


@pytest.mark.parametrize("shape", [(), (0,), (5,), (2, 3)])
def test_the_answer_has_the_shape_of_the_question(shape: tuple[int, ...]) -> None:
    for answer in (alpha_bar(NoiseSchedule(), np.full(shape, 7.5)), timestep(NoiseSchedule(), np.full(shape, 0.5))):
        assert answer.shape == shape
        assert answer.dtype == np.float64


def test_bisection_finds_roots_side_by_side_and_else_the_nearer_end() -> None:
    low, high = np.zeros(4), np.full(4, 3.0)
    np.testing.assert_allclose(
        bisect(lambda x: -(x**3), low, high, np.array([-8.0, -0.001, 5.0, -99.0])), [2, 0.1, 0, 3], atol=1e-15
    )
