"""Compressed weights, unpacked: what every `constexpr_*` operator of iOS 16 to 18 stands for, in NumPy.

Core ML unpacks them when it loads the program or while it runs; the numbers are the same. Scales and shifts are computed in
float32 and rounded to the type that the operator declares.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_sd.runtimes.mil.blob import Constant, unpack
from edge_sd.runtimes.mil.types import LARGEST

Array = NDArray[Any]
# Parameter → constant; those that were left out are missing.
Parameters = Mapping[str, Constant]

UNPACKERS: dict[str, Callable[[Parameters], tuple[Array, ...]]] = {}
PREFIX = "constexpr_"


def _unpacker(function: Callable[[Parameters], Array | tuple[Array, ...]]) -> Callable[[Parameters], Array | tuple[Array, ...]]:
    def outputs(parameters: Parameters) -> tuple[Array, ...]:
        found = function(parameters)
        return found if isinstance(found, tuple) else (found,)

    UNPACKERS[PREFIX + function.__name__] = outputs
    return function


@_unpacker
def cast(p: Parameters) -> Array:
    """source_val float16 (…) → float32 (…)."""
    return _array(p, "source_val").astype(np.float32)


@_unpacker
def affine_dequantize(p: Parameters) -> Array:
    """scale · (quantized_data − zero_point); both scalars, or vectors along `axis`."""
    data, axis = _array(p, "quantized_data"), int(_array(p, "axis"))
    if not -data.ndim <= axis < data.ndim:
        raise ValueError(f"axis {axis} of {data.ndim} dimensions")
    column = [1] * data.ndim
    column[axis] = -1
    scale, zero = (value if value.ndim == 0 else value.reshape(column) for value in (_array(p, "scale"), _array(p, "zero_point")))
    for value in (scale, zero):
        if value.size not in (1, data.shape[axis]):
            raise ValueError(f"{value.size} scales or zero points for {data.shape[axis]} slices")
    return _scaled(data, scale, zero)


@_unpacker
def blockwise_shift_scale(p: Parameters) -> Array:
    """scale · (data − offset); each scale is of a block, whose size along a dimension is data's over scale's."""
    data, scale = _array(p, "data"), _array(p, "scale")
    offset = _array(p, "offset") if "offset" in p else np.zeros(scale.shape, np.float32)
    return _scaled(data, _blocks(scale, data.shape), _blocks(offset, data.shape))


@_unpacker
def lut_to_dense(p: Parameters) -> Array:
    """Indices into one table (iOS 16, packed into bytes), or into a table for each block (iOS 18, of vectors, maybe)."""
    lut = _array(p, "lut")
    if "shape" in p:
        bits, shape = lut.size.bit_length() - 1, _shape(p)
        if lut.ndim != 1 or lut.size != 2**bits or not 1 <= bits <= 8:
            raise ValueError(f"a table of {lut.shape} entries")
        return lut[_packed(_array(p, "indices"), bits, shape)]
    return _looked_up(_array(p, "indices"), lut, _vector_axis(p))


@_unpacker
def sparse_to_dense(p: Parameters) -> Array:
    """Zeros but where `mask` has ones; there `nonzero_data`, in order."""
    mask = _packed(_array(p, "mask"), 1, _shape(p)) if "shape" in p else _array(p, "mask")
    return _dense(mask, _array(p, "nonzero_data"))


@_unpacker
def lut_to_sparse(p: Parameters) -> tuple[Array, Array]:
    """The mask, and what stands where it is set: entries of a table, whose indices are there for no others."""
    mask, lut, axis = _array(p, "indices_mask"), _array(p, "lut"), _vector_axis(p)
    values = _looked_up(_dense(mask, _array(p, "indices_nonzero_data")), lut, axis)
    if axis is not None:
        mask = np.repeat(mask, lut.shape[-1], axis=axis)
    return mask, values[mask != 0]


@_unpacker
def sparse_blockwise_shift_scale(p: Parameters) -> tuple[Array, Array]:
    """The mask, and scale · (data − offset) where it is set."""
    mask, scale = _array(p, "data_mask"), _array(p, "scale")
    offset = _array(p, "offset") if "offset" in p else np.zeros(scale.shape, np.float32)
    data = _dense(mask, _array(p, "nonzero_data"))
    return mask, _scaled(data, _blocks(scale, data.shape), _blocks(offset, data.shape))[mask != 0]


# What they share


def _array(p: Parameters, name: str) -> Array:
    value = p.get(name)
    if not isinstance(value, np.ndarray):
        raise ValueError(f"its {name} is {'text' if isinstance(value, str) else 'missing'}")
    return value


def _shape(p: Parameters) -> tuple[int, ...]:
    shape = tuple(int(size) for size in _array(p, "shape").reshape(-1))
    if any(not 0 <= size <= LARGEST for size in shape):
        raise ValueError(f"a shape of {shape}")
    return shape


def _vector_axis(p: Parameters) -> int | None:
    return int(_array(p, "vector_axis")) if "vector_axis" in p else None


def _scaled(data: Array, scale: Array, offset: Array) -> Array:
    with np.errstate(all="ignore"):  # what is too large for half precision is infinite there
        return ((data.astype(np.float32) - offset.astype(np.float32)) * scale.astype(np.float32)).astype(scale.dtype)


def _blocks(values: Array, shape: tuple[int, ...]) -> Array:
    """One value a block → one an element."""
    if values.ndim != len(shape) or any(not few or many % few for many, few in zip(shape, values.shape, strict=True)):
        raise ValueError(f"blocks of {values.shape} in {shape}")
    for axis, size in enumerate(shape):
        values = np.repeat(values, size // values.shape[axis], axis=axis)
    return values


def _packed(data: Array, bits: int, shape: tuple[int, ...]) -> Array:
    count = int(np.prod(shape, dtype=object))
    if data.dtype != np.uint8 or data.shape != (-(-count * bits // 8),):
        raise ValueError(f"{data.shape} bytes hold no {count} integers of {bits} bits")
    return unpack(data, bits, count).reshape(shape)


def _looked_up(indices: Array, lut: Array, axis: int | None) -> Array:
    """lut (blocks …, entries, vector): one table for each block of indices; a vector is laid out along `axis`."""
    if lut.ndim != indices.ndim + 2:
        raise ValueError(f"a table of {lut.ndim} dimensions for indices of {indices.ndim}")
    entries, vector = lut.shape[-2:]
    # Number of each element's table, in the order in which they lie in memory.
    tables = np.arange(int(np.prod(lut.shape[:-2]))).reshape(lut.shape[:-2])
    found = lut.reshape(-1, entries, vector)[_blocks(tables, indices.shape), indices.astype(np.int64)]
    if vector == 1:
        return found[..., 0]
    if axis is None or not -indices.ndim <= axis < indices.ndim:
        raise ValueError(f"vectors along axis {axis} of {indices.ndim} dimensions")
    axis %= indices.ndim
    shape = list(indices.shape)
    shape[axis] *= vector
    return np.moveaxis(found, -1, axis + 1).reshape(shape)


def _dense(mask: Array, values: Array) -> Array:
    there = mask != 0
    if values.shape != (int(there.sum()),):
        raise ValueError(f"{values.shape} values for {int(there.sum())} places")
    dense = np.zeros(mask.shape, values.dtype)
    dense[there] = values
    return dense
