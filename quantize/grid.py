"""Grids: the numbers that a quantized tensor can hold, and how they are chosen.

real = scale · (integer − zero_point), integers in low … high. Weights: symmetric, zero_point 0, a scale for each output channel
or for each group of `group` input channels. Activations: asymmetric, one scale and zero_point a tensor. Rounding is to nearest,
ties to even, as ONNX, ExecuTorch and Core ML do.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from edge_sd.errors import UsageError
from edge_sd.validation import Record

RangeMethod = Literal["minmax", "percentile", "mse"]

FEWEST_BITS, MOST_WEIGHT_BITS = 2, 8
ACTIVATION_BITS = (8, 16)
PERCENTILE = 99.99
# Q-Diffusion's and TFMQ-DM's search: 80 shrunken ranges from 1.00 to 0.21, the error to the power 2.4 (BRECQ's code).
_SHRINKS, _SHRINK_STEP, _ERROR_POWER = 80, 0.01, 2.4


class WeightGrid(Record):
    """How the weights of one layer are stored.

    Attributes:
        bits: 2 to 8.
        group: input channels that share a scale; None: one scale for each output channel.
        method: how scales are chosen.
    """

    bits: int = Field(ge=FEWEST_BITS, le=MOST_WEIGHT_BITS)
    group: int | None = Field(default=None, ge=2)
    method: Literal["minmax", "mse"] = "mse"

    @property
    def low(self) -> int:
        """The smallest integer: −2^(b−1), but −127 at 8 bits, where kernels want a symmetric range."""
        return -127 if self.bits == 8 else -(1 << (self.bits - 1))

    @property
    def high(self) -> int:
        """The largest integer."""
        return (1 << (self.bits - 1)) - 1


@dataclass(frozen=True)
class ActivationGrid:
    """One tensor's grid; unsigned integers 0 … 2^bits − 1.

    Attributes:
        scale: real per integer, > 0.
        zero_point: the integer that stands for 0.0, which is always exact.
    """

    bits: int
    scale: float
    zero_point: int

    @property
    def high(self) -> int:
        """The largest integer; the smallest is 0."""
        return (1 << self.bits) - 1

    @property
    def range(self) -> tuple[float, float]:
        """The smallest and the largest real number on it."""
        return -self.zero_point * self.scale, (self.high - self.zero_point) * self.scale

    def integers(self, x: Tensor) -> Tensor:
        """Nearest integers, in x's dtype and shape."""
        return torch.clamp(torch.round(x / self.scale) + self.zero_point, 0, self.high)

    def reals(self, integers: Tensor) -> Tensor:
        """What integers stand for."""
        return (integers - self.zero_point) * self.scale

    def quantized(self, x: Tensor) -> Tensor:
        """x on the grid, as real numbers."""
        return self.reals(self.integers(x))


def activation_grid(low: float, high: float, bits: int) -> ActivationGrid:
    """The grid that spans low … high and holds 0.0.

    Raises:
        UsageError: the range is not finite, or not one.
    """
    if not (low <= high and abs(low) < float("inf") and abs(high) < float("inf")):
        raise UsageError(f"{low} … {high} is no range of activations", "look for non-finite values in the calibration inputs")
    low, high = min(low, 0.0), max(high, 0.0)
    levels = 2**bits - 1
    scale = _stored((high - low) / levels)
    return ActivationGrid(bits, scale, min(round(-low / scale), levels))


def symmetric_grid(low: float, high: float, bits: int) -> ActivationGrid:
    """The grid that spans low … high, and as much on 0's other side; its zero_point is the middle."""
    activation_grid(low, high, bits)  # refuses what is no range
    middle = 2 ** (bits - 1)
    return ActivationGrid(bits, _stored(max(-low, high) / (middle - 1)), middle)


def _stored(scale: float) -> float:
    """A scale as files keep it, float32; 1 for a tensor that is always 0, or so near that float32 has no digits left."""
    stored = float(np.float32(scale))
    return stored if stored >= float(np.finfo(np.float32).tiny) else 1.0


def search_activation_grid(x: Tensor, bits: int, method: RangeMethod, *, symmetric: bool = False) -> ActivationGrid:
    """Choose a grid for a sample of an activation's values, of any shape; a symmetric one is centred on 0.

    "minmax" spans all; "percentile" leaves out 0.005 % at each end; "mse" tries 80 ranges, shrunken towards 0 alike on both
    sides, for the smallest mean |error|^2.4.
    """
    values = x.detach().float().flatten()
    low, high = values.min().item(), values.max().item()
    if method == "percentile":
        tail = (100 - PERCENTILE) / 200
        ordered = values.sort().values  # torch.quantile takes 16 M values at most
        low, high = (ordered[round(share * (len(ordered) - 1))].item() for share in (tail, 1 - tail))
    make = symmetric_grid if symmetric else activation_grid
    best, found = float("inf"), make(low, high, bits)
    if method != "mse":
        return found
    for step in range(_SHRINKS):
        shrink = 1 - step * _SHRINK_STEP
        grid = make(low * shrink, high * shrink, bits)
        error = (grid.quantized(values) - values).abs().pow(_ERROR_POWER).mean().item()
        if error < best:
            best, found = error, grid
    return found


# Weights


def grouped(weight: Tensor, group: int | None) -> Tensor:
    """Weights (O, I, …) as rows that share a scale: (O, groups, numbers).

    Raises:
        UsageError: the input channels do not divide into groups.
    """
    if group is None or group >= weight.shape[1]:
        return weight.flatten(1).unsqueeze(1)
    if weight.shape[1] % group:
        raise UsageError(f"{weight.shape[1]} input channels do not divide into groups of {group}", "choose a divisor")
    rows: Tensor = weight.unflatten(1, (-1, group)).flatten(2)
    return rows


def weight_scales(weight: Tensor, grid: WeightGrid) -> Tensor:
    """Scales (O, groups) of weights (O, I, …), all > 0.

    Raises:
        UsageError: a weight is not finite, or the group does not fit.
    """
    rows = grouped(weight.detach().float(), grid.group)
    if not torch.isfinite(rows).all():
        raise UsageError("a weight is not finite", "the checkpoint is broken: train or download it again")
    span = rows.abs().amax(-1)
    if grid.method == "minmax":
        return _positive(span / grid.high)
    best, found = torch.full_like(span, float("inf")), torch.ones_like(span)
    for step in range(_SHRINKS):
        # The range ends at `low` as well as at `high`: |low| is one more, and worth having at few bits.
        scale = _positive(span * (1 - step * _SHRINK_STEP) / grid.high)
        integers = torch.clamp(torch.round(rows / scale[..., None]), grid.low, grid.high)
        error = (integers * scale[..., None] - rows).abs().pow(_ERROR_POWER).sum(-1)
        better = error < best
        best, found = torch.where(better, error, best), torch.where(better, scale, found)
    return found


def _positive(scale: Tensor) -> Tensor:
    return torch.where(scale > 0, scale, torch.ones_like(scale))


def expand_scales(scales: Tensor, weight: Tensor) -> Tensor:
    """Scales (O, groups) in a shape that multiplies weights (O, I, …)."""
    per_input = scales.repeat_interleave(weight.shape[1] // scales.shape[1], dim=1) if scales.shape[1] > 1 else scales
    return per_input.reshape(*per_input.shape, *([1] * (weight.ndim - 2)))


def rounded_weight(weight: Tensor, scales: Tensor, grid: WeightGrid) -> Tensor:
    """Nearest integers of weights, int8, in their shape."""
    integers = torch.round(weight.detach().float() / expand_scales(scales, weight))
    return torch.clamp(integers, grid.low, grid.high).to(torch.int8)


def restored_weight(integers: Tensor, scales: Tensor) -> Tensor:
    """Real weights of integers, float32."""
    return integers.float() * expand_scales(scales, integers)
