"""Wavelet gating: resampling that chooses, per channel and image, how much of each subband goes on.

Spectral Diffusion (2211.17106), section "wavelet gating". Two choices the paper leaves open are made here:

* WG-Up needs four subbands a channel. A 1×1 convolution C → 4·C makes them, so the channel count is kept at C.
* The gate network is C → C/4 → 4·C with SiLU between and starts constant: 0.5 for LL and 0.12 for the three detail bands.
  With Haar, WG-Down then starts as average pooling with a trace of detail, and WG-Up as nearest-neighbour upsampling with one.
"""

import math

import torch
from torch import Tensor, nn

from edge_sd.models.wavelets import DWT2, IDWT2, SUBBANDS, cell_matrix, cell_pixels

_LL_GATE, _DETAIL_GATE = 0.5, 0.12


class SubbandGate(nn.Module):
    """g = sigmoid(FFN(mean over space of x)): (B, C, H, W) → (B, 4·C, 1, 1), in (0, 1), laid out as `dwt2`'s output."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        bands = len(SUBBANDS)
        self.hidden = nn.Linear(channels, max(channels // 4, 1))
        self.out = nn.Linear(max(channels // 4, 1), bands * channels)
        nn.init.zeros_(self.out.weight)
        start = torch.tensor([_LL_GATE] + [_DETAIL_GATE] * (bands - 1), device=self.out.bias.device)
        with torch.no_grad():
            self.out.bias.copy_(torch.logit(start).repeat(channels))

    def forward(self, x: Tensor) -> Tensor:
        gate: Tensor = torch.sigmoid(self.out(nn.functional.silu(self.hidden(x.mean((2, 3))))))
        return gate[:, :, None, None]


class WaveletDown(nn.Module):
    """WG-Down: Σ_i g_i ⊙ DWT(x)_i, (B, C, H, W) → (B, C, H/2, W/2)."""

    def __init__(self, channels: int, wavelet: str) -> None:
        super().__init__()
        self.gate = SubbandGate(channels)
        self.dwt = DWT2(channels, wavelet)

    def forward(self, x: Tensor) -> Tensor:
        matrix = cell_matrix(self.dwt.weight) if self.training else None
        if matrix is not None:
            return self._mixed(x, matrix)
        gated: Tensor = self.dwt(x) * self.gate(x)
        out: Tensor = gated.unflatten(1, (-1, len(SUBBANDS))).sum(2)
        return out

    def _mixed(self, x: Tensor, matrix: Tensor) -> Tensor:
        """The same while it is trained: gates and filters make four weights a channel, and no subband is ever stored."""
        gates = self.gate(x).flatten(1).unflatten(1, (-1, len(SUBBANDS), 1)).to(matrix.dtype)
        weights = (gates * matrix).sum(2).to(x.dtype)  # (B, C, 4)
        out: Tensor = (cell_pixels(x) * weights[..., None, None]).sum(2)
        return out


class WaveletUp(nn.Module):
    """WG-Up: IDWT(g ⊙ expand(x)), (B, C, H, W) → (B, C, 2·H, 2·W), expand a 1×1 convolution C → 4·C."""

    def __init__(self, channels: int, wavelet: str) -> None:
        super().__init__()
        self.gate = SubbandGate(channels)
        self.expand = nn.Conv2d(channels, len(SUBBANDS) * channels, 1)
        self.idwt = IDWT2(channels, wavelet)
        # LL of an image enlarged by pixel doubling is twice the image: 4 · 0.5 (the gate's start) · x.
        nn.init.normal_(self.expand.weight, std=1 / math.sqrt(channels))
        nn.init.zeros_(self.expand.bias)  # type: ignore[arg-type]
        with torch.no_grad():
            low = self.expand.weight.view(channels, len(SUBBANDS), channels)[:, 0]
            low.copy_(2 / _LL_GATE * torch.eye(channels, device=low.device))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.idwt(self.expand(x) * self.gate(x))
        return out
