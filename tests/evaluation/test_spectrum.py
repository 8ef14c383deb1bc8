"""The radial spectrum of signals whose spectrum is known: white noise, one wave, and power laws."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sd.errors import EdgeSDError
from edge_sd.evaluation import radial_spectrum, spectral_slope, spectrum_gap_db
from edge_sd.evaluation.spectrum import SpectrumGap, radial_powers, spectrum_gap


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


# The gap by radius


def gap_of(real: np.ndarray, generated: np.ndarray) -> SpectrumGap:
    frequencies, powers = radial_powers(real)
    return spectrum_gap(frequencies, powers, radial_powers(generated)[1])


def test_the_gap_of_a_gain_is_its_decibels_at_every_radius() -> None:
    real = coloured(32, -2, count=16)
    gap = gap_of(real, real / 2)
    np.testing.assert_allclose(gap.gap_db, 20 * np.log10(0.5), atol=1e-9)
    assert gap.mean.value == pytest.approx(spectrum_gap_db(real, real / 2))


def test_a_missing_band_is_missing_at_its_radii_alone() -> None:
    real = coloured(32, 0, count=64)
    axis = np.fft.fftfreq(32) * 32
    radius = np.hypot(axis[:, None], axis[None])
    blurred = np.fft.ifft2(np.fft.fft2(real) * np.where(radius > 10.5, 0.1, 1)).real
    gap = gap_of(real, blurred).gap_db
    assert np.abs(gap[:8]).max() < 0.2  # the window mixes neighbours
    assert gap[12:].max() < -17  # of 20 dB


def test_the_gap_has_the_error_that_its_images_give_it() -> None:
    """Two draws of one source: neither the gap nor its error is nothing, and both shrink with n."""
    few, many = (gap_of(coloured(16, -2, count=n, seed=0), coloured(16, -2, count=n, seed=1)).mean for n in (50, 800))
    assert few.standard_error is not None
    assert many.standard_error is not None
    assert few.standard_error == pytest.approx(4 * many.standard_error, rel=0.5)
    assert many.value < few.value < 10 * few.standard_error


def test_images_are_transformed_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    images = coloured(16, -1, count=20)
    whole = radial_powers(images)[1]
    monkeypatch.setattr("edge_sd.evaluation.spectrum._IMAGES", 7)
    np.testing.assert_allclose(radial_powers(images)[1], whole, rtol=1e-12)


def test_images_of_one_colour_have_no_power_and_a_finite_gap() -> None:
    grey = np.zeros((4, 3, 16, 16))
    assert gap_of(grey, grey).mean.value == 0
    assert np.isfinite(gap_of(coloured(16, -2, count=4), grey[:, :1]).gap_db).all()


def test_spectra_of_other_sizes_are_not_compared() -> None:
    with pytest.raises(EdgeSDError, match="8 and 16 radii"):
        gap_of(coloured(16, 0, count=2), coloured(32, 0, count=2))
