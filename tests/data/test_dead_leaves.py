"""Dead leaves: the same picture from the same numbers, no pixel bare, and the spectrum of natural images."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_sd.data import dead_leaves
from edge_sd.evaluation import radial_spectrum, spectral_slope


def test_a_picture_is_a_function_of_seed_and_index() -> None:
    pictures = {(seed, index): dead_leaves(seed, index, 16) for seed in (0, 1) for index in (0, 1, 2)}
    for (seed, index), picture in pictures.items():
        np.testing.assert_array_equal(dead_leaves(seed, index, 16), picture)
    assert len({picture.tobytes() for picture in pictures.values()}) == len(pictures)


def test_a_picture_is_the_same_on_every_machine() -> None:
    digest = hashlib.sha256(b"".join(dead_leaves(3, index, 32).tobytes() for index in range(4))).hexdigest()
    assert digest == "fcb3e8cd74ebff52442de2210ca59fab3070fff6a1b06e2d4314c656838af3a7"


@settings(max_examples=25)
@given(st.integers(0, 2**64 - 1), st.integers(0, 2**32), st.integers(1, 33), st.floats(0.5, 40))
def test_any_size_and_radius_gives_a_covered_picture(seed: int, index: int, size: int, min_radius: float) -> None:
    """A bare pixel would be black; a colour whose three channels are all below 1 comes once in 16 million discs."""
    picture = dead_leaves(seed, index, size, min_radius)
    assert picture.shape == (size, size, 3)
    assert picture.dtype == np.uint8
    assert picture.any(-1).all()


@pytest.mark.parametrize("size", [17, 31, 64])
def test_no_pixel_stays_bare(size: int) -> None:
    """Colours are uniform: each channel's mean is 127.5 only where nothing is left at 0."""
    pictures = np.stack([dead_leaves(7, index, size, min_radius=0.7) for index in range(8)])
    assert pictures.any(-1).all()
    np.testing.assert_allclose(pictures.mean((0, 1, 2)), 127.5, atol=25)


def test_a_larger_smallest_disc_makes_a_smoother_picture() -> None:
    def roughness(min_radius: float) -> float:
        pictures = np.stack([dead_leaves(0, index, 32, min_radius) for index in range(16)]).astype(float)
        return float(np.abs(np.diff(pictures, axis=1)).mean())

    assert roughness(1.0) > roughness(3.0) > roughness(8.0)


@pytest.mark.parametrize("size", [64, 128])
def test_the_spectrum_falls_as_that_of_natural_images(size: int) -> None:
    pictures = np.stack([dead_leaves(0, index, size) for index in range(64)]).transpose(0, 3, 1, 2)
    assert spectral_slope(*radial_spectrum(pictures / 127.5 - 1)) == pytest.approx(-2, abs=0.3)
