"""Windows: each is the slice that its offsets name."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sd.data import window_offsets, windows


@given(st.integers(0, 6), st.integers(1, 5), st.integers(0, 4), st.integers(0, 2**32))
def test_a_window_is_the_slice_that_its_offsets_name(count: int, size: int, crop: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (count, 3, size + crop, size + crop), dtype=np.uint8)
    offsets = window_offsets(rng, count, crop)
    cut = windows(pixels, offsets, size)
    assert (cut.shape, cut.dtype, cut.flags.c_contiguous) == ((count, 3, size, size), np.uint8, True)
    for image, window, (top, left) in zip(pixels, cut, offsets, strict=True):
        np.testing.assert_array_equal(window, image[:, top : top + size, left : left + size])


def test_every_place_is_drawn_equally_often_and_the_same_numbers_give_the_same() -> None:
    drawn = window_offsets(np.random.default_rng(0), 9000, 2)
    np.testing.assert_array_equal(drawn, window_offsets(np.random.default_rng(0), 9000, 2))
    places, counts = np.unique(drawn, axis=0, return_counts=True)
    assert len(places) == 9
    np.testing.assert_allclose(counts, 1000, atol=150)


@pytest.mark.parametrize("offsets", [[[0, 3]], [[-1, 0]], [[0, 0], [0, 0]], [0, 0]])
def test_a_window_that_leaves_its_image_is_refused(offsets: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="windows of 4"):
        windows(np.zeros((1, 3, 6, 6), dtype=np.uint8), np.array(offsets), 4)
