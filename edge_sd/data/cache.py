"""Decoded images in one safetensors file, mapped into memory: a set of any size, decoded once and never held whole.

The file is named after what it was made from: the settings, and the source's files with their sizes and times (or the hub's
revision), so that it is found again and a changed source has another one. It is written beside its place, under a lock, and
renamed: whoever is killed leaves no half file. Of a job's processes on one machine the first to take the lock decodes, with
all cores; the others wait for it and map the same file. What is shared out among processes in training are the batches.
"""

import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from edge_sd.data.items import Skipped
from edge_sd.errors import EdgeSDError
from edge_sd.files import parse_model, umask
from edge_sd.places import home_cache
from edge_sd.validation import Record

FOLDER = "EDGE_SD_CACHE"
_HEADER = 4096  # bytes kept free for the header, whose shapes are known when all pixels are written


class CacheRecord(Record):
    """What a cache file says of its images, as JSON in its tensor `record`: it may be longer than the header has room for."""

    schema_version: int = 1
    about: str
    digest: str
    classes: tuple[str, ...]
    skipped: tuple[Skipped, ...]


def cache_folder(given: Path | None) -> Path:
    """The given folder, else $EDGE_SD_CACHE, else edge-sd in the user's cache."""
    return given or Path(os.environ.get(FOLDER) or home_cache())


def read_cache(path: Path) -> tuple[CacheRecord, NDArray[np.uint8], NDArray[np.int64] | None] | None:
    """Map a cache file: its record, pixels (N, 3, H, W) and labels (N,); None where there is none, or none that is whole.

    Pixels come from the disk as they are used. Their digest is the record's: it is not computed again.

    Raises:
        EdgeSDError: it may not be read; made again it could not take its place either.
    """
    try:
        with path.open("rb") as raw:
            header_bytes = raw.read(8 + _HEADER)[8:]
        with safe_open(path, framework="numpy") as file:
            names = set(file.keys())
            shape = tuple(file.get_slice("pixels").get_shape())
            record = parse_model(CacheRecord, file.get_tensor("record").tobytes(), path)
            labels = file.get_tensor("labels") if "labels" in names else None
        header = json.loads(header_bytes)
        start = 8 + _HEADER + int(header["pixels"]["data_offsets"][0])
        pixels = np.memmap(path, dtype=np.uint8, mode="r", offset=start, shape=shape)
    except PermissionError as error:
        raise EdgeSDError(
            f"cannot read {path}: {error.strerror or error}",
            f"ask whose it is for permission, or give another folder by --cache or ${FOLDER}",
        ) from error
    except (OSError, SafetensorError, EdgeSDError, ValueError, KeyError):
        return None
    return record, np.asarray(pixels), labels


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Be the only process that makes this file; wait for the one that is at it."""
    from filelock import FileLock

    with explained_cache(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path.with_name(f".{path.name}.lock"))
        lock.acquire()
    try:
        for left in path.parent.glob(f".{path.name}.*.part"):  # by a process that was killed
            left.unlink(missing_ok=True)
        yield
    finally:
        lock.release()


class CacheWriter:
    """Writes a cache file image by image; nothing is at `path` before `finish`."""

    def __init__(self, path: Path, file: IO[bytes], temporary: Path, shape: tuple[int, ...]) -> None:
        self.path, self.file, self.temporary, self.shape, self.count = path, file, temporary, shape, 0
        file.seek(8 + _HEADER)

    def add(self, pixels: NDArray[np.uint8]) -> None:
        """Append (3, H, W)."""
        with explained_cache(self.path):
            self.file.write(pixels.data)
        self.count += 1

    def finish(self, labels: NDArray[np.int64] | None, record: CacheRecord) -> None:
        """Write what follows the pixels, then the header, and rename the file into its place."""
        parts: Sequence[tuple[str, str, tuple[int, ...], bytes]] = [
            *([("labels", "I64", labels.shape, labels.astype("<i8").tobytes())] if labels is not None else []),
            ("record", "U8", (len(text := record.model_dump_json().encode()),), text),
        ]
        end = self.count * int(np.prod(self.shape))
        header = {"pixels": {"dtype": "U8", "shape": (self.count, *self.shape), "data_offsets": (0, end)}}
        with explained_cache(self.path):
            for name, dtype, shape, data in parts:
                header[name] = {"dtype": dtype, "shape": shape, "data_offsets": (end, end + len(data))}
                end += len(data)
                self.file.write(data)
            self.file.seek(0)
            self.file.write(_HEADER.to_bytes(8, "little") + json.dumps(header).encode().ljust(_HEADER))
            self.file.flush()
            os.fsync(self.file.fileno())
            self.temporary.chmod(0o666 & ~umask())
            self.temporary.replace(self.path)


@contextmanager
def cache_writer(path: Path, shape: tuple[int, ...]) -> Iterator[CacheWriter]:
    """A writer to `path`; what it wrote vanishes where the block ends without `finish`."""
    with explained_cache(path):
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    file = os.fdopen(handle, "wb")
    try:
        yield CacheWriter(path, file, Path(name), shape)
    finally:
        with suppress(OSError):  # on a full disk it fails once more; what was finished is on the disk already
            file.close()
        Path(name).unlink(missing_ok=True)


@contextmanager
def explained_cache(path: Path) -> Iterator[None]:
    """Name the folder of the cache where it cannot be written."""
    try:
        yield
    except OSError as error:
        raise EdgeSDError(
            f"cannot keep decoded images in {path.parent}: {error.strerror or error}",
            f"free some space, or give another folder by --cache or ${FOLDER}",
        ) from error
