"""Decibels against closed forms, and at the edges where a logarithm is not defined."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import pywt
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics.functional.image import structural_similarity_index_measure

from edge_sd.evaluation import psnr_db, snr_db
from edge_sd.evaluation.closed_forms import ClosedForm, closed_forms
from edge_sd.evaluation.metrics import SAME_DB, band_names, band_snr_db, ssim

Measure = Callable[..., float]

SHAPES = [(1,), (7,), (3, 8, 8), (2, 3, 16, 10), (1, 1, 1, 1)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("db", [72.0, 35.0, 0.0, -20.0])
def test_snr_reads_what_was_put_in(shape: tuple[int, ...], db: float) -> None:
    rng = np.random.default_rng(0)
    reference, noise = rng.standard_normal(shape), rng.standard_normal(shape)
    noise *= math.sqrt(np.sum(reference**2) / np.sum(noise**2) / 10 ** (db / 10))
    assert snr_db(reference, reference + noise) == pytest.approx(db, abs=1e-8)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("db", [72.0, 35.0, 20.0])
def test_psnr_reads_what_was_put_in(shape: tuple[int, ...], db: float) -> None:
    """Of images in [−1, 1] the range is 2: an error of ±2·10^(−dB/20) everywhere."""
    rng = np.random.default_rng(0)
    reference = rng.uniform(-0.5, 0.5, shape)
    other = reference + 2 * 10 ** (-db / 20) * rng.choice([-1, 1], shape)
    assert psnr_db(reference, other) == pytest.approx(db, abs=1e-8)
    assert psnr_db(reference * 127.5, other * 127.5, data_range=255) == pytest.approx(db, abs=1e-8)


def test_psnr_counts_what_can_be_seen() -> None:
    assert psnr_db(np.array([1.0, -1.0]), np.array([3.0, -1.5])) == SAME_DB


@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=20), st.floats(0.01, 100))
def test_snr_does_not_see_a_common_scale(values: list[float], scale: float) -> None:
    reference, other = np.array(values), np.array(values) + 0.5
    if np.sum(reference**2) > 1e-6:
        assert snr_db(scale * reference, scale * other) == pytest.approx(snr_db(reference, other), abs=1e-6)


@pytest.mark.parametrize("measure", [snr_db, psnr_db])
def test_equal_arrays_read_the_upper_bound(measure: Measure) -> None:
    x = np.random.default_rng(0).uniform(-1, 1, (2, 3, 8, 8))
    assert measure(x, x) == SAME_DB == 200.0
    assert measure(np.zeros(5), np.zeros(5)) == SAME_DB
    assert measure(x.astype(np.float32), x.astype(np.float32)) == SAME_DB


@pytest.mark.parametrize("measure", [snr_db, psnr_db])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_reads_the_lower_bound(measure: Measure, bad: float) -> None:
    """One bad value among a thousand good ones is a broken sample, not a good one."""
    x = np.random.default_rng(0).uniform(-1, 1, 1000)
    other = x.copy()
    other[500] = bad
    assert measure(x, other) == -SAME_DB
    assert measure(other, x) == -SAME_DB
    assert measure(other, other) == -SAME_DB


def test_a_silent_reference_reads_the_lower_bound() -> None:
    assert snr_db(np.zeros(4), np.ones(4)) == -SAME_DB


def test_the_bounds_hold() -> None:
    assert snr_db(np.array([1.0]), np.array([1.0 + 1e-15])) == SAME_DB
    assert snr_db(np.array([1e-200]), np.array([1.0])) == -SAME_DB


@pytest.mark.parametrize("measure", [snr_db, psnr_db])
@pytest.mark.parametrize("other", [(1,), (4, 1), (3,)])
def test_arrays_of_other_shapes_are_not_compared(measure: Measure, other: tuple[int, ...]) -> None:
    """Also where NumPy would repeat the smaller one, and call two unlike arrays equal."""
    with pytest.raises(ValueError, match=r"\(4,\)"):
        measure(np.zeros(4), np.zeros(other))


def test_float32_is_compared_in_float64() -> None:
    """Squares of values below 1e-23 vanish in float32."""
    reference = np.full(4, 1e-25, dtype=np.float32)
    assert snr_db(reference, reference * np.float32(1.5)) == pytest.approx(20 * math.log10(2), abs=1e-5)


# Subbands and structure


def test_bands_are_those_of_pywavelets_and_add_up() -> None:
    """Orthonormal: the bands' energies are the whole's, and so are their errors'."""
    rng = np.random.default_rng(3)
    reference, error = rng.standard_normal((3, 16, 24)), 0.01 * rng.standard_normal((3, 16, 24))
    found = band_snr_db(reference, reference + error)
    assert list(found) == ["LL2", "LH2", "HL2", "HH2", "LH1", "HL1", "HH1"]
    coarse = pywt.dwt2(reference, "haar", mode="periodization")
    noise = pywt.dwt2(error, "haar", mode="periodization")
    for name, signal, wrong in zip(("LH1", "HL1", "HH1"), coarse[1], noise[1], strict=True):
        assert found[name] == pytest.approx(10 * math.log10((signal**2).sum() / (wrong**2).sum()), abs=1e-9)
    lowest, wrong = pywt.dwt2(coarse[0], "haar", mode="periodization"), pywt.dwt2(noise[0], "haar", mode="periodization")
    assert found["LL2"] == pytest.approx(10 * math.log10((lowest[0] ** 2).sum() / (wrong[0] ** 2).sum()), abs=1e-9)


@pytest.mark.parametrize(
    ("shape", "count"), [((3, 64, 64), 10), ((3, 16, 16), 7), ((4, 8, 8), 4), ((1, 4, 4), 0), ((3, 7, 8), 0)]
)
def test_bands_go_down_to_four_pixels(shape: tuple[int, ...], count: int) -> None:
    assert len(band_names(shape)) == count
    assert tuple(band_snr_db(np.ones(shape), np.ones(shape))) == band_names(shape)
    assert set(band_snr_db(np.ones(shape), np.full(shape, np.nan)).values()) <= {-SAME_DB}


def test_structural_similarity_is_torchmetrics() -> None:
    """Inside of the border, which they fill by reflection."""
    rng = np.random.default_rng(4)
    reference = rng.uniform(-1, 1, (3, 20, 28))
    other = np.clip(reference + 0.2 * rng.standard_normal(reference.shape), -1, 1)
    pair = [torch.from_numpy(values)[None] for values in (other, reference)]
    _, theirs = structural_similarity_index_measure(*pair, data_range=2.0, return_full_image=True)
    assert ssim(reference, other) == pytest.approx(theirs[..., 5:-5, 5:-5].mean().item(), abs=1e-9)


def test_structural_similarity_of_what_cannot_be_compared() -> None:
    assert ssim(np.zeros((3, 10, 64)), np.zeros((3, 10, 64))) is None
    assert ssim(np.zeros((3, 16, 16)), np.full((3, 16, 16), np.inf)) == 0
    with pytest.raises(ValueError, match="cannot compare"):
        ssim(np.zeros((3, 16, 16)), np.zeros((3, 16, 17)))


@pytest.mark.parametrize("form", closed_forms(), ids=lambda form: form.what)
def test_every_measure_reads_what_it_must(form: ClosedForm) -> None:
    assert form.holds, form
