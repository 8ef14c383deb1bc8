"""The board's disk: a folder made into an ext4 image, and a hash that does not read what was never written."""

import errno
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from edge_sd.devices.emulation._tools import run_tool

_FREE = 2 * 2**30  # bytes for jobs
_BLOCK = 1 << 20
_ZEROS = bytes(_BLOCK)


def make_disk(root: Path, output: Path, log: Path, program: str) -> None:
    """Write a file system that holds what is in a folder, its owner root, with room for jobs.

    Raises:
        InstallationError: mke2fs fails.
    """
    used = sum(max(4096, file.lstat().st_size) for file in root.rglob("*"))
    kilobytes = (used + used // 10 + _FREE) // 1024
    options = ["-q", "-t", "ext4", "-O", "^has_journal", "-m", "0", "-E", "root_owner=0:0,lazy_itable_init=1"]
    run_tool([program, *options, "-d", root, output, f"{kilobytes}k"], log)


def digest(path: Path) -> str:
    """Hex SHA-256 over the length of a file and those of its blocks of 1 MiB that are not zero, each with its number.

    A file with holes and a copy without have the same; a hole costs no reading.
    """
    total = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        total.update(size.to_bytes(8, "little"))
        done = -1
        for start, stop in _written(file.fileno(), size):
            for number in range(max(start // _BLOCK, done + 1), -(-stop // _BLOCK)):
                block = os.pread(file.fileno(), _BLOCK, number * _BLOCK)
                if block != _ZEROS[: len(block)]:
                    total.update(number.to_bytes(8, "little") + block)
                done = number
    return total.hexdigest()


def _written(file: int, size: int) -> Iterator[tuple[int, int]]:
    """The parts of a file that are no holes, first byte and the one after the last."""
    stop = 0
    while stop < size:
        try:
            start = os.lseek(file, stop, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # only a hole is left
                return
            raise
        stop = os.lseek(file, start, os.SEEK_HOLE)
        yield start, stop
