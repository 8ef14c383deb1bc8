"""Frames: how a parent process calls programs in a child, over its standard input and output.

Everything is little-endian; a u32 is four bytes. After it has loaded its programs the child says so, unasked, once. Then each
request gets one response, until the end of the requests.

    request    u32 program (which of those it was started with), u32 count (at most 16), then count tensors
    response   u32 status, then   0: a tensor   1: a text, `Fault` as JSON   2: a text, `Ready` as JSON (the first response)
    tensor     u32 dtype (3 int32, 5 float16, 6 float32), u32 rank (at most 8), rank × u32 dimension, the values row by row
    text       u32 length in bytes, UTF-8

`cpp/frames.h` speaks the same in C++.
"""

import math
import struct
from collections.abc import Sequence
from enum import IntEnum
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from edge_sd.errors import EdgeSDError
from edge_sd.validation import Record

MOST_TENSORS, MOST_DIMENSIONS, MOST_BYTES, MOST_TEXT = 16, 8, 2**31, 2**20
# The numbers of torch's and ExecuTorch's ScalarType.
DTYPES = {3: "int32", 5: "float16", 6: "float32"}
_CODES = {name: code for code, name in DTYPES.items()}
_HINT = "is the other side of the same edge-sd? pip install --force-reinstall edge-sd"


class Status(IntEnum):
    """What a response holds."""

    TENSOR = 0
    FAULT = 1
    READY = 2


class BrokenFrameError(EdgeSDError):
    """Bytes that are no frame, or that end in the middle of one."""


class Signature(Record):
    """A program's tensors, each (dtype code, shape)."""

    inputs: tuple[tuple[int, tuple[int, ...]], ...]
    outputs: tuple[tuple[int, tuple[int, ...]], ...]


class Ready(Record):
    """The child's first word: the signature of each program that it has loaded."""

    programs: tuple[Signature, ...]


class Fault(Record):
    """An `EdgeSDError` on its way to the parent; `code` is its exit code."""

    message: str
    hint: str
    code: int


# Writing


def encode_request(program: int, tensors: Sequence[NDArray[Any]]) -> bytes:
    """One call, its tensors int32, float16 or float32.

    Raises:
        EdgeSDError: a tensor that no frame holds.
    """
    if len(tensors) > MOST_TENSORS:
        raise EdgeSDError(f"a call takes at most {MOST_TENSORS} tensors, not {len(tensors)}", "give fewer")
    return b"".join((struct.pack("<2I", program, len(tensors)), *map(_encode_tensor, tensors)))


def encode_answer(tensor: NDArray[Any]) -> bytes:
    """What a call returns, a tensor as in `encode_request`."""
    return struct.pack("<I", Status.TENSOR) + _encode_tensor(tensor)


def encode_ready(ready: Ready) -> bytes:
    """The child's first response."""
    return _encode_text(Status.READY, ready.model_dump_json())


def encode_fault(fault: Fault) -> bytes:
    """What a call comes to that cannot be answered. Texts too long for a frame are cut."""
    return _encode_text(
        Status.FAULT, Fault(message=_cut(fault.message), hint=_cut(fault.hint), code=fault.code).model_dump_json()
    )


def _cut(text: str) -> str:
    """JSON makes six bytes of a character at most; a file's name may hold what UTF-8 does not."""
    return text[: MOST_TEXT // 16].encode(errors="replace").decode()


def _encode_text(status: Status, text: str) -> bytes:
    data = text.encode()
    return struct.pack("<2I", status, len(data)) + data


def _encode_tensor(value: NDArray[Any]) -> bytes:
    code = _CODES.get(value.dtype.name)
    if code is None or value.ndim > MOST_DIMENSIONS or value.nbytes > MOST_BYTES:
        raise EdgeSDError(
            f"a program cannot be given {value.dtype} {value.shape}", f"give {', '.join(_CODES)}, at most {MOST_BYTES} bytes"
        )
    little = np.ascontiguousarray(value, dtype=value.dtype.newbyteorder("<"))
    return struct.pack(f"<{2 + value.ndim}I", code, value.ndim, *value.shape) + little.tobytes()


# Reading


def read_request(stream: BinaryIO) -> tuple[int, tuple[NDArray[Any], ...]] | None:
    """The next request's program and tensors; None where the requests end.

    Raises:
        BrokenFrameError: what comes is no request.
    """
    first = stream.read(4)
    if not first:
        return None
    (program,) = struct.unpack("<I", first + _read(stream, 4 - len(first)))
    (count,) = _numbers(stream, 1)
    if count > MOST_TENSORS:
        raise BrokenFrameError(f"a request names {count} tensors, more than {MOST_TENSORS}", _HINT)
    return program, tuple(_read_tensor(stream) for _ in range(count))


def read_response(stream: BinaryIO) -> NDArray[Any] | Fault | Ready:
    """The next response.

    Raises:
        BrokenFrameError: what comes is no response, or nothing comes.
    """
    (status,) = _numbers(stream, 1)
    if status == Status.TENSOR:
        return _read_tensor(stream)
    if status not in (Status.FAULT, Status.READY):
        raise BrokenFrameError(f"a response has the unknown status {status}", _HINT)
    (length,) = _numbers(stream, 1)
    if length > MOST_TEXT:
        raise BrokenFrameError(f"a response names a text of {length} bytes, more than {MOST_TEXT}", _HINT)
    kind = Fault if status == Status.FAULT else Ready
    try:
        return kind.model_validate_json(_read(stream, length))
    except ValueError as error:
        raise BrokenFrameError(f"a response holds a text that is no {kind.__name__}", _HINT) from error


def _read(stream: BinaryIO, size: int) -> bytes:
    data = stream.read(size)
    if len(data) != size:
        raise BrokenFrameError(f"a frame ends in its middle: {len(data)} bytes of {size}", _HINT)
    return data


def _numbers(stream: BinaryIO, count: int) -> tuple[int, ...]:
    return struct.unpack(f"<{count}I", _read(stream, 4 * count))


def _read_tensor(stream: BinaryIO) -> NDArray[Any]:
    code, rank = _numbers(stream, 2)
    if code not in DTYPES or rank > MOST_DIMENSIONS:
        raise BrokenFrameError(f"a frame names a tensor of dtype {code} and {rank} dimensions", _HINT)
    shape, dtype = _numbers(stream, rank), np.dtype(DTYPES[code]).newbyteorder("<")
    size = math.prod(shape) * dtype.itemsize
    # Of a tensor without values too: NumPy multiplies dimensions in 64 bits.
    if size > MOST_BYTES or math.prod(filter(None, shape)) > MOST_BYTES:
        raise BrokenFrameError(f"a frame names a tensor {shape}, which is too large", _HINT)
    return np.frombuffer(bytearray(_read(stream, size)), dtype).reshape(shape).astype(DTYPES[code], copy=False)
