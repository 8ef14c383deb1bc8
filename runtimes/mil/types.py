"""The types of a program's values, and the error that a package which cannot be read ends in."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_sd.errors import EdgeSDError

# A value of more elements is of no program of ours: it is refused before memory is asked for.
LARGEST = 2**29
# MIL's names → ours. What is missing (bfloat16, 8-bit floats, …) has no operator that takes it.
_DTYPES = {
    "FLOAT16": "float16", "FLOAT32": "float32", "BOOL": "bool", "STRING": "string",
    "INT8": "int8", "INT16": "int16", "INT32": "int32", "INT64": "int64", "INT4": "int4",
    "UINT8": "uint8", "UINT16": "uint16", "UINT32": "uint32",
    "UINT1": "uint1", "UINT2": "uint2", "UINT3": "uint3", "UINT4": "uint4", "UINT6": "uint6",
}  # fmt: skip


@dataclass(frozen=True)
class TensorType:
    """Type and shape of a value; a scalar's shape is ().

    Attributes:
        dtype: float16, float32, bool, string, or an integer's: int4, int8, … uint32, also uint1, uint2, uint3, uint4, uint6.
    """

    dtype: str
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def kind(self) -> str:
        """float, integer, bool or string: an operator may be wrong by a rounding, never by a kind."""
        if self.dtype.startswith("float"):
            return "float"
        return self.dtype if self.dtype in ("bool", "string") else "integer"

    @property
    def bits(self) -> int:
        """Bits that an element takes in a file."""
        return 8 if self.dtype == "bool" else int("".join(letter for letter in self.dtype if letter.isdigit()))

    def __str__(self) -> str:
        return f"{self.dtype}{list(self.shape)}"


def damaged(path: Path, what: str) -> EdgeSDError:
    """The package is not as it was written."""
    return EdgeSDError(f"{path}: {what}", "copy or export the package again")


def unsupported(path: Path, what: str) -> EdgeSDError:
    """The package may be sound, and asks for more than is evaluated here."""
    return EdgeSDError(f"{path}: {what}", "export it with fixed shapes and one value in each output, or run it on a Mac")


def type_of(path: Path, spec: Any, name: str) -> TensorType:
    """Read MIL's ValueType.

    Raises:
        EdgeSDError: a state, a list or a dictionary; a shape that is flexible, too large or contradicts itself.
    """
    which = spec.WhichOneof("type")
    if which == "stateType":
        raise unsupported(path, f"{name} is a state, and states are not evaluated")
    if which != "tensorType":
        raise unsupported(path, f"{name} is of {which or 'no type'}, only tensors are evaluated")
    tensor = spec.tensorType
    number = tensor.DESCRIPTOR.fields_by_name["dataType"].enum_type.values_by_number.get(tensor.dataType)
    dtype = _DTYPES.get(number.name if number is not None else "")
    if dtype is None:
        raise unsupported(path, f"{name} is of data type {tensor.dataType if number is None else number.name}")
    if tensor.rank != len(tensor.dimensions):
        raise damaged(path, f"{name} has rank {tensor.rank} and {len(tensor.dimensions)} dimensions")
    shape = []
    for dimension in tensor.dimensions:
        if dimension.WhichOneof("dimension") != "constant":
            raise unsupported(path, f"the shape of {name} is flexible")
        shape.append(int(dimension.constant.size))
    found = TensorType(dtype, tuple(shape))
    if found.count > LARGEST or any(size > LARGEST for size in shape):
        raise damaged(path, f"{name} would be {found}, more than {LARGEST} elements")
    return found
