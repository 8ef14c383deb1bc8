"""How far one array is from another, in decibels. Definitions are fixed here and printed wherever a figure is."""

import math

import numpy as np
from numpy.typing import ArrayLike

# What equal arrays read, in place of infinity: above anything that float32 can tell apart.
SAME_DB = 200.0

SNR_DEFINITION = "10·log10(Σ reference² / Σ (reference − other)²)"
PSNR_DEFINITION = "10·log10(range² / mean (reference − other)²), range 2: images in [−1, 1], clipped"


def snr_db(reference: ArrayLike, other: ArrayLike) -> float:
    """Signal-to-noise ratio in dB, computed in float64, at most `SAME_DB`; −`SAME_DB` where `other` is not finite."""
    reference, other = np.asarray(reference, np.float64), np.asarray(other, np.float64)
    if reference.shape != other.shape:
        raise ValueError(f"cannot compare {reference.shape} with {other.shape}")
    return _decibels(float(np.sum(reference**2)), float(np.sum((reference - other) ** 2)))


def psnr_db(reference: ArrayLike, other: ArrayLike, data_range: float = 2.0) -> float:
    """Peak signal-to-noise ratio in dB over the whole arrays, clipped to ±data_range/2; bounds as `snr_db`'s."""
    low, high = -data_range / 2, data_range / 2
    difference = np.clip(np.asarray(reference, np.float64), low, high) - np.clip(np.asarray(other, np.float64), low, high)
    return _decibels(data_range**2, float(np.mean(difference**2)))


def _decibels(signal: float, noise: float) -> float:
    if not math.isfinite(noise):
        return -SAME_DB
    if noise == 0:
        return SAME_DB
    return max(-SAME_DB, min(SAME_DB, 10 * math.log10(max(signal, 1e-300) / noise)))
