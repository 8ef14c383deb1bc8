"""The 2-D discrete wavelet transform and its inverse, each as one fixed grouped convolution.

Written as a convolution, and not as slices and subtractions, because that is the form that every exporter, delegate and
quantizer takes. While it is trained a filter bank of two taps (Haar) is a product with a 4×4 matrix instead: the same numbers,
without the backward pass of a grouped convolution, which is slow in bfloat16. Filter banks, their order and the periodization
mode are PyWavelets': `pywt.dwt2(x, w, "periodization")`.
"""

from functools import lru_cache

import numpy as np
import pywt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edge_sd.errors import UsageError

# LH is low pass along the width and high pass along the height; pywt calls the four cA, cH, cV, cD. This order holds everywhere.
SUBBANDS = ("LL", "LH", "HL", "HH")


@lru_cache
def _filter_bank(wavelet: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the analysis and synthesis kernels of a wavelet, each (4, length, length) float64, one a subband."""
    try:
        bank = pywt.Wavelet(wavelet)
    except (ValueError, TypeError) as error:
        raise UsageError(
            f"unknown wavelet {wavelet!r}", "one of pywt.wavelist(kind='discrete'), for instance haar, db2, bior2.2"
        ) from error
    if not (bank.orthogonal or bank.biorthogonal):
        raise UsageError(
            f"wavelet {wavelet!r} is neither orthogonal nor biorthogonal, so it has no inverse",
            "for instance haar, db2 or bior2.2",
        )
    # Convolution in torch is correlation: so analysis taps are turned round; a transposed one spreads synthesis taps as they are.
    low, high = (np.array(taps[::-1]) for taps in (bank.dec_lo, bank.dec_hi))
    low_inverse, high_inverse = np.array(bank.rec_lo), np.array(bank.rec_hi)
    analysis = [np.outer(rows, columns) for rows in (low, high) for columns in (low, high)]
    synthesis = [np.outer(rows, columns) for rows in (low_inverse, high_inverse) for columns in (low_inverse, high_inverse)]
    return np.stack([analysis[0], analysis[2], analysis[1], analysis[3]]), np.stack(
        [synthesis[0], synthesis[2], synthesis[1], synthesis[3]]
    )


def _kernel(kernels: np.ndarray, channels: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Repeat (4, k, k) kernels to a grouped convolution's weight, (4 · channels, 1, k, k)."""
    return torch.as_tensor(kernels, dtype=dtype, device=device).unsqueeze(1).repeat(channels, 1, 1, 1)


def wrap(x: Tensor, pad: int) -> Tensor:
    """Extend the last two dimensions periodically by `pad` on each side (also where `pad` exceeds the size)."""
    for dim in (-2, -1):
        size = x.shape[dim]
        if 0 < pad <= size:  # slices: every delegate takes them
            x = torch.cat([x.narrow(dim, size - pad, pad), x, x.narrow(dim, 0, pad)], dim)
        elif pad:
            start = -pad % size  # no remainder of a negative number: ExecuTorch's has its sign
            x = x.index_select(dim, torch.arange(start, start + size + 2 * pad, device=x.device) % size)
    return x


def _analyse(x: Tensor, weight: Tensor) -> Tensor:
    if x.shape[-2] % 2 or x.shape[-1] % 2:
        raise _odd(x)
    length = weight.shape[-1]
    return F.conv2d(wrap(x, length // 2 - 1), weight, stride=2, groups=x.shape[1])


def _synthesise(subbands: Tensor, weight: Tensor) -> Tensor:
    length = weight.shape[-1]
    pad = length // 4
    return F.conv_transpose2d(
        wrap(subbands, pad), weight, stride=2, padding=2 * pad + length // 2 - 1, groups=subbands.shape[1] // len(SUBBANDS)
    )


def cell_matrix(weight: Tensor) -> Tensor | None:
    """Of a kernel with two taps: subbands × pixels of a 2×2 cell, (4, 4). None where cells overlap."""
    return weight[: len(SUBBANDS)].reshape(len(SUBBANDS), 4) if weight.shape[-1] == 2 else None


def cell_pixels(x: Tensor) -> Tensor:
    """(B, C, H, W) → (B, C, 4, H/2, W/2): of each 2×2 cell its upper left, upper right, lower left and lower right pixel."""
    if x.shape[-2] % 2 or x.shape[-1] % 2:
        raise _odd(x)
    cells: Tensor = F.pixel_unshuffle(x, 2).unflatten(1, (-1, 4))
    return cells


def _odd(x: Tensor) -> UsageError:
    height, width = x.shape[-2:]
    return UsageError(f"a wavelet transform halves its input, and {height}×{width} cannot be halved", "use even sizes")


def dwt2(x: Tensor, wavelet: str = "haar") -> Tensor:
    """2-D wavelet transform, one level.

    Args:
        x: (B, C, H, W), floating; H and W even.
        wavelet: an orthogonal or biorthogonal filter bank of PyWavelets.

    Returns:
        (B, 4·C, H/2, W/2): the four `SUBBANDS` of channel 0, then those of channel 1, and so on.

    Raises:
        UsageError: an odd size, or a wavelet that does not exist or has no inverse.
    """
    return _analyse(x, _kernel(_filter_bank(wavelet)[0], x.shape[1], x.dtype, x.device))


def idwt2(subbands: Tensor, wavelet: str = "haar") -> Tensor:
    """Inverse of `dwt2`: (B, 4·C, H/2, W/2) → (B, C, H, W)."""
    channels = subbands.shape[1]
    if channels % len(SUBBANDS):
        raise UsageError(f"{channels} channels are not four subbands of each channel", "give a multiple of 4")
    return _synthesise(subbands, _kernel(_filter_bank(wavelet)[1], channels // len(SUBBANDS), subbands.dtype, subbands.device))


class DWT2(nn.Module):
    """`dwt2` with its kernel kept as a constant: (B, C, H, W) → (B, 4·C, H/2, W/2)."""

    weight: Tensor

    def __init__(self, channels: int, wavelet: str = "haar") -> None:
        super().__init__()
        kernel = _kernel(_filter_bank(wavelet)[0], channels, torch.get_default_dtype(), torch.get_default_device())
        self.register_buffer("weight", kernel, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        matrix = cell_matrix(self.weight) if self.training else None
        if matrix is None:
            return _analyse(x, self.weight)
        cells = cell_pixels(x)
        return torch.matmul(matrix, cells.flatten(3)).view(cells.shape).flatten(1, 2)


class IDWT2(nn.Module):
    """`idwt2` with its kernel kept as a constant: (B, 4·C, H/2, W/2) → (B, C, H, W)."""

    weight: Tensor

    def __init__(self, channels: int, wavelet: str = "haar") -> None:
        super().__init__()
        kernel = _kernel(_filter_bank(wavelet)[1], channels, torch.get_default_dtype(), torch.get_default_device())
        self.register_buffer("weight", kernel, persistent=False)

    def forward(self, subbands: Tensor) -> Tensor:
        matrix = cell_matrix(self.weight) if self.training else None
        if matrix is None:
            return _synthesise(subbands, self.weight)
        bands = subbands.unflatten(1, (-1, len(SUBBANDS)))
        return F.pixel_shuffle(torch.matmul(matrix.t(), bands.flatten(3)).view(bands.shape).flatten(1, 2), 2)
