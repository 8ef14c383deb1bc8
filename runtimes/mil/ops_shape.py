"""Operators that move numbers without changing them: reshaping, joining, cutting, padding."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from edge_sd.runtimes.mil.operators import Arguments, operator, unfolded
from edge_sd.runtimes.mil.types import LARGEST


@operator("reshape")
def reshape(a: Arguments) -> Tensor:
    """0 keeps a dimension of x, one −1 takes what is left."""
    x, shape = a.tensor("x"), a.integers("shape")
    if 0 in shape and x.numel():
        if len(shape) != x.ndim:
            raise ValueError(f"shape {shape} keeps dimensions of {list(x.shape)}")
        shape = [size or x.shape[axis] for axis, size in enumerate(shape)]
    return x.reshape(shape)


@operator("reshape_like")
def reshape_like(a: Arguments) -> Tensor:
    """To dimensions begin … end of each reference, one after another."""
    shape: list[int] = []
    parts = zip(a.tensors("ref_tensors"), a.integers("begins"), a.integers("ends"), a.flags("end_masks"), strict=True)
    for reference, begin, end, to_the_end in parts:
        shape += reference.shape[begin : None if to_the_end else end]
    return a.tensor("x").reshape(shape)


@operator("transpose")
def transpose(a: Arguments) -> Tensor:
    return a.tensor("x").permute(a.integers("perm"))


@operator("expand_dims")
def expand_dims(a: Arguments) -> Tensor:
    """`axes` are counted in the result."""
    x, axes = a.tensor("x"), a.integers("axes")
    rank = x.ndim + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


@operator("squeeze")
def squeeze(a: Arguments) -> Tensor:
    x = a.tensor("x")
    axes = a.integers("axes") if "axes" in a else [axis for axis, size in enumerate(x.shape) if size == 1]
    if any(x.shape[axis] != 1 for axis in axes):
        raise ValueError(f"axes {axes} of {list(x.shape)} are not all of size 1")
    return x.squeeze(axes)


@operator("flatten2d")
def flatten2d(a: Arguments) -> Tensor:
    x, axis = a.tensor("x"), a.integer("axis", 1)
    axis = axis + x.ndim if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


@operator("shape")
def shape(a: Arguments) -> Tensor:
    """Known when the program is loaded, as its shapes are."""
    return torch.tensor(a.tensor("x").shape, dtype=torch.int64)


@operator("concat")
def concat(a: Arguments) -> Tensor:
    values, axis = a.tensors("values"), a.integer("axis")
    if a.flag("interleave", False):
        axis = unfolded(values[0], axis)
        return torch.stack(values, axis + 1).flatten(axis, axis + 1)
    return torch.cat(values, axis)


@operator("stack")
def stack(a: Arguments) -> Tensor:
    return torch.stack(a.tensors("values"), a.integer("axis"))


@operator("split")
def split(a: Arguments) -> tuple[Tensor, ...]:
    x = a.tensor("x")
    axis = unfolded(x, a.integer("axis"))
    if "split_sizes" in a:
        return torch.split(x, a.integers("split_sizes"), axis)
    parts = a.integer("num_splits")
    if parts < 1 or x.shape[axis] % parts:
        raise ValueError(f"{x.shape[axis]} cannot be split into {parts}")
    return torch.split(x, x.shape[axis] // parts, axis)


@operator("tile")
def tile(a: Arguments) -> Tensor:
    return a.tensor("x").repeat(a.integers("reps"))


@operator("reverse")
def reverse(a: Arguments) -> Tensor:
    x = a.tensor("x")
    return torch.flip(x, a.integers("axes", range(x.ndim)))


@operator("pad")
def pad(a: Arguments) -> Tensor:
    """[before, after] of each of the last dimensions, the last of them last."""
    x, amounts, mode = a.tensor("x"), a.integers("pad"), a.text("mode", "constant")
    pairs = list(zip(amounts[::2], amounts[1::2], strict=True))
    if any(amount < 0 for amount in amounts) or len(pairs) > x.ndim:
        raise ValueError(f"pad {amounts} of {list(x.shape)}")
    if mode == "constant":
        return F.pad(x, [amount for pair in reversed(pairs) for amount in pair], value=a.number("constant_val", 0.0))
    if mode not in ("reflect", "replicate"):
        raise ValueError(f"its mode is {mode}")
    for axis, (before, after) in enumerate(pairs, start=x.ndim - len(pairs)):
        last = x.shape[axis] - 1
        if before + after > LARGEST or (mode == "reflect" and max(before, after) > last):
            raise ValueError(f"{mode} by {before} and {after} of {last + 1}")
        places = torch.arange(-before, last + 1 + after, device=x.device)
        # Reflected at 0 and at the last, which stand once; or held there.
        places = last - (places.abs() - last).abs() if mode == "reflect" else places.clamp(0, last)
        x = x.index_select(axis, places)
    return x


# Slices


def _taken(x: Tensor, axis: int, slice_: slice) -> Tensor:
    """A slice that may go backward, which torch's own cannot."""
    places = range(*slice_.indices(x.shape[axis]))
    if places.step == 1:
        return x.narrow(axis, min(places.start, x.shape[axis]), len(places))
    return x.index_select(axis, torch.tensor(list(places), dtype=torch.int64, device=x.device))


def _slices(a: Arguments, shape: Sequence[int]) -> list[slice | int]:
    """What begin, end, stride and their masks say of each dimension; an integer takes one place and drops the dimension."""
    rank = len(shape)
    begin, end, stride = a.integers("begin"), a.integers("end"), a.integers("stride", [1] * rank)
    no = [False] * rank
    masks = [a.flags(name, no) for name in ("begin_mask", "end_mask", "squeeze_mask")]
    found: list[slice | int] = []
    for size, first, last, step, from_start, to_end, squeezed in zip(shape, begin, end, stride, *masks, strict=True):
        if squeezed:
            if not -size <= first < size:
                raise ValueError(f"place {first} of {size}")
            found.append(first % size)
        else:
            found.append(slice(None if from_start else first, None if to_end else last, step))
    return found


@operator("slice_by_index")
def slice_by_index(a: Arguments) -> Tensor:
    x = a.tensor("x")
    parts = _slices(a, x.shape)
    for axis, part in reversed(list(enumerate(parts))):
        x = x.select(axis, part) if isinstance(part, int) else _taken(x, axis, part)
    return x


@operator("slice_by_size")
def slice_by_size(a: Arguments) -> Tensor:
    """A size of −1 takes all that is left."""
    x = a.tensor("x")
    for axis, (begin, size) in enumerate(zip(a.integers("begin"), a.integers("size"), strict=True)):
        begin = begin + x.shape[axis] if begin < 0 else begin
        x = x.narrow(axis, begin, x.shape[axis] - begin if size == -1 else size)
    return x


@operator("slice_update")
def slice_update(a: Arguments) -> Tensor:
    x, update = a.tensor("x").clone(), a.tensor("update")
    parts = _slices(a, x.shape)
    if any(isinstance(part, slice) and part.step < 0 for part in parts):
        raise ValueError("it goes backward")
    x[tuple(parts)] = update
    return x


# Between channels and places


@operator("pixel_shuffle")
def pixel_shuffle(a: Arguments) -> Tensor:
    return F.pixel_shuffle(a.tensor("x"), a.integer("upscale_factor"))


@operator("pixel_unshuffle")
def pixel_unshuffle(a: Arguments) -> Tensor:
    return F.pixel_unshuffle(a.tensor("x"), a.integer("downscale_factor"))


@operator("depth_to_space")
def depth_to_space(a: Arguments) -> Tensor:
    """(B, b²·C, H, W) → (B, C, b·H, b·W); unlike pixel_shuffle, the block's place is the slower part of a channel's number."""
    x, b = a.tensor("x"), a.integer("block_size")
    batch, channels, height, width = x.shape
    blocks = x.reshape(batch, b, b, channels // (b * b), height, width)
    return blocks.permute(0, 3, 4, 1, 5, 2).reshape(batch, channels // (b * b), height * b, width * b)


@operator("space_to_depth")
def space_to_depth(a: Arguments) -> Tensor:
    """(B, C, b·H, b·W) → (B, b²·C, H, W); undoes depth_to_space."""
    x, b = a.tensor("x"), a.integer("block_size")
    batch, channels, height, width = x.shape
    blocks = x.reshape(batch, channels, height // b, b, width // b, b)
    return blocks.permute(0, 3, 5, 1, 2, 4).reshape(batch, channels * b * b, height // b, width // b)
