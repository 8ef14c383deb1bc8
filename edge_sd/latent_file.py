"""Latents in one safetensors file, written batch by batch, checked block by block and mapped into memory: never held whole.

It is written beside its place and renamed, under the lock of `data.cache`: whoever is killed leaves no half file.
"""

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Literal

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from edge_sd.data.cache import FOLDER
from edge_sd.errors import EdgeSDError
from edge_sd.files import HEADER, parse_model
from edge_sd.validation import Record

_NAME = "latents"
_ROOM = 4096  # bytes kept free for the header, whose digest is known when all latents are written
_BLOCK = 1 << 20  # bytes read at once


class LatentsHeader(Record):
    """The metadata of a file of latents: what they were made of, and the foreign autoencoder's measured scale."""

    schema_version: Literal[1] = 1
    kind: Literal["latents"] = "latents"
    data_digest: str
    autoencoder: str  # digest of the autoencoder as it was given
    latent_scale: float
    latent_shift: float
    digest: str = ""  # SHA-256 over the tensor, as `files.tensors_digest` has it


def write_latents(path: Path, count: int, batches: Iterable[NDArray[np.float16]], header: LatentsHeader) -> None:
    """Write the latents of `count` images, batches of (B, 2, C, h, w), as they come; the header's digest is filled in.

    Raises:
        EdgeSDError: the folder cannot be written, or is full.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with _explained(path), temporary.open("wb") as file:
            file.seek(8 + _ROOM)
            shape: tuple[int, ...] = (count,)
            digest = hashlib.sha256()
            for batch in batches:
                if len(shape) == 1:
                    shape = (count, *batch.shape[1:])
                    digest = _hash_of(shape)
                data = np.ascontiguousarray(batch, dtype="<f2").tobytes()
                digest.update(data)
                file.write(data)
            header = header.model_copy(update={"digest": digest.hexdigest()})
            entry = {"dtype": "F16", "shape": shape, "data_offsets": (0, 2 * math.prod(shape))}
            text = json.dumps({"__metadata__": {HEADER: header.model_dump_json()}, _NAME: entry}).encode()
            file.seek(0)
            file.write(_ROOM.to_bytes(8, "little") + text.ljust(_ROOM))
            file.flush()
            os.fsync(file.fileno())
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_latents(path: Path) -> tuple[LatentsHeader, NDArray[np.float16]] | None:
    """Map a file of latents, (N, 2, C, h, w) float16; None where there is none that is whole, finite and as it was written."""
    try:
        with safe_open(path, framework="numpy") as file:
            if list(file.keys()) != [_NAME]:
                return None
            part = file.get_slice(_NAME)
            dtype, shape = part.get_dtype(), tuple(part.get_shape())
            header = parse_model(LatentsHeader, (file.metadata() or {}).get(HEADER, ""), path)
        if dtype != "F16" or len(shape) != 5:
            return None
        digest = _hash_of(shape)
        with path.open("rb") as raw:
            start = 8 + int.from_bytes(raw.read(8), "little")
            raw.seek(start)
            while block := raw.read(_BLOCK):  # read, not mapped: checking must not bring all of it into this process's memory
                digest.update(block)
                if not np.isfinite(np.frombuffer(block, "<f2")).all():
                    return None
            if digest.hexdigest() != header.digest:
                return None
            return header, np.asarray(np.memmap(raw, dtype="<f2", mode="r", offset=start, shape=shape))
    except (OSError, SafetensorError, EdgeSDError, ValueError):  # by another version, or damaged: it can be made again
        return None


@contextmanager
def spooled(path: Path, batches: Iterable[NDArray[np.float32]]) -> Iterator[tuple[float, float, Iterator[NDArray[np.float32]]]]:
    """Keep float32 batches in a nameless file beside `path`: their mean and deviation, and once more the batches."""
    with _explained(path), tempfile.TemporaryFile(dir=path.parent) as file:
        shapes, count, mean, squares = [], 0, 0.0, 0.0
        for batch in batches:
            shapes.append(batch.shape)
            file.write(np.ascontiguousarray(batch, dtype=np.float32).tobytes())
            # Chan, Golub, LeVeque 1979: means and sums of squared differences from them, of parts that are joined.
            middle, size, total = float(batch.mean(dtype=np.float64)), batch.size, count + batch.size
            squares += float(np.square(batch.astype(np.float64) - middle).sum()) + (middle - mean) ** 2 * count * size / total
            mean += (middle - mean) * size / total
            count = total
        file.seek(0)
        yield mean, math.sqrt(squares / count), _batches(file, shapes)


def _batches(file: IO[bytes], shapes: Iterable[tuple[int, ...]]) -> Iterator[NDArray[np.float32]]:
    for shape in shapes:
        yield np.frombuffer(file.read(4 * math.prod(shape)), np.float32).reshape(shape)


def _hash_of(shape: tuple[int, ...]) -> "hashlib._Hash":
    """The hash that `files.tensors_digest` computes, before the bytes of the latents."""
    return hashlib.sha256(f"{_NAME}|float16|{shape}|".encode())


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Name the folder of the cache where it cannot be written."""
    try:
        yield
    except OSError as error:
        raise EdgeSDError(
            f"cannot keep latents in {path.parent}: {error.strerror or error}",
            f"free some space, or give another folder by --cache or ${FOLDER}",
        ) from error
