"""Sliced Wasserstein distance: closed forms in one dimension, bands that see what was done to them alone, and properties."""

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st

from edge_sd.errors import EdgeSDError, UsageError
from edge_sd.evaluation import sliced_wasserstein
from edge_sd.evaluation.wasserstein import BandPatches, band_distances, band_patches, levels_of
from edge_sd.models.wavelets import dwt2, idwt2

BANDS = ["LH1", "HL1", "HH1", "LH2", "HL2", "HH2", "LH3", "HL3", "HH3", "LL3"]


def pictures(n: int = 64, size: int = 32, seed: int = 0, low: int = 0, high: int = 256) -> np.ndarray:
    return np.random.default_rng(seed).integers(low, high, (n, 3, size, size), dtype=np.uint8)


@given(st.integers(0, 2**32), st.floats(-10, 10))
def test_in_one_dimension_a_shift_is_its_distance(seed: int, shift: float) -> None:
    x = np.random.default_rng(seed).standard_normal((50, 1))
    assert sliced_wasserstein(x, x + shift) == pytest.approx(abs(shift), abs=1e-12)


def test_in_one_dimension_it_is_scipys() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((300, 1)), rng.exponential(size=(300, 1))
    assert sliced_wasserstein(x, y) == pytest.approx(scipy.stats.wasserstein_distance(x[:, 0], y[:, 0]), abs=1e-12)


def test_of_a_shift_in_three_dimensions_half_of_its_length_is_seen() -> None:
    """E |u·s| over the sphere of d = 3 is |s|/2: Archimedes."""
    x = np.random.default_rng(0).standard_normal((50, 3))
    assert sliced_wasserstein(x, x + np.array([0, 3, 4]), projections=20_000) == pytest.approx(2.5, rel=0.02)


@given(st.integers(0, 2**32), st.integers(2, 30), st.integers(1, 5))
def test_it_is_symmetric_and_does_not_see_an_order(seed: int, n: int, d: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((n, d)), rng.standard_normal((n, d)) * 2 + 1
    distance = sliced_wasserstein(x, y, projections=16)
    assert sliced_wasserstein(y[rng.permutation(n)], x, projections=16) == pytest.approx(distance, abs=1e-12)
    assert distance > 0
    assert sliced_wasserstein(x, x[::-1], projections=16) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("shapes", [((5, 2), (6, 2)), ((5, 2), (5, 3)), ((5,), (5,)), ((0, 2), (0, 2))])
def test_sets_of_other_shapes_are_refused(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    with pytest.raises(EdgeSDError, match="one shape"):
        sliced_wasserstein(*(np.zeros(shape) for shape in shapes))


# By band


def test_bands_are_named_from_fine_to_coarse() -> None:
    patches = band_patches(pictures(4), levels=3).patches
    assert list(patches) == BANDS
    assert all(values.shape == (4, 8, 27) and values.dtype == np.float32 for values in patches.values())


def test_equal_images_are_no_distance_apart_in_any_band() -> None:
    one, other = (band_patches(pictures()) for _ in range(2))
    assert {name: estimate.value for name, estimate in band_distances(one, other).items()} == dict.fromkeys(BANDS, 0)


@pytest.mark.parametrize("band", ["LH1", "HL1", "HH1"])
def test_what_is_done_to_a_band_is_seen_in_it_and_nowhere_else(band: str) -> None:
    real = pictures(low=96, high=160)
    subbands = dwt2(torch.from_numpy(real).double()).unflatten(1, (3, 4))
    subbands[:, :, ["LL1", "LH1", "HL1", "HH1"].index(band)] *= 0.25
    changed = idwt2(subbands.flatten(1, 2)).round().clamp(0, 255).byte().numpy()
    found = band_distances(*(band_patches(images) for images in (real, changed)))
    assert found[band].value > 0.4
    assert all(estimate.value < 0.05 for name, estimate in found.items() if name != band)


def test_the_scale_is_the_real_one_so_a_weak_band_cannot_hide() -> None:
    """Half the contrast everywhere is half a standard deviation's distance; dividing each set by its own would show nothing."""
    real = pictures(256, low=0, high=201)
    weak = (real // 2 + 50).astype(np.uint8)
    found = band_distances(*(band_patches(images) for images in (real, weak)))
    for name in BANDS[:-1]:
        # Along a unit direction a patch of independent coefficients has σ = 1: W₁ = (1 − ½)·E|N(0, 1)|.
        assert found[name].value == pytest.approx(0.5 * np.sqrt(2 / np.pi), rel=0.1)


def test_brightness_moves_the_low_band_alone() -> None:
    real = pictures(low=50, high=150)
    found = band_distances(*(band_patches(images) for images in (real, real + np.uint8(40))))
    assert found["LL3"].value > 1
    assert all(estimate.value < 1e-5 for name, estimate in found.items() if name != "LL3")


def test_the_error_says_how_far_another_draw_would_be_off() -> None:
    found = [
        band_distances(band_patches(pictures(seed=2 * i)), band_patches(pictures(seed=2 * i + 1, low=20)), projections=16)["LL3"]
        for i in range(12)
    ]
    scatter = np.std([one.value for one in found], ddof=1)
    assert 0.2 * scatter < np.mean([one.standard_error for one in found]) < 5 * scatter
    few = band_distances(band_patches(pictures(9)), band_patches(pictures(9, seed=1)))
    assert few["LL3"].standard_error is None


@pytest.mark.parametrize(("size", "levels"), [(64, 3), (32, 3), (16, 2), (12, 2), (6, 1), (10, 1), (96, 3)])
def test_levels_leave_room_for_a_patch(size: int, levels: int) -> None:
    assert levels_of(size) == levels
    band_patches(pictures(2, size), levels=levels)


@pytest.mark.parametrize("size", [4, 7, 33])
def test_a_size_that_cannot_be_halved_is_an_error(size: int) -> None:
    with pytest.raises(UsageError, match=f"{size} px"):
        levels_of(size)


def test_other_bands_and_other_numbers_are_not_compared() -> None:
    with pytest.raises(EdgeSDError, match="bands"):
        band_distances(band_patches(pictures(2), levels=2), band_patches(pictures(2), levels=3))
    with pytest.raises(EdgeSDError, match="10 real images and 12"):
        band_distances(band_patches(pictures(10)), band_patches(pictures(12)))


def test_a_silent_band_is_finite() -> None:
    grey = BandPatches({"HH1": np.zeros((4, 8, 27), np.float32)})
    assert band_distances(grey, grey)["HH1"].value == 0
