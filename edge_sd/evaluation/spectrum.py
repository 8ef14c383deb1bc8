"""The power spectrum of images by radius: where slim diffusion models fall short, and how to see it."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_sd.errors import EdgeSDError
from edge_sd.evaluation.distances import Estimate

Float64 = NDArray[np.float64]

GAP_DEFINITION = (
    "mean over radii, from one cycle an image to Nyquist, of |10·log10(generated power / real power)|; "
    "each channel's mean removed, Hann window; ± from a bootstrap over images"
)

_IMAGES = 256  # transformed at a time
_RESAMPLES = 200
# Of the largest power: below it there is rounding, not signal.
_FLOOR = 1e-16


def radial_powers(images: NDArray[np.floating] | NDArray[np.uint8]) -> tuple[Float64, Float64]:
    """Mean power of each image at each radius.

    Args:
        images: (B, C, H, W), H = W, any range; the mean of each channel is removed and a Hann window applied, so that the
            image's borders do not ring across the spectrum.

    Returns:
        Frequencies in cycles a pixel, (K,) from 1/H up to the Nyquist frequency 0.5, and the power at each, (B, K).
    """
    size = images.shape[-1]
    window = np.hanning(size + 2)[1:-1]
    axis = np.fft.fftfreq(size) * size
    radius = np.rint(np.hypot(axis[:, None], axis[None])).astype(int).ravel()
    ring = (radius[:, None] == np.arange(1, size // 2 + 1)).astype(np.float64)  # (H·W, K)
    ring /= ring.sum(0)
    found = []
    for start in range(0, len(images), _IMAGES):
        block = np.asarray(images[start : start + _IMAGES], np.float64)
        centred = (block - block.mean((-2, -1), keepdims=True)) * window[:, None] * window[None]
        power = (np.abs(np.fft.fft2(centred)) ** 2).mean(1)
        found.append(power.reshape(len(block), -1) @ ring)
    return np.arange(1, size // 2 + 1) / size, np.concatenate(found)


def radial_spectrum(images: NDArray[np.floating] | NDArray[np.uint8]) -> tuple[Float64, Float64]:
    """Mean power at each radius over all images: frequencies and power, (K,) each; see `radial_powers`."""
    frequencies, powers = radial_powers(images)
    return frequencies, powers.mean(0)


def spectral_slope(frequencies: NDArray[np.float64], power: NDArray[np.float64]) -> float:
    """Slope of log power against log frequency, between two cycles an image and 0.4 cycles a pixel; −2 for 1/f²."""
    return power_law(frequencies, power)[0]


def power_law(frequencies: NDArray[np.float64], power: NDArray[np.float64]) -> tuple[float, float]:
    """Slope and level of power ≈ level · frequency^slope, fitted where `spectral_slope` looks."""
    chosen = (frequencies >= 2 * frequencies[0]) & (frequencies <= 0.4)
    slope, height = np.polyfit(np.log(frequencies[chosen]), np.log(power[chosen]), 1)
    return float(slope), float(np.exp(height))


def spectrum_gap_db(real: NDArray[np.floating], generated: NDArray[np.floating]) -> float:
    """Mean over radii of |10·log10(generated power / real power)|; 0 where the spectra agree."""
    return float(np.mean(np.abs(_decibels(radial_spectrum(real)[1], radial_spectrum(generated)[1]))))


@dataclass(frozen=True)
class SpectrumGap:
    """How the power of generated images differs from that of real ones, by radius.

    Attributes:
        frequencies: cycles a pixel, (K,).
        real, generated: mean power at each, (K,).
        gap_db: 10·log10(generated / real) at each, (K,): negative where texture is missing.
        mean: of its absolute value, with a standard error.
    """

    frequencies: Float64
    real: Float64
    generated: Float64
    gap_db: Float64
    mean: Estimate


def spectrum_gap(
    frequencies: Float64, real_powers: Float64, generated_powers: Float64, *, resamples: int = _RESAMPLES, seed: int = 0
) -> SpectrumGap:
    """Compare what `radial_powers` found in two sets of images of one size.

    Raises:
        EdgeSDError: images of another size.
    """
    if real_powers.shape[1:] != generated_powers.shape[1:] or real_powers.shape[1:] != frequencies.shape:
        raise EdgeSDError(
            f"spectra of {real_powers.shape[1]} and {generated_powers.shape[1]} radii cannot be compared",
            "give images of one size",
        )
    real, generated = real_powers.mean(0), generated_powers.mean(0)
    gap = _decibels(real, generated)
    rng = np.random.default_rng(seed)
    drawn = [
        rng.multinomial(len(powers), np.full(len(powers), 1 / len(powers)), resamples) @ powers / len(powers)
        for powers in (real_powers, generated_powers)
    ]
    error = float(np.abs(_decibels(*drawn)).mean(1).std(ddof=1))
    return SpectrumGap(frequencies, real, generated, gap, Estimate(float(np.abs(gap).mean()), error))


def _decibels(real: Float64, generated: Float64) -> Float64:
    floor = max(float(real.max()), float(generated.max()), 1e-300) * _FLOOR  # images of one colour have no power at all
    decibels: Float64 = 10 * np.log10(np.maximum(generated, floor) / np.maximum(real, floor))
    return decibels
