"""Resampling of maps: by factors, to sizes, and a window of one."""

import torch
import torch.nn.functional as F
from torch import Tensor

from edge_sd.runtimes.mil.operators import Arguments, operator


def _as_maps(x: Tensor) -> Tensor:
    """(…, H, W) → (1, N, H, W)."""
    return x.reshape(1, -1, *x.shape[-2:])


@operator("upsample_nearest_neighbor")
def upsample_nearest_neighbor(a: Arguments) -> Tensor:
    """Place i takes what is at ⌊i/factor⌋."""
    x = a.tensor("x")
    factors = a.number("scale_factor_height", 1.0), a.number("scale_factor_width", 1.0)
    found = F.interpolate(_as_maps(x), scale_factor=factors, mode="nearest")
    return found.reshape(*x.shape[:-2], *found.shape[-2:])


@operator("upsample_bilinear")
def upsample_bilinear(a: Arguments) -> Tensor:
    """The factors give the size, and the size the places: as torch's recompute_scale_factor does."""
    x, align = a.tensor("x"), a.flag("align_corners", True)
    factors = a.number("scale_factor_height", 1.0), a.number("scale_factor_width", 1.0)
    height, width = (int(size * factor) for size, factor in zip(x.shape[-2:], factors, strict=True))
    if a.flag("half_pixel_centers", not align) is align:
        raise ValueError(f"align_corners and half_pixel_centers are both {align}")
    found = F.interpolate(_as_maps(x), size=(height, width), mode="bilinear", align_corners=align)
    return found.reshape(*x.shape[:-2], height, width)


@operator("resize_nearest_neighbor")
def resize_nearest_neighbor(a: Arguments) -> Tensor:
    """Place i takes what is at ⌊i·H/H'⌋."""
    x, size = a.tensor("x"), (a.integer("target_size_height"), a.integer("target_size_width"))
    return F.interpolate(_as_maps(x), size=size, mode="nearest").reshape(*x.shape[:-2], *size)


@operator("resize_bilinear")
def resize_bilinear(a: Arguments) -> Tensor:
    x, mode = a.tensor("x"), a.text("sampling_mode", "DEFAULT")
    for axis, name in ((-2, "target_size_height"), (-1, "target_size_width")):
        x = _linear(x, axis % x.ndim, a.integer(name, 1), mode)
    return x


@operator("resize")
def resize(a: Arguments) -> Tensor:
    """The last `resized_dims` dimensions, each to the last of `shape`; 0 keeps one."""
    x, shape, count = a.tensor("x"), a.integers("shape"), a.integer("resized_dims")
    mode, sampling = a.text("interpolation_mode", "LINEAR"), a.text("sampling_mode", "DEFAULT")
    if not 0 <= count <= min(len(shape), x.ndim):
        raise ValueError(f"{count} of {len(shape)} sizes for {x.ndim} dimensions")
    for axis in range(x.ndim - count, x.ndim):
        size = shape[axis - x.ndim]
        if not size:
            continue
        if mode == "LINEAR":
            x = _linear(x, axis, size, sampling)
        elif mode == "NEAREST_NEIGHBOR" and sampling == "DEFAULT":
            x = x.index_select(axis, torch.arange(size, device=x.device) * x.shape[axis] // size)
        else:
            raise ValueError(f"{mode} with {sampling}")
    return x


@operator("crop")
def crop(a: Arguments) -> Tensor:
    """As many rows and columns are cut off at each side."""
    x = a.tensor("x")
    for axis, name in ((-2, "crop_height"), (-1, "crop_width")):
        before, after = a.integers(name)
        x = x.narrow(axis, before, x.shape[axis] - before - after)
    return x


def _linear(x: Tensor, axis: int, size: int, mode: str) -> Tensor:
    """Resize one axis; between two places of the input by their distance."""
    last = x.shape[axis] - 1
    places = _places(x.shape[axis], size, mode).clamp(0, last)
    low = places.floor().clamp(max=max(0, last - 1))
    shape = [1] * x.ndim
    shape[axis] = size
    part = (places - low).float().reshape(shape).to(x.device)
    low = low.to(torch.int64).to(x.device)
    below, above = x.index_select(axis, low), x.index_select(axis, (low + 1).clamp(max=last))
    return below + (above - below) * part


def _places(before: int, after: int, mode: str) -> Tensor:
    """Where each of `after` places lies among `before`, (after,) float64; the formulas are MIL's."""
    steps = torch.arange(after, dtype=torch.float64)
    if mode in ("ALIGN_CORNERS", "STRICT_ALIGN_CORNERS"):
        if after == 1:
            return steps + ((before - 1) / 2 if mode == "ALIGN_CORNERS" else 0)
        return steps * (before - 1) / (after - 1)
    if mode == "DEFAULT":  # (before − before/after)/(after − 1) is before/after
        return steps * before / after
    if mode == "OFFSET_CORNERS":
        return (steps + 0.5) * max(1, before - 1) / after
    if mode == "UNALIGN_CORNERS":
        return (steps + 0.5) * before / after - 0.5
    raise ValueError(f"its sampling_mode is {mode}")
