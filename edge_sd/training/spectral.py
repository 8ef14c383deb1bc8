"""The frequency term of spectrum-aware distillation: differences of Fourier coefficients, weighed by the clean image's.

2211.17106 leaves open the transform's normalisation and what keeps |F_0|^−1 finite; here: orthonormal transforms in float32,
magnitudes averaged over channels, a floor, mean 1 over frequencies, an upper bound, no gradient.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from edge_sd.training.config import DistillConfig


def frequency_weights(x0: Tensor, size: tuple[int, int], config: DistillConfig) -> Tensor:
    """ω for feature maps of `size`, from clean images (B, C, H, W) → (B, 1, h, w), float32, in (0, omega_max].

    ω ∝ (|F_0| + floor · mean|F_0|)^α with F_0 the spectrum of x0 resized (antialiased) to `size`; of mean 1 before the bound.
    """
    with torch.no_grad():
        x0 = x0.float()
        if tuple(x0.shape[-2:]) != size:
            x0 = F.interpolate(x0, size=size, mode="bilinear", antialias=True)
        magnitude = torch.fft.fft2(x0, norm="ortho").abs().mean(1, keepdim=True)
        mean = magnitude.mean((-2, -1), keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        omega = (magnitude / mean + config.omega_floor) ** config.alpha
        weights: Tensor = (omega / omega.mean((-2, -1), keepdim=True)).clamp_max(config.omega_max)
        return weights


def frequency_distance(difference: Tensor, omega: Tensor) -> Tensor:
    """Mean of ω·|F(difference)|² over everything; difference (B, C, h, w) real, omega (B, 1, h, w). A scalar."""
    spectrum = torch.fft.fft2(difference.float(), norm="ortho")
    distance: Tensor = (omega * (spectrum.real**2 + spectrum.imag**2)).mean()
    return distance
