"""The noise that samples start from: pinned, the same for an image wherever it is drawn, and as random as it should be."""

import itertools
import json
import math
from importlib.resources import files
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sd.diffusion import gaussian, gaussian_batch, noise
from edge_sd.diffusion.noise import philox4x32

SHAPE = (3, 32, 32)


VECTORS = json.loads(files("edge_sd.diffusion").joinpath("vectors.json").read_text())


@pytest.mark.parametrize("case", VECTORS["philox"])
def test_philox_gives_the_words_that_its_authors_publish(case: dict[str, list[Any]]) -> None:
    """Known answers of the Random123 distribution, kat_vectors."""
    c0, c1, c2, c3 = (np.array([word], dtype=np.uint64) for word in case["counter"])
    words = philox4x32((c0, c1, c2, c3), (case["key"][0], case["key"][1]))
    assert [f"{int(word[0]):08x}" for word in words] == case["words"]


@pytest.mark.parametrize("case", VECTORS["gaussian"])
def test_the_numbers_are_pinned(case: dict[str, Any]) -> None:
    """A golden trajectory made today must start from the same noise in every later version and in every language."""
    values = gaussian(case["seed"], case["index"], case["row"], (3072,))
    assert [value.tobytes()[::-1].hex() for value in values[:8]] == case["values"]
    assert int(values.view(np.uint32).astype(np.uint64).sum()) % 2**32 == case["sum"]


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.integers(-1, 2**32 - 2), st.integers(0, 50))
def test_it_is_box_and_mullers_transform(seed: int, index: int, row: int, place: int) -> None:
    """Against the library's logarithm, cosine and sine, to the last bits of float64, and with angle and radius as documented."""
    counter = (place, row + 1, index % 2**32, index >> 32)
    words = philox4x32(
        tuple(np.array([word], dtype=np.uint64) for word in counter),  # type: ignore[arg-type]
        (seed % 2**32, seed >> 32),
    )
    expected: list[float] = []
    for w0, w1 in ((int(words[0][0]), int(words[1][0])), (int(words[2][0]), int(words[3][0]))):
        radius = math.sqrt(-2 * math.log((2 * w0 + 1) / 2**33))
        angle = (w1 >> 30) * math.pi / 2 + (w1 % 2**30 + 0.5) / 2**30 * math.pi / 2 - math.pi / 4
        expected += [radius * math.cos(angle), radius * math.sin(angle)]
    found = gaussian(seed, index, row, (4 * place + 4,))[4 * place :]
    np.testing.assert_allclose(found, expected, rtol=1.2e-7, atol=1e-14)


def test_the_tails_are_there() -> None:
    """Smallest and largest u: about 6.76 and 2e-5 standard deviations, and nothing that is not finite."""
    extreme = np.array([0, 2**32 - 1], dtype=np.uint64)
    x, y = noise._box_muller(extreme, np.zeros(2, dtype=np.uint64))
    np.testing.assert_allclose(np.hypot(x, y), [math.sqrt(66 * math.log(2)), math.sqrt(2 * 2**-33)], rtol=1e-6)


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
