"""The blocks of LDM's U-Net: residual block, attention, transformer, plain resampling.

As in latent diffusion (2112.10752), with one difference: what depends on time reaches a residual block as a finished row of
features, so that no block holds a time layer.
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def group_norm(groups: int, channels: int, eps: float = 1e-5) -> nn.GroupNorm:
    """GroupNorm, channels last in the argument list as everywhere here."""
    return nn.GroupNorm(groups, channels, eps=eps)


def zeroed(layer: nn.Conv2d) -> nn.Conv2d:
    """Return the layer with its parameters at zero: the block it closes starts as the identity."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def constant(tensor: Tensor) -> nn.Parameter:
    """Return a tensor's values as a parameter of their own that is not learnt."""
    return nn.Parameter(tensor.detach().clone().contiguous(), requires_grad=False)


class ResBlock(nn.Module):
    """norm → SiLU → convolution, time features, norm → SiLU → convolution, beside a skip.

    Args:
        resample: makes the resampling of a block that changes resolution, once for each path; None for one that does not.

    Attributes:
        joined: channels of the first of two maps, where the input is both one after the other (a U-Net's skip); 0 elsewhere.
    """

    joined: int = 0

    def __init__(
        self,
        channels: int,
        out_channels: int,
        *,
        groups: int,
        scale_shift: bool,
        dropout: float,
        eps: float = 1e-5,
        resample: Callable[[int], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.scale_shift = scale_shift
        self.feature_width = out_channels * (2 if scale_shift else 1)
        self.norm1 = group_norm(groups, channels, eps)
        self.resample_inner = resample(channels) if resample else nn.Identity()
        self.resample_skip = resample(channels) if resample else nn.Identity()
        self.conv1 = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.norm2 = group_norm(groups, out_channels, eps)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zeroed(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        self.skip: nn.Module = nn.Conv2d(channels, out_channels, 1) if channels != out_channels else nn.Identity()

    def forward(self, x: Tensor, row: Tensor) -> Tensor:
        """x: (B, C, H, W); row: (B, feature_width, 1, 1), this block's time features. Returns (B, out, H', W')."""
        h = self.conv1(self.resample_inner(F.silu(self.norm1(x))))
        if self.scale_shift:
            scale, shift = row.chunk(2, dim=1)
            h = self.norm2(h) * (1 + scale) + shift
        else:
            h = self.norm2(h + row)
        h = self.conv2(self.dropout(F.silu(h)))
        out: Tensor = h + self.skip(self.resample_skip(x))
        return out


class DotProductAttention(nn.Module):
    """softmax(q·kᵀ/√d)·v over (B, heads, tokens, d). A module of its own, so that it can be counted and, for export, replaced."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v)


def _heads_of(channels: int, heads: int | None, head_channels: int | None) -> int:
    return heads if heads is not None else channels // (head_channels or channels)


class SelfAttention(nn.Module):
    """Self-attention over the cells of a feature map, (B, C, H, W) → the same."""

    def __init__(self, channels: int, *, groups: int, heads: int | None, head_channels: int | None, eps: float = 1e-5) -> None:
        super().__init__()
        self.heads = _heads_of(channels, heads, head_channels)
        self.norm = group_norm(groups, channels, eps)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.attend = DotProductAttention()
        self.out = zeroed(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        B, C, H, W = x.shape
        qkv = self.qkv(self.norm(x)).view(B, 3, self.heads, C // self.heads, H * W).transpose(-1, -2)  # (B, 3, heads, HW, d)
        attended = self.attend(qkv[:, 0], qkv[:, 1], qkv[:, 2])
        out: Tensor = x + self.out(attended.transpose(-1, -2).reshape(B, C, H, W))
        return out


class TokenAttention(nn.Module):
    """Attention from tokens (B, N, C) to context tokens (B, M, D), or to themselves."""

    def __init__(self, channels: int, heads: int, context_dim: int | None = None) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(channels, channels, bias=False)
        self.k = nn.Linear(context_dim or channels, channels, bias=False)
        self.v = nn.Linear(context_dim or channels, channels, bias=False)
        self.attend = DotProductAttention()
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        source = x if context is None else context
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in (self.q(x), self.k(source), self.v(source)))
        out: Tensor = self.out(self.attend(q, k, v).transpose(1, 2).flatten(2))
        return out


class TransformerLayer(nn.Module):
    """Self-attention, cross-attention and a gated feed-forward net (GEGLU), each behind a LayerNorm and beside a skip."""

    def __init__(self, channels: int, heads: int, context_dim: int) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(channels) for _ in range(3))
        self.attention = TokenAttention(channels, heads)
        self.cross_attention = TokenAttention(channels, heads, context_dim)
        self.gate_in = nn.Linear(channels, 8 * channels)
        self.gate_out = nn.Linear(4 * channels, channels)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        x = x + self.cross_attention(self.norm2(x), context)
        both = self.gate_in(self.norm3(x))
        half = both.shape[-1] // 2  # slices and not a split: a form that every delegate takes
        out: Tensor = x + self.gate_out(both[..., :half] * F.gelu(both[..., half:]))
        return out


class SpatialTransformer(nn.Module):
    """Transformer layers over the cells of a feature map that also look at context tokens, (B, C, H, W) → the same."""

    def __init__(
        self, channels: int, *, groups: int, heads: int | None, head_channels: int | None, context_dim: int, depth: int
    ) -> None:
        super().__init__()
        self.norm = group_norm(groups, channels, eps=1e-6)
        self.proj_in = nn.Conv2d(channels, channels, 1)
        heads = _heads_of(channels, heads, head_channels)
        self.layers = nn.ModuleList(TransformerLayer(channels, heads, context_dim) for _ in range(depth))
        self.proj_out = zeroed(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        H, W = x.shape[-2:]
        tokens = self.proj_in(self.norm(x)).flatten(2).transpose(1, 2)  # (B, HW, C)
        for layer in self.layers:
            tokens = layer(tokens, context)
        out: Tensor = x + self.proj_out(tokens.transpose(1, 2).unflatten(2, (H, W)))
        return out


class ConvDown(nn.Conv2d):
    """Strided 3×3 convolution, (B, C, H, W) → (B, C, H/2, W/2); `pad` at "both" ends, or right and bottom only ("end", DDPM)."""

    def __init__(self, channels: int, pad: Literal["both", "end"] = "both") -> None:
        super().__init__(channels, channels, 3, stride=2, padding=1 if pad == "both" else 0)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if self.padding[0] else F.pad(x, (0, 1, 0, 1)))


class ConvUp(nn.Module):
    """Pixel doubling and a 3×3 convolution, (B, C, H, W) → (B, C, 2·H, 2·W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return out


class PoolDown(nn.AvgPool2d):
    """2×2 average pooling."""

    def __init__(self) -> None:
        super().__init__(2)


class PixelUp(nn.Upsample):
    """Pixel doubling."""

    def __init__(self) -> None:
        super().__init__(scale_factor=2.0, mode="nearest")


def sinusoid(t: Tensor, width: int, max_period: float = 10_000.0, shift: int = 0) -> Tensor:
    """Sinusoidal embedding of (possibly fractional) timesteps, (B,) → (B, width): cosines, then sines (ADM's order).

    Frequency k is max_period^(−k/(width/2 − shift)), k from 0: ADM's shift is 0, DDPM's 1.
    """
    half = width // 2
    frequencies = torch.exp(-math.log(max_period) / (half - shift) * torch.arange(half, dtype=t.dtype, device=t.device))
    angles = t[:, None] * frequencies[None]
    return F.pad(torch.cat([angles.cos(), angles.sin()], dim=-1), (0, width % 2))
