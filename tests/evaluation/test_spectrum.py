"""The radial spectrum of signals whose spectrum is known: white noise, one wave, and power laws."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sd.evaluation import radial_spectrum, spectral_slope, spectrum_gap_db


def coloured(size: int, exponent: float, count: int = 64, seed: int = 0) -> np.ndarray:
    """Periodic noise whose power is f^exponent, (count, 1, size, size)."""
    rng = np.random.default_rng(seed)
    axis = np.fft.fftfreq(size)
    radius = np.hypot(axis[:, None], axis[None])
    radius[0, 0] = 1
    amplitude = radius ** (exponent / 2)
    amplitude[0, 0] = 0
    return np.fft.ifft2(np.fft.fft2(rng.standard_normal((count, 1, size, size))) * amplitude).real


@pytest.mark.parametrize("size", [16, 32, 33, 64])
def test_frequencies_go_from_one_cycle_an_image_to_nyquist(size: int) -> None:
    frequencies, power = radial_spectrum(coloured(size, 0, count=2))
    assert frequencies.shape == power.shape == (size // 2,)
    np.testing.assert_allclose(frequencies, np.arange(1, size // 2 + 1) / size)


def test_white_noise_is_flat() -> None:
    _, power = radial_spectrum(coloured(32, 0, count=256))
    np.testing.assert_allclose(power[1:], power[1:].mean(), rtol=0.1)
    # Power of unit noise is the window's energy.
    window = np.hanning(34)[1:-1] ** 2
    assert power[1:].mean() == pytest.approx(window.sum() ** 2, rel=0.03)


@given(st.integers(3, 12), st.sampled_from(["rows", "columns"]), st.floats(0, 6.28))
def test_a_wave_is_a_peak_at_its_frequency(cycles: int, along: str, phase: float) -> None:
    wave = np.cos(2 * np.pi * cycles * np.arange(32) / 32 + phase)
    image = np.broadcast_to(wave[:, None] if along == "rows" else wave, (1, 3, 32, 32))
    frequencies, power = radial_spectrum(image)
    assert frequencies[power.argmax()] == cycles / 32
    elsewhere = np.abs(np.arange(1, 17) - cycles) > 2  # the window widens the peak by one bin on each side
    assert power[elsewhere].max() < 1e-3 * power.max()


@pytest.mark.parametrize("exponent", [-1.0, -2.0, -3.0])
@pytest.mark.parametrize("size", [64, 128])
def test_the_slope_of_a_power_law_is_its_exponent(size: int, exponent: float) -> None:
    assert spectral_slope(*radial_spectrum(coloured(size, exponent, count=32))) == pytest.approx(
        exponent, abs=0.05 * abs(exponent)
    )


def test_brightness_does_not_count() -> None:
    images = coloured(16, -2, count=4)
    np.testing.assert_allclose(radial_spectrum(images)[1], radial_spectrum(images + 7)[1], rtol=1e-9)


def test_pixels_of_uint8_are_taken_as_they_are() -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, 3, 16, 16), dtype=np.uint8)
    np.testing.assert_array_equal(radial_spectrum(images)[1], radial_spectrum(images.astype(np.float64))[1])


def test_the_gap_between_equals_is_nothing_and_of_a_gain_its_decibels() -> None:
    real = coloured(32, -2, count=4)
    assert spectrum_gap_db(real, real) == 0
    assert spectrum_gap_db(real, 10 * real) == pytest.approx(20)
    assert spectrum_gap_db(real, real / 10) == pytest.approx(20)
