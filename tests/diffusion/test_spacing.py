"""Each spacing against diffusers' for every number of steps, and what holds for all of them."""

from typing import Any

import diffusers
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sd.diffusion import SPACINGS
from edge_sd.diffusion.spacing import timesteps
from edge_sd.errors import UsageError

SCHEDULERS = {True: diffusers.DDIMScheduler, False: diffusers.DPMSolverMultistepScheduler}


@pytest.mark.parametrize("includes_end", [True, False])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_a_spacing_is_diffusers(spacing: str, includes_end: bool) -> None:
    scheduler: Any = SCHEDULERS[includes_end](timestep_spacing=spacing)
    for steps in range(1, 201):
        if steps == 1 and spacing == "linspace" and includes_end:
            continue  # theirs starts, and ends, at the clean image
        scheduler.set_timesteps(steps)
        # By an error of rounding, theirs adds a timestep of −1 to 61 trailing steps, and to a few other numbers.
        theirs = scheduler.timesteps.numpy()[:steps]
        np.testing.assert_array_equal(timesteps(spacing, 1000, steps, includes_end=includes_end), theirs)


@pytest.mark.parametrize("total", [1000, 250])
@pytest.mark.parametrize("includes_end", [True, False])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_times_fall_strictly_and_stay_in_range(spacing: str, includes_end: bool, total: int) -> None:
    for steps in range(1, 201):
        times = timesteps(spacing, total, steps, includes_end=includes_end)
        assert times.shape == (steps,)
        assert times.dtype == np.float64
        assert (np.diff(times) < 0).all()
        assert 0 <= times[-1] <= times[0] <= total - 1


@given(st.sampled_from(SPACINGS), st.integers(2, 1200), st.data(), st.booleans())
def test_any_number_of_steps_is_placed_or_refused(spacing: str, total: int, data: st.DataObject, includes_end: bool) -> None:
    steps = data.draw(st.integers(1, total))
    try:
        times = timesteps(spacing, total, steps, includes_end=includes_end)
    except UsageError as error:
        complaint = error.message
    else:
        assert times.shape == (steps,)
        assert (np.diff(times) < 0).all()
        assert 0 <= times[-1] <= times[0] <= total - 1
        return
    assert complaint == f"{spacing} spacing cannot place {steps} different timesteps among {total}"
    assert spacing != "trailing"


def test_trailing_and_linspace_start_where_there_is_nothing_but_noise() -> None:
    for steps in (1, 2, 7, 50):
        assert timesteps("trailing", 1000, steps, includes_end=True)[0] == 999
        assert timesteps("linspace", 1000, steps, includes_end=True)[0] == 999
        assert timesteps("linspace", 1000, steps, includes_end=False)[0] == 999


def test_quadratic_is_the_square_of_an_even_grid() -> None:
    times = timesteps("quadratic", 1000, 11, includes_end=True)
    np.testing.assert_allclose(times, [(i / 10) ** 2 * 800 for i in range(10, -1, -1)])
    np.testing.assert_allclose(timesteps("quadratic", 1000, 10, includes_end=False), times[:-1])


@pytest.mark.parametrize("steps", [0, -3, 1001])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_steps_out_of_range_are_refused(spacing: str, steps: int) -> None:
    with pytest.raises(UsageError, match=f"{steps} steps: a plan needs at least 1 and at most the schedule's 1000"):
        timesteps(spacing, 1000, steps, includes_end=True)


def test_an_unknown_spacing_is_named_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match="unknown spacing 'uniform'") as caught:
        timesteps("uniform", 1000, 10, includes_end=True)
    assert caught.value.hint == "one of leading, trailing, linspace, quadratic"
