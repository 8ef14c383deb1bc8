"""The noise that samples start from: pinned, the same for an image wherever it is drawn, and as random as it should be."""

import hashlib
import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sd.diffusion import gaussian, gaussian_batch

SHAPE = (3, 32, 32)


def test_the_numbers_are_pinned() -> None:
    """A golden trajectory made today must start from the same noise in every later version."""
    assert gaussian(0, 0, -1, (3,)).tolist() == [0.059911035001277924, 0.015559634193778038, -1.1644384860992432]
    assert gaussian(1, 7, 3, (3,)).tolist() == [1.2468329668045044, 0.18992488086223602, 1.205907940864563]
    digest = hashlib.sha256(gaussian(42, 5, -1, SHAPE).tobytes()).hexdigest()
    assert digest == "a8f2576ad57f69ab2866a0df25309a6935766c23c53cb95bdc34d6b30ae23052"


@given(st.integers(0, 2**63), st.integers(0, 2**32), st.integers(-1, 1000), st.integers(0, 4), st.integers(1, 5))
def test_an_image_of_a_batch_is_that_image_alone(seed: int, index: int, row: int, place: int, count: int) -> None:
    place = min(place, count - 1)
    batch = gaussian_batch(seed, range(index, index + count), row, (2, 3))
    assert batch.shape == (count, 2, 3)
    assert batch.dtype == np.float32
    np.testing.assert_array_equal(batch[place], gaussian(seed, index + place, row, (2, 3)))


def test_a_larger_image_begins_as_the_smaller() -> None:
    """Nothing is drawn but what is returned, so that other languages can draw value by value."""
    np.testing.assert_array_equal(gaussian(0, 0, 0, (100,))[:10], gaussian(0, 0, 0, (10,)))


def test_neither_seed_image_nor_row_repeats_another() -> None:
    """Of 27 draws of 3,072 values no two go together: |correlation| stays below five of its standard deviations."""
    draws = np.stack([gaussian(*which, SHAPE).ravel() for which in itertools.product((0, 1, 2), (0, 1, 2), (-1, 0, 1))])
    correlation = np.corrcoef(draws) - np.eye(len(draws))
    assert np.abs(correlation).max() < 5 / math.sqrt(math.prod(SHAPE))
    assert len(np.unique(draws)) > 0.99 * draws.size


def test_rows_are_no_shifts_of_each_other() -> None:
    first, second = (set(gaussian(0, 0, row, (2000,)).tolist()) for row in (-1, 0))
    assert len(first & second) < 20


@pytest.mark.parametrize("row", [-1, 0, 99])
def test_the_noise_is_a_unit_gaussian(row: int) -> None:
    z = gaussian_batch(3, range(32), row, SHAPE).astype(np.float64)
    error = 1 / math.sqrt(z.size)
    assert abs(z.mean()) < 5 * error
    assert abs(z.var() - 1) < 5 * math.sqrt(2) * error
    assert abs((z**3).mean()) < 5 * math.sqrt(15) * error
    assert abs((z**4).mean() - 3) < 5 * math.sqrt(96) * error
    assert (np.abs(z) < 1).mean() == pytest.approx(math.erf(1 / math.sqrt(2)), abs=5 * error)
