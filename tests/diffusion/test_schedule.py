"""ᾱ(t) against the product it is defined by and against diffusers, and what holds between the integers."""

import math
from typing import Any

import diffusers
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from edge_sd.diffusion import SCHEDULES, NoiseSchedule
from edge_sd.errors import UsageError

THEIRS = {"linear": "linear", "scaled_linear": "scaled_linear", "cosine": "squaredcos_cap_v2"}

schedules = st.builds(
    NoiseSchedule,
    kind=st.sampled_from(list(THEIRS)),
    beta_start=st.floats(1e-5, 1e-3),
    beta_end=st.floats(1e-3, 0.05),
    timesteps=st.integers(2, 1500),
)


def betas(schedule: NoiseSchedule) -> list[float]:
    """As the papers print them, one at a time."""
    T = schedule.timesteps
    if schedule.kind == "cosine":
        f = [math.cos((t / T + 0.008) / 1.008 * math.pi / 2) ** 2 for t in range(T + 1)]
        return [min(1 - f[t + 1] / f[t], 0.999) for t in range(T)]
    power = 2 if schedule.kind == "scaled_linear" else 1
    start, end = schedule.beta_start ** (1 / power), schedule.beta_end ** (1 / power)
    return [(start + (end - start) * t / (T - 1)) ** power for t in range(T)]


@pytest.mark.parametrize("name", SCHEDULES)
def test_alpha_bar_is_the_product(name: str) -> None:
    schedule = SCHEDULES[name]
    product, expected = 1.0, []
    for beta in betas(schedule):
        product *= 1 - beta
        expected.append(product)
    np.testing.assert_allclose(schedule.alpha_bar(np.arange(schedule.timesteps)), expected, rtol=1e-10)


@pytest.mark.parametrize("timesteps", [10, 1000])
@pytest.mark.parametrize("kind", THEIRS)
def test_alpha_bar_is_diffusers(kind: Any, timesteps: int) -> None:
    schedule = NoiseSchedule(kind=kind, beta_start=0.0015, beta_end=0.0195, timesteps=timesteps)
    scheduler = diffusers.DDPMScheduler(timesteps, 0.0015, 0.0195, beta_schedule=THEIRS[kind])
    # Theirs is a running product in float32: a thousand roundings of 6e-8.
    np.testing.assert_allclose(schedule.alpha_bar(np.arange(timesteps)), scheduler.alphas_cumprod.numpy(), rtol=1e-4)


@given(schedules, st.data())
def test_alpha_bar_falls_strictly_and_without_a_jump(schedule: NoiseSchedule, data: st.DataObject) -> None:
    times = st.integers(0, 1000 * (schedule.timesteps - 1)).map(lambda thousandths: thousandths / 1000)
    earlier, later = sorted(data.draw(st.tuples(times, times).filter(lambda pair: pair[0] != pair[1])))
    assert 1 > schedule.alpha_bar(earlier) > schedule.alpha_bar(later) > 0

    below, above = schedule.alpha_bar([math.floor(later), math.ceil(later)])
    assert above <= schedule.alpha_bar(later) <= below
    step = min(1e-9, schedule.timesteps - 1 - earlier)
    assert schedule.alpha_bar(earlier + step) == pytest.approx(schedule.alpha_bar(earlier), rel=1e-7)


@given(schedules, st.data())
def test_halfway_between_two_timesteps_lies_their_geometric_mean(schedule: NoiseSchedule, data: st.DataObject) -> None:
    t = data.draw(st.integers(0, schedule.timesteps - 2))
    low, middle, high = schedule.alpha_bar([t, t + 0.5, t + 1])
    assert middle == pytest.approx(math.sqrt(low * high), rel=1e-9)


@pytest.mark.parametrize(
    "numbers",
    [{"beta_start": 1e-4, "beta_end": 0.999}, {"beta_start": 0.9, "beta_end": 0.9}, {"beta_start": 1e-20, "beta_end": 1e-20}],
)
def test_a_schedule_that_float64_cannot_hold_is_refused(numbers: dict[str, float]) -> None:
    """ᾱ of 0 or of 1 is a division by zero in every solver."""
    with pytest.raises(ValidationError):
        NoiseSchedule(**numbers)


@pytest.mark.parametrize("shape", [(), (1,), (5,), (2, 3)])
def test_the_answer_has_the_shape_of_the_question(shape: tuple[int, ...]) -> None:
    answer = NoiseSchedule().alpha_bar(np.zeros(shape))
    assert answer.shape == shape
    assert answer.dtype == np.float64


def test_no_timesteps_have_no_alpha_bar() -> None:
    assert NoiseSchedule().alpha_bar([]).shape == (0,)


@pytest.mark.parametrize("t", [-1, -1e-9, 999.0001, 1000, math.inf, -math.inf, math.nan, [0, 1000], [5, math.nan]])
def test_a_timestep_out_of_range_is_refused(t: Any) -> None:
    with pytest.raises(UsageError, match="leave the schedule's range 0–999"):
        NoiseSchedule().alpha_bar(t)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"beta_start": 0.03}, r"beta_end 0\.02 is below beta_start 0\.03"),
        ({"beta_start": 0}, "beta_start"),
        ({"beta_end": 1}, "beta_end"),
        ({"timesteps": 1}, "timesteps"),
        ({"kind": "sigmoid"}, "kind"),
        ({"beta_start": math.nan}, "beta_start"),
        ({"betas": [0.1]}, "betas"),
    ],
)
def test_a_schedule_that_cannot_be_meant(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        NoiseSchedule(**changes)


def test_a_schedule_is_a_value() -> None:
    """Its table is no part of what is written, compared or hashed."""
    used, fresh = NoiseSchedule(timesteps=50), NoiseSchedule(timesteps=50)
    used.alpha_bar(3)
    assert used == fresh
    assert hash(used) == hash(fresh)
    assert used.model_dump() == fresh.model_dump()
    assert NoiseSchedule.model_validate_json(used.model_dump_json()) == used


def test_a_changed_copy_computes_its_own_table() -> None:
    used = NoiseSchedule()
    used.alpha_bar(3)
    assert used.model_copy(update={"beta_end": 0.01}).alpha_bar(999) == NoiseSchedule(beta_end=0.01).alpha_bar(999)
