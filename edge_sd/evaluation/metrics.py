"""How far one array is from another, in decibels. Definitions are fixed here and printed wherever a figure is."""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

Float64 = NDArray[np.float64]

# What equal arrays read, in place of infinity: above anything that float32 can tell apart.
SAME_DB = 200.0

SNR_DEFINITION = "10·log10(Σ reference² / Σ (reference − other)²)"
PSNR_DEFINITION = "10·log10(range² / mean (reference − other)²), range 2: images in [−1, 1], clipped"


def snr_db(reference: ArrayLike, other: ArrayLike) -> float:
    """Signal-to-noise ratio in dB, computed in float64, at most `SAME_DB`; −`SAME_DB` where either is not finite.

    Raises:
        ValueError: the shapes differ.
    """
    pair = _comparable(reference, other)
    return -SAME_DB if pair is None else _decibels(float(np.sum(pair[0] ** 2)), float(np.sum((pair[0] - pair[1]) ** 2)))


def psnr_db(reference: ArrayLike, other: ArrayLike, data_range: float = 2.0) -> float:
    """Peak signal-to-noise ratio in dB over the whole arrays, clipped to ±data_range/2; bounds and errors as `snr_db`'s."""
    pair = _comparable(reference, other)
    if pair is None:
        return -SAME_DB
    clipped = [np.clip(values, -data_range / 2, data_range / 2) for values in pair]
    return _decibels(data_range**2, float(np.mean((clipped[0] - clipped[1]) ** 2)))


def _comparable(reference: ArrayLike, other: ArrayLike) -> tuple[Float64, Float64] | None:
    """Both as float64, or None where one holds a NaN or an infinity."""
    left, right = np.asarray(reference, np.float64), np.asarray(other, np.float64)
    if left.shape != right.shape:
        raise ValueError(f"cannot compare {left.shape} with {right.shape}")
    return (left, right) if np.isfinite(left).all() and np.isfinite(right).all() else None


def _decibels(signal: float, noise: float) -> float:
    if noise == 0:
        return SAME_DB
    return max(-SAME_DB, min(SAME_DB, 10 * math.log10(max(signal, 1e-300) / noise)))
