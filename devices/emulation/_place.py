"""Where the board is kept: one folder in the user's cache, and one edge-sd at a time that changes it."""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from edge_sd.errors import InstallationError, UsageError
from edge_sd.files import explained
from edge_sd.places import home_cache

# What ssh, apt or qemu would read something else into, in the name of a folder.
_AWKWARD = re.compile(r'["\\$\n\r\t]|[^\x20-\U0010ffff]')


def home() -> Path:
    """The folder of all that belongs to the board.

    Raises:
        InstallationError: its name holds what ssh's and apt's configuration cannot.
    """
    path = home_cache() / "emulator"
    if _AWKWARD.search(str(path)):
        raise InstallationError(f"the board cannot be kept in {str(path)!r}: its name does not fit ssh's configuration",
                                "set XDG_CACHE_HOME to another folder")  # fmt: skip
    return path


def board_folder() -> Path:
    """The kernel, the disk, the keys, and board.json, which tells their hashes."""
    return home() / "board"


def run_folder() -> Path:
    """What belongs to the board that runs on its own: state.json, the console's output, the configuration for ssh."""
    return home() / "run"


@contextmanager
def locked() -> Iterator[Path]:
    """Keep others out; what a killed one left behind is cleared away.

    Raises:
        UsageError: another one is at it.
    """
    folder = home()
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / "lock")
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise UsageError("another edge-sd is at the board at this moment", "wait until it has ended") from error
    try:
        for pattern in (".board.*", ".work.*"):
            for left in folder.glob(pattern):
                shutil.rmtree(left, ignore_errors=True)
        yield folder
    finally:
        lock.release()
