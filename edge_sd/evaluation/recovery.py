"""What of an image a denoiser recovers from noise, frequency by frequency, and what the best linear filter would.

2211.17106, section 3: for x_t = √ᾱ·x0 + √(1−ᾱ)·ε and an image of power spectrum S, the filter that is best in the mean square
recovers the share ρ(f, t) = SNR·S / (SNR·S + 1) of the power, SNR = ᾱ/(1−ᾱ). With S = (f₀/f)² the front ρ = ½ stands at
f_c = f₀·√(ᾱ/(1−ᾱ)): coarse structure first, texture last.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from edge_sd.diffusion.noise import gaussian_batch
from edge_sd.diffusion.plan import Prediction
from edge_sd.diffusion.schedule import NoiseSchedule
from edge_sd.diffusion.solvers._base import to_x0
from edge_sd.evaluation.spectrum import power_law, radial_spectrum
from edge_sd.models.unet import SpectralUNet

Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class Recovery:
    """Shares of power, at T timesteps and K radii.

    Attributes:
        timesteps: (T,).
        frequencies: (K,) cycles a pixel (or a latent cell).
        spectrum: (K,) power of the clean samples, in units of white noise of variance 1.
        measured: (T, K) power of the model's x̂0 against the clean samples'.
        wiener: (T, K) the best linear filter's, from the spectrum.
        front: (T,) where the filter's share is ½; NaN where that is outside the radii.
        power_law_front: (T,) the same for a power law with the spectrum's own slope and level.
    """

    timesteps: NDArray[np.int64]
    frequencies: Float64
    spectrum: Float64
    measured: Float64
    wiener: Float64
    front: Float64
    power_law_front: Float64


@torch.no_grad()
def recovery(
    model: SpectralUNet,
    schedule: NoiseSchedule,
    prediction: Prediction,
    x0: NDArray[np.float32],
    timesteps: Sequence[int],
    *,
    seed: int = 0,
    batch_size: int = 64,
) -> Recovery:
    """Noise clean samples, (n, C, H, H), to each timestep, denoise them in one call, and compare spectra."""
    device = next(model.parameters()).device
    times = np.asarray(timesteps, np.int64)
    alpha_bar = schedule.alpha_bar(times)
    noise = gaussian_batch(seed, range(len(x0)), -1, x0.shape[1:])
    frequencies, clean = radial_spectrum(x0)
    spectrum = clean / _white_power(x0.shape[-1])
    measured = np.empty((len(times), len(frequencies)))
    for row, (t, level) in enumerate(zip(times, alpha_bar, strict=True)):
        alpha, sigma = float(np.sqrt(level)), float(np.sqrt(1 - level))
        p, q = to_x0(prediction, alpha, sigma)
        noised = torch.from_numpy((alpha * x0 + sigma * noise).astype(np.float32))
        parts = []
        for x_t in noised.split(batch_size):
            x_t = x_t.to(device)
            parts.append((p * x_t + q * model(x_t, torch.full((len(x_t),), float(t), device=device))).cpu())
        measured[row] = radial_spectrum(torch.cat(parts).numpy())[1] / clean
    snr = alpha_bar / (1 - alpha_bar)
    wiener = snr[:, None] * spectrum / (snr[:, None] * spectrum + 1)
    slope, level = power_law(frequencies, spectrum)
    law = (1 / (snr * level)) ** (1 / slope) if slope else np.full(len(snr), np.nan)
    return Recovery(times, frequencies, spectrum, measured, wiener, front(frequencies, wiener), law)


def front(frequencies: Float64, shares: Float64) -> Float64:
    """For each row of shares (T, K) the lowest frequency at which it falls below ½, interpolated; NaN where it never does or
    has done so from the first radius on."""
    found = np.full(len(shares), np.nan)
    for row, share in enumerate(shares):
        below = np.flatnonzero(share < 0.5)
        if len(below) and (k := below[0]) > 0:
            rest = (share[k - 1] - 0.5) / (share[k - 1] - share[k])
            found[row] = frequencies[k - 1] + rest * (frequencies[k] - frequencies[k - 1])
    return found


def _white_power(size: int) -> float:
    """What `radial_spectrum` reads, on average, for white noise of variance 1: the window's energy."""
    window = np.hanning(size + 2)[1:-1]
    return float(np.sum(window**2) ** 2)
