"""A job's memory, limited by Linux: a control group of its own, version 2 or 1, where this process may make one."""

import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from edge_sd.errors import DeviceError

ROOT = Path("/sys/fs/cgroup")
# Joins the group that its first argument names, then becomes the rest of them. Constant: nothing is put into it.
_JOIN = 'echo "$$" > "$1" && shift && exec "$@"'
_numbers = itertools.count()


@contextmanager
def memory_limit(mebibytes: int | None, root: Path = ROOT) -> Iterator[list[str]]:
    """Make a group with that limit, and yield the words that start a program in it; no words without a limit.

    Raises:
        DeviceError: this process may not make a group.
    """
    if mebibytes is None:
        yield []
        return
    group, limit = _make(root, f"edge-sd-{os.getpid()}-{next(_numbers)}")
    try:
        limit.write_text(str(mebibytes * 2**20))
        with suppress(OSError):  # no swap to forbid
            (group / "memory.swap.max").write_text("0")
        yield ["/bin/sh", "-c", _JOIN, "sh", str(group / "cgroup.procs")]
    except OSError as error:
        raise _refused(error) from error
    finally:
        with suppress(OSError):
            group.rmdir()


def _make(root: Path, name: str) -> tuple[Path, Path]:
    """The new group's folder, and the file in it that takes the limit."""
    own = dict(line.split(":", 2)[1:] for line in Path("/proc/self/cgroup").read_text().splitlines())
    places = [
        (root / "memory" / own.get("memory", "/").lstrip("/"), "memory.limit_in_bytes"),
        (root / "memory", "memory.limit_in_bytes"),
    ]
    places += [(root / own.get("", "/").lstrip("/"), "memory.max"), (root, "memory.max")]
    refusal: OSError = FileNotFoundError(f"no memory controller below {root}")
    for parent, file in places:
        group = parent / name
        try:
            group.mkdir()
        except OSError as error:
            refusal = error if parent.is_dir() else refusal
            continue
        if (group / file).exists():
            return group, group / file
        with suppress(OSError):
            group.rmdir()
    raise _refused(refusal)


def _refused(error: OSError) -> DeviceError:
    return DeviceError(
        f"the job's memory cannot be limited here: {error.strerror or error}",
        "leave out --memory-limit, or run where control groups may be made (Linux, as root or with a delegated group)",
    )
