"""The power spectrum of images by radius: where slim diffusion models fall short, and how to see it."""

import numpy as np
from numpy.typing import NDArray


def radial_spectrum(images: NDArray[np.floating]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean power at each radius.

    Args:
        images: (B, C, H, W), H = W, any range; the mean of each channel is removed and a Hann window applied, so that the
            image's borders do not ring across the spectrum.

    Returns:
        Frequencies in cycles a pixel, (K,) from 1/H up to the Nyquist frequency 0.5, and the power at each, (K,).
    """
    images = np.asarray(images, np.float64)
    size = images.shape[-1]
    window = np.hanning(size + 2)[1:-1]
    centred = (images - images.mean((-2, -1), keepdims=True)) * window[:, None] * window[None]
    power = (np.abs(np.fft.fft2(centred)) ** 2).mean((0, 1))
    axis = np.fft.fftfreq(size) * size
    radius = np.rint(np.hypot(axis[:, None], axis[None])).astype(int).ravel()
    mean = np.bincount(radius, power.ravel()) / np.bincount(radius)
    bins = np.arange(1, size // 2 + 1)
    return bins / size, mean[bins]


def spectral_slope(frequencies: NDArray[np.float64], power: NDArray[np.float64]) -> float:
    """Slope of log power against log frequency, between two cycles an image and 0.4 cycles a pixel; −2 for 1/f²."""
    chosen = (frequencies >= 2 * frequencies[0]) & (frequencies <= 0.4)
    return float(np.polyfit(np.log(frequencies[chosen]), np.log(power[chosen]), 1)[0])


def spectrum_gap_db(real: NDArray[np.floating], generated: NDArray[np.floating]) -> float:
    """Mean over radii of |10·log10(generated power / real power)|; 0 where the spectra agree."""
    ours, theirs = radial_spectrum(generated)[1], radial_spectrum(real)[1]
    return float(np.mean(np.abs(10 * np.log10(ours / theirs))))
