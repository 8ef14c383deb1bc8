"""Activations as integers: onto a grid of 8 bits, and back."""

import torch
from torch import Tensor

from edge_sd.runtimes.mil.operators import Arguments, operator, unfolded

_RANGES = {"int8": (-128, 127), "uint8": (0, 255), "int4": (-8, 7), "uint4": (0, 15)}


@operator("quantize")
def quantize(a: Arguments) -> Tensor:
    """round(input/scale) + zero_point, held inside the type; halves go to the even number, NaN to the zero point."""
    x, dtype = a.tensor("input"), a.text("output_dtype")
    if dtype != a.output.dtype or dtype not in _RANGES:
        raise ValueError(f"it makes {dtype} and declares {a.output.dtype}")
    low, high = _RANGES[dtype]
    rounded = torch.round(x / _column(a, "scale", x, 1.0)).nan_to_num(0.0, float(2**31), float(-(2**31)))
    return (rounded + _column(a, "zero_point", x, 0.0)).clamp(low, high).to(torch.int64)


@operator("dequantize")
def dequantize(a: Arguments) -> Tensor:
    """scale · (input − zero_point)."""
    x = a.tensor("input")
    return _column(a, "scale", x, 1.0) * (x - _column(a, "zero_point", x, 0.0)).float()


def _column(a: Arguments, name: str, x: Tensor, default: float) -> Tensor:
    """One number, or one for each slice along `axis`."""
    value = a.optional(name)
    if value is None or value.ndim == 0:
        return torch.tensor(default, device=x.device) if value is None else value
    shape = [1] * x.ndim
    shape[unfolded(x, a.integer("axis"))] = -1
    return value.reshape(shape)
