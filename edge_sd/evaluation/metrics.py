"""How far one array is from another, in decibels. Definitions are fixed here and printed wherever a figure is."""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

Float64 = NDArray[np.float64]

# What equal arrays read, in place of infinity: above anything that float32 can tell apart.
SAME_DB = 200.0
_MOST_LEVELS = 3
_SSIM_WINDOW, _SSIM_SIGMA, _SSIM_K1, _SSIM_K2 = 11, 1.5, 0.01, 0.03

SNR_DEFINITION = "10·log10(Σ reference² / Σ (reference − other)²)"
PSNR_DEFINITION = "10·log10(range² / mean (reference − other)²), range 2: images in [−1, 1], clipped"
SSIM_DEFINITION = "mean structural similarity, Gaussian window of 11 with σ 1.5, range 2: images in [−1, 1], clipped"
BANDS_DEFINITION = "SNR of the coefficients of an orthonormal Haar transform; LH is low pass along the width, 1 the finest level"


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


def band_snr_db(reference: ArrayLike, other: ArrayLike) -> dict[str, float]:
    """`snr_db` by wavelet subband: of each band's coefficients, over channels.

    Args:
        reference, other: (C, H, W).

    Returns:
        LL, LH, HL and HH of the coarsest level, then LH, HL and HH of each finer one, such as HH1; up to three levels, the
        coarsest no smaller than four pixels a side; empty where nothing can be halved.
    """
    pair = _comparable(reference, other)
    if pair is None:
        return dict.fromkeys(band_names(np.shape(reference)), -SAME_DB)
    signal, noise = _bands(pair[0]), _bands(pair[0] - pair[1])
    return {name: _decibels(float(np.sum(signal[name] ** 2)), float(np.sum(noise[name] ** 2))) for name in signal}


def band_names(shape: tuple[int, ...]) -> tuple[str, ...]:
    """Names of the bands that `band_snr_db` gives for arrays of that shape."""
    return tuple(_bands(np.zeros(shape)))


def _bands(values: Float64) -> dict[str, Float64]:
    import pywt

    levels = 0
    while levels < _MOST_LEVELS and all(
        side % 2 ** (levels + 1) == 0 and side >> (levels + 1) >= 4 for side in values.shape[-2:]
    ):
        levels += 1
    if not levels:
        return {}
    coarsest, *details = pywt.wavedec2(values, "haar", mode="periodization", level=levels, axes=(-2, -1))
    found = {f"LL{levels}": coarsest}
    for level, bands in zip(range(levels, 0, -1), details, strict=True):
        found |= {f"{name}{level}": band for name, band in zip(("LH", "HL", "HH"), bands, strict=True)}
    return found


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


def ssim(reference: ArrayLike, other: ArrayLike, data_range: float = 2.0) -> float | None:
    """Structural similarity, at most 1: Wang et al. 2004, Gaussian window of 11 with σ 1.5, K₁ 0.01, K₂ 0.03.

    Args:
        reference, other: images (C, H, W), clipped to ±data_range/2; the mean is over channels and over places where the
            whole window lies inside.

    Returns:
        None where the image is smaller than the window; 0 where either is not finite.
    """
    pair = _comparable(reference, other)
    if pair is None:
        return 0.0
    if min(pair[0].shape[-2:]) < _SSIM_WINDOW:
        return None
    x, y = (np.clip(values, -data_range / 2, data_range / 2) for values in pair)
    offsets = np.arange(_SSIM_WINDOW) - _SSIM_WINDOW // 2
    window = np.exp(-0.5 * (offsets / _SSIM_SIGMA) ** 2)
    window /= window.sum()

    def blurred(values: Float64) -> Float64:
        for axis in (-2, -1):
            values = np.lib.stride_tricks.sliding_window_view(values, _SSIM_WINDOW, axis) @ window
        return values

    mean_x, mean_y = blurred(x), blurred(y)
    var_x, var_y = blurred(x * x) - mean_x**2, blurred(y * y) - mean_y**2
    covariance = blurred(x * y) - mean_x * mean_y
    c1, c2 = (_SSIM_K1 * data_range) ** 2, (_SSIM_K2 * data_range) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return float((luminance * (2 * covariance + c2) / (var_x + var_y + c2)).mean())
