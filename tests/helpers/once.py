"""What takes longer to make than most tests do is made once for all processes that run them side by side."""

import fcntl
import shutil
from collections.abc import Callable
from pathlib import Path

Once = Callable[[str, Callable[[Path], object]], Path]


def made_once(shared: Path, name: str, fill: Callable[[Path], object]) -> Path:
    """The folder `shared`/`name`, which whoever asks first has filled by `fill`, given the folder; others wait, and read it.

    Nothing may change what is in it: what a test changes is a copy.
    """
    folder, whole = shared / name, shared / f"{name}.whole"
    shared.mkdir(exist_ok=True)
    with (shared / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not whole.exists():
            shutil.rmtree(folder, ignore_errors=True)  # of an attempt that failed
            folder.mkdir()
            fill(folder)
            whole.touch()
    return folder
