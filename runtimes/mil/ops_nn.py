"""Convolutions, products, attention, norms and pooling."""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from edge_sd.runtimes.mil.operators import Arguments, operator, unfolded
from edge_sd.runtimes.mil.types import LARGEST

_CONV: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED: dict[int, Callable[..., Tensor]] = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
_AVERAGE: dict[int, Callable[..., Tensor]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
_LARGEST: dict[int, Callable[..., Tensor]] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


# Padding


def _margins(a: Arguments, x: Tensor, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]) -> list[int]:
    """[before, after] of each spatial dimension, the first first."""
    mode = a.text("pad_type", "valid")
    if mode == "valid":
        return [0] * (2 * len(kernel))
    if mode == "custom":
        margins = a.integers("pad", [0] * (2 * len(kernel)))
        if len(margins) != 2 * len(kernel) or min(margins) < 0:
            raise ValueError(f"pad {margins} of {len(kernel)} dimensions")
        return margins
    if mode not in ("same", "same_lower"):
        raise ValueError(f"its pad_type is {mode}")
    margins = []
    for size, window, stride, dilation in zip(x.shape[2:], kernel, strides, dilations, strict=True):
        total = max(0, (-(-size // stride) - 1) * stride + (window - 1) * dilation + 1 - size)
        less = total // 2
        margins += [less, total - less] if mode == "same" else [total - less, less]
    return margins


def _padded(x: Tensor, margins: Sequence[int], value: float = 0.0) -> Tensor:
    if not any(margins):
        return x
    pairs = list(zip(margins[::2], margins[1::2], strict=True))
    sizes = [size + sum(pair) for size, pair in zip(x.shape[2:], pairs, strict=True)]
    if math.prod([*x.shape[:2], *sizes]) > LARGEST:
        raise ValueError(f"padded by {list(margins)}, {list(x.shape)} would be more than {LARGEST} elements")
    return F.pad(x, [margin for pair in reversed(pairs) for margin in pair], value=value)


# Products


@operator("conv")
def conv(a: Arguments) -> Tensor:
    """x (B, I, …), weight (O, I/groups, k …), bias (O) → (B, O, …)."""
    x, weight = a.tensor("x"), a.tensor("weight")
    rank, ones = x.ndim - 2, [1] * (x.ndim - 2)
    strides, dilations = a.integers("strides", ones), a.integers("dilations", ones)
    margins = _margins(a, x, weight.shape[2:], strides, dilations)
    # What is the same on both sides needs no copy.
    both = margins[::2] if margins[::2] == margins[1::2] else [0] * rank
    x = x if any(both) else _padded(x, margins)
    return _CONV[rank](x, weight, a.optional("bias"), strides, both, dilations, a.integer("groups", 1))


@operator("conv_transpose")
def conv_transpose(a: Arguments) -> Tensor:
    """x (B, I, …), weight (I, O/groups, k …) → (B, O, …): all that a place reaches, cut by the padding or to `output_shape`."""
    x, weight, bias = a.tensor("x"), a.tensor("weight"), a.optional("bias")
    rank, ones, mode = x.ndim - 2, [1] * (x.ndim - 2), a.text("pad_type", "valid")
    strides, dilations = a.integers("strides", ones), a.integers("dilations", ones)
    full = _TRANSPOSED[rank](x, weight, None, strides, 0, 0, a.integer("groups", 1), dilations)
    cuts = a.integers("pad", [0] * (2 * rank)) if mode == "custom" else [0] * (2 * rank)
    if mode == "same":
        totals = [full.shape[2 + axis] - size * strides[axis] for axis, size in enumerate(x.shape[2:])]
        cuts = [part for total in totals for part in (max(0, total) // 2, total - max(0, total) // 2)]
    elif mode not in ("valid", "custom"):
        raise ValueError(f"its pad_type is {mode}")
    if "output_shape" in a:
        ends = a.integers("output_shape")[2:]
        cuts = [part for axis in range(rank) for part in (cuts[2 * axis], full.shape[2 + axis] - cuts[2 * axis] - ends[axis])]
    # A negative cut adds what no place reaches: zeros, as torch's output_padding does.
    found = _padded(full, [-cut for cut in cuts])
    return found if bias is None else found + bias.reshape(-1, *ones)


@operator("linear")
def linear(a: Arguments) -> Tensor:
    return F.linear(a.tensor("x"), a.tensor("weight"), a.optional("bias"))


@operator("matmul")
def matmul(a: Arguments) -> Tensor:
    x, y = a.tensor("x"), a.tensor("y")
    x = x.mT if a.flag("transpose_x", False) else x
    return torch.matmul(x, y.mT if a.flag("transpose_y", False) else y)


@operator("einsum")
def einsum(a: Arguments) -> Tensor:
    return torch.einsum(a.text("equation"), *a.tensors("values"))


@operator("scaled_dot_product_attention")
def scaled_dot_product_attention(a: Arguments) -> Tensor:
    """softmax(Q·Kᵀ/√d + mask)·V; where a mask of truth values is false, nothing is looked at."""
    query, key, value = a.tensor("query"), a.tensor("key"), a.tensor("value")
    scores = query @ key.mT / math.sqrt(query.shape[-1])
    mask = a.optional("attn_mask")
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
    return torch.softmax(scores, -1) @ value


# Norms


@operator("batch_norm")
def batch_norm(a: Arguments) -> Tensor:
    x, gamma, beta = a.tensor("x"), a.optional("gamma"), a.optional("beta")
    return F.batch_norm(x, a.tensor("mean"), a.tensor("variance"), gamma, beta, False, 0.0, a.number("epsilon", 1e-5))


@operator("instance_norm")
def instance_norm(a: Arguments) -> Tensor:
    """Over each channel's places; x (B, C, …)."""
    x = a.tensor("x")
    column = (-1, *[1] * (x.ndim - 2))
    return _normed(a, x, list(range(2, x.ndim)), column)


@operator("layer_norm")
def layer_norm(a: Arguments) -> Tensor:
    x = a.tensor("x")
    axes = sorted({unfolded(x, axis) for axis in a.integers("axes", range(x.ndim))})
    return _normed(a, x, axes, tuple(size if axis in axes else 1 for axis, size in enumerate(x.shape)))


def _normed(a: Arguments, x: Tensor, axes: list[int], affine: tuple[int, ...]) -> Tensor:
    variance, mean = torch.var_mean(x, axes, correction=0, keepdim=True)
    found = (x - mean) * torch.rsqrt(variance + a.number("epsilon", 1e-5))
    gamma, beta = a.optional("gamma"), a.optional("beta")
    found = found if gamma is None else found * gamma.reshape(affine)
    return found if beta is None else found + beta.reshape(affine)


@operator("l2_norm")
def l2_norm(a: Arguments) -> Tensor:
    """By the length over the last three dimensions."""
    x = a.tensor("x")
    return x * torch.rsqrt(x.square().sum((-3, -2, -1), keepdim=True) + a.number("epsilon", 1e-6))


@operator("local_response_norm")
def local_response_norm(a: Arguments) -> Tensor:
    return F.local_response_norm(
        a.tensor("x"), a.integer("size"), a.number("alpha", 1e-4), a.number("beta", 0.75), a.number("k", 1.0)
    )


# Pooling


@operator("max_pool")
def max_pool(a: Arguments) -> Tensor:
    x, kernel, strides, margins, ceil = _window(a)
    if ceil:
        return _LARGEST[x.ndim - 2](x, kernel, strides, margins[::2], ceil_mode=True)
    return _LARGEST[x.ndim - 2](_padded(x, margins, -math.inf), kernel, strides)


@operator("avg_pool")
def avg_pool(a: Arguments) -> Tensor:
    x, kernel, strides, margins, ceil = _window(a)
    pool, counted = _AVERAGE[x.ndim - 2], not a.flag("exclude_padding_from_average", False)
    if ceil:
        return pool(x, kernel, strides, margins[::2], ceil_mode=True, count_include_pad=counted)
    found = pool(_padded(x, margins), kernel, strides)
    return found if counted else found / pool(_padded(torch.ones_like(x), margins), kernel, strides)


@operator("l2_pool")
def l2_pool(a: Arguments) -> Tensor:
    """Root of the sum of squares in each window."""
    x, kernel, strides, margins, ceil = _window(a)
    if ceil:
        raise ValueError("its ceil_mode is true")
    return (_AVERAGE[x.ndim - 2](_padded(x, margins).square(), kernel, strides) * math.prod(kernel)).sqrt()


def _window(a: Arguments) -> tuple[Tensor, list[int], list[int], list[int], bool]:
    x, kernel = a.tensor("x"), a.integers("kernel_sizes")
    strides = a.integers("strides", [1] * len(kernel))
    margins, ceil = _margins(a, x, kernel, strides, [1] * len(kernel)), a.flag("ceil_mode", False)
    if ceil and margins[::2] != margins[1::2]:
        raise ValueError(f"its ceil_mode is true, and its padding {margins}")
    return x, kernel, strides, margins, ceil
