"""Constants of a program: those in model.mlmodel itself, and those in weight.bin, by its layout.

weight.bin is a header of 64 bytes and, for each constant, a record of 64 bytes (sentinel, type, size, where the data begin) that
the program points at. Nothing of what wrote the file takes part in reading it.
"""

import struct
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_sd.runtimes.mil.types import TensorType, damaged, type_of

Constant = NDArray[Any] | str

_SENTINEL = 0xDEADBEEF
_RECORD = struct.Struct("<IIQQ")
# The types of records, from Core ML's MILBlob format.
_BLOB_TYPES = {
    1: "float16", 2: "float32", 3: "uint8", 4: "int8", 6: "int16", 7: "uint16", 8: "int4", 9: "uint1", 10: "uint2", 11: "uint4",
    12: "uint3", 13: "uint6", 14: "int32", 15: "uint32",
}  # fmt: skip
# Integers of fewer bits than a byte take a byte in memory.
_NUMPY = {"int4": "int8", **{f"uint{bits}": "uint8" for bits in (1, 2, 3, 4, 6)}}
# Which list of a TensorValue holds a type; bytes hold any but text.
_LISTS = {"floats": "float32", "bools": "bool", "longInts": "int64"}


class Weights:
    """The files below a package's model that constants lie in, each mapped when it is first pointed at."""

    def __init__(self, model: Path) -> None:
        self._model, self._files = model, dict[str, _WeightFile]()

    def read(self, name: str, offset: int, type_: TensorType, what: str) -> NDArray[Any]:
        """Read one constant.

        Args:
            name: as the program writes it, @model_path/weights/weight.bin.

        Raises:
            EdgeSDError: no such file, or no such record in it.
        """
        if name not in self._files:
            relative = Path(name.removeprefix("@model_path/"))
            if not name.startswith("@model_path/") or relative.is_absolute() or ".." in relative.parts or "\0" in name:
                raise damaged(self._model, f"{what} lies in {name!r}, which is not below the package")
            self._files[name] = _WeightFile(self._model.parent / relative)
        return self._files[name].read(offset, type_, what)


class _WeightFile:
    def __init__(self, path: Path) -> None:
        self._path = path

    @cached_property
    def _data(self) -> NDArray[np.uint8]:
        try:
            return np.memmap(self._path, np.uint8, mode="r")
        except (OSError, ValueError) as error:  # ValueError: NumPy maps no empty file
            raise damaged(self._path, f"the weights cannot be read: {error}") from error

    def read(self, offset: int, type_: TensorType, what: str) -> NDArray[Any]:
        size = len(self._data)
        if offset % 8 or offset + _RECORD.size > size:
            raise damaged(self._path, f"{what} is said to be at byte {offset} of {size}")
        sentinel, number, length, start = _RECORD.unpack(self._data[offset : offset + _RECORD.size].tobytes())
        if sentinel != _SENTINEL:
            raise damaged(self._path, f"there is no constant at byte {offset}, where {what} is said to be")
        dtype = _BLOB_TYPES.get(number, f"type {number}")
        if dtype != ("uint8" if type_.dtype == "bool" else type_.dtype):
            raise damaged(self._path, f"{what} should be {type_.dtype}, the file has {dtype}")
        if start + length > size:
            raise damaged(self._path, f"{what} ends at byte {start + length} of {size}: the file is cut short")
        if length != (wanted := packed_bytes(type_)):
            raise damaged(self._path, f"{what}, {type_}, takes {wanted} bytes, the file has {length}")
        return from_bytes(self._data[start : start + length].tobytes(), type_)


def packed_bytes(type_: TensorType) -> int:
    """Bytes that a tensor takes in a file; narrow integers lie side by side, across the bytes' borders."""
    return -(-type_.count * type_.bits // 8)


def from_bytes(data: bytes, type_: TensorType) -> NDArray[Any]:
    """Numbers from their little-endian bytes; int4, uint1 … uint6 each get a byte of their own."""
    if type_.dtype == "bool":
        truth: NDArray[np.bool_] = np.frombuffer(data, np.uint8).reshape(type_.shape) != 0
        return truth
    if type_.dtype not in _NUMPY:
        return np.frombuffer(data, np.dtype(type_.dtype).newbyteorder("<")).reshape(type_.shape)
    unpacked = unpack(np.frombuffer(data, np.uint8), type_.bits, type_.count)
    signed = np.where(unpacked > 7, unpacked.astype(np.int16) - 16, unpacked) if type_.dtype == "int4" else unpacked
    narrow: NDArray[Any] = signed.astype(_NUMPY[type_.dtype]).reshape(type_.shape)
    return narrow


def unpack(data: NDArray[np.uint8], bits: int, count: int) -> NDArray[np.uint8]:
    """The first `count` unsigned integers of `bits` bits each, the lowest bits of the first byte first. => (count,)"""
    flat = np.unpackbits(data, count=count * bits, bitorder="little").reshape(count, bits)
    found: NDArray[np.uint8] = np.packbits(flat, axis=1, bitorder="little").reshape(count)
    return found


def read_constant(path: Path, value: Any, weights: Weights, what: str) -> tuple[Constant, TensorType]:
    """Read MIL's Value: text or a tensor, inside the program or in weight.bin.

    Raises:
        EdgeSDError: it is something else, or there are more or fewer numbers than its type says.
    """
    type_ = type_of(path, value.type, what)
    if value.WhichOneof("value") == "blobFileValue":
        blob = value.blobFileValue
        if type_.kind == "string":
            raise damaged(path, f"{what} is text in {blob.fileName}")
        return weights.read(blob.fileName, int(blob.offset), type_, what), type_
    immediate = value.immediateValue
    if immediate.WhichOneof("value") != "tensor":
        raise damaged(path, f"{what} holds {immediate.WhichOneof('value') or 'nothing'} where a tensor should be")
    held = immediate.tensor.WhichOneof("value")
    numbers: Any = getattr(immediate.tensor, held).values if held else ()
    if held == "strings" and type_.dtype == "string" and type_.shape == () and len(numbers) == 1:
        return str(numbers[0]), type_
    size, wanted = len(numbers), packed_bytes(type_) if held == "bytes" and type_.kind != "string" else type_.count
    fits = held == "bytes" or _LISTS.get(held or "") == type_.dtype or (held == "ints" and type_.kind == "integer")
    if type_.kind == "string" or not fits or size != wanted:
        raise damaged(path, f"{what} should be {type_} and holds {size} {held or 'values'}")
    if held == "bytes":
        return from_bytes(numbers, type_), type_
    # Integers that do not fit into their type come round, as they would in the file.
    array = np.array(numbers, dtype=np.int64 if held == "ints" else type_.dtype)
    return array.astype(_NUMPY.get(type_.dtype, type_.dtype)).reshape(type_.shape), type_
