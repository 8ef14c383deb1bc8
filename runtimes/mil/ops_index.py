"""Operators that pick by index, and those that make tensors from nothing but numbers."""

import math

import torch
from torch import Tensor

from edge_sd.runtimes.mil.operators import Arguments, operator, unfolded
from edge_sd.runtimes.mil.types import LARGEST

_FILLED = {"float": torch.float32, "integer": torch.int64, "bool": torch.bool}


@operator("gather")
def gather(a: Arguments) -> Tensor:
    """Slices of x along an axis; indices may count from the end, and share their first dimensions with x."""
    x, indices, batch = a.tensor("x"), a.tensor("indices"), a.integer("batch_dims", 0)
    axis = unfolded(x, a.integer("axis", 0))
    if not batch:
        return _taken(x, indices, axis)
    if not 0 < batch <= min(axis, indices.ndim) or x.shape[:batch] != indices.shape[:batch]:
        raise ValueError(f"{batch} batch dimensions of {list(x.shape)} and {list(indices.shape)} before axis {axis}")
    pairs = zip(x.flatten(0, batch - 1), indices.flatten(0, batch - 1), strict=True)
    found = torch.stack([_taken(one, places, axis - batch) for one, places in pairs])
    return found.reshape(*x.shape[:batch], *found.shape[1:])


def _taken(x: Tensor, indices: Tensor, axis: int) -> Tensor:
    found = x.index_select(axis, _from_front(indices, x.shape[axis]).reshape(-1))
    return found.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])


def _from_front(indices: Tensor, size: int) -> Tensor:
    return torch.where(indices < 0, indices + size, indices)


@operator("gather_along_axis")
def gather_along_axis(a: Arguments) -> Tensor:
    x = a.tensor("x")
    axis = unfolded(x, a.integer("axis", 0))
    return torch.gather(x, axis, _from_front(a.tensor("indices"), x.shape[axis]))


@operator("gather_nd")
def gather_nd(a: Arguments) -> Tensor:
    """x (D …), indices (…, k) → (…, D[k:])."""
    x, indices, batch = a.tensor("x"), a.tensor("indices"), a.integer("batch_dims", 0)
    if not batch:
        return x[indices.unbind(-1)]
    if not 0 < batch < min(x.ndim, indices.ndim) or x.shape[:batch] != indices.shape[:batch]:
        raise ValueError(f"{batch} batch dimensions of {list(x.shape)} and {list(indices.shape)}")
    pairs = zip(x.flatten(0, batch - 1), indices.flatten(0, batch - 1), strict=True)
    found = torch.stack([one[places.unbind(-1)] for one, places in pairs])
    return found.reshape(*x.shape[:batch], *found.shape[1:])


@operator("one_hot")
def one_hot(a: Arguments) -> Tensor:
    indices, size = a.tensor("indices"), a.integer("one_hot_vector_size")
    axis = a.integer("axis", -1)
    places = torch.arange(_small(size), device=indices.device)
    hot = indices.unsqueeze(-1) == places
    hot = hot.movedim(-1, axis)
    values = a.number("on_value", 1.0), a.number("off_value", 0.0)
    on, off = (torch.tensor(value, dtype=_FILLED[a.output.kind], device=hot.device) for value in values)
    return torch.where(hot, on, off)


def _small(size: int) -> int:
    if not 0 <= size <= LARGEST:
        raise ValueError(f"{size} elements")
    return size


@operator("fill")
def fill(a: Arguments) -> Tensor:
    # It asks for no memory that nobody expected.
    if tuple(a.integers("shape")) != a.output.shape:
        raise ValueError(f"it fills {a.integers('shape')} and declares {a.output}")
    return torch.full(a.output.shape, a.number("value", 0.0), dtype=_FILLED[a.output.kind])


@operator("fill_like")
def fill_like(a: Arguments) -> Tensor:
    like = a.tensor("ref_tensor")
    return torch.full(like.shape, a.number("value", 0.0), dtype=_FILLED[a.output.kind], device=like.device)


@operator("range_1d")
def range_1d(a: Arguments) -> Tensor:
    start, end, step = a.number("start"), a.number("end"), a.number("step")
    # It asks for no memory that nobody expected.
    if not step or not 0 <= math.ceil((end - start) / step) <= a.output.count:
        raise ValueError(f"from {start} to {end} by {step} are not {a.output}")
    return torch.arange(start, end, step, dtype=torch.float64).to(_FILLED[a.output.kind])


@operator("cumsum")
def cumsum(a: Arguments) -> Tensor:
    """`exclusive` leaves each element out of its own sum."""
    x = a.tensor("x")
    axis, backward = unfolded(x, a.integer("axis", 0)), a.flag("reverse", False)
    x = x.flip(axis) if backward else x
    sums = torch.cumsum(x, axis)
    sums = sums - x if a.flag("exclusive", False) else sums
    return sums.flip(axis) if backward else sums


@operator("band_part")
def band_part(a: Arguments) -> Tensor:
    """What lies at most `lower` below and `upper` above the diagonal; −1 is no bound."""
    x, lower, upper = a.tensor("x"), a.integer("lower", -1), a.integer("upper", -1)
    x = x if lower < 0 else x.triu(-lower)
    return x if upper < 0 else x.tril(upper)


@operator("argsort")
def argsort(a: Arguments) -> Tensor:
    x = a.tensor("x")
    axis, down = unfolded(x, a.integer("axis", -1)), not a.flag("ascending", False)
    return torch.argsort(x, dim=axis, descending=down, stable=True)


@operator("topk")
def topk(a: Arguments) -> tuple[Tensor, ...]:
    """The k largest in falling order (smallest, rising) and, unless told otherwise, where they are; of equals the first."""
    x, k = a.tensor("x"), a.integer("k", 1)
    axis, down = unfolded(x, a.integer("axis", -1)), not a.flag("ascending", False)
    values, places = torch.sort(x, dim=axis, descending=down, stable=True)
    found = values.narrow(axis, 0, k), places.narrow(axis, 0, k)
    return found if a.flag("return_indices", True) else found[:1]
