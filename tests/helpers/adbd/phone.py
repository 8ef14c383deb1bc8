"""A phone as a test holds it."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType

import psutil
from typing_extensions import Self

from adbd.script import Step, written
from adbd.system import WRITABLE

# What Debian's adb 29 knows and what is served here; newer ones know more and use what both do.
FEATURES = "shell_v2,cmd,stat_v2,ls_v2,fixed_push_mkdir"
_PROPERTIES = {
    "ro.product.manufacturer": "Example",
    "ro.product.name": "example",
    "ro.product.model": "One",
    "ro.product.device": "one",
    "ro.board.platform": "sm0000",
    "ro.soc.model": "SM0000",
    "ro.build.version.release": "14",
    "ro.build.version.sdk": "34",
    "ro.build.fingerprint": "example/example/one:14/EX1.240101.001/1:user/release-keys",
    "ro.product.cpu.abi": "x86_64",
}


class Phone:
    """A phone on loopback, from `with` to the end of it.

    Args:
        steps: what happens to it.
        disk_bytes: of /data/local/tmp, and really no more.
        model: what it says on the box.
        features: of the protocol; empty for an Android before 7, whose shell keeps neither streams nor exit codes apart.

    Attributes:
        serial: how adb knows it.
        files: its /data/local/tmp, seen from here.
    """

    serial: str
    files: Path

    def __init__(self, *steps: Step, disk_bytes: int = 1 << 30, model: str = "One", features: str = FEATURES) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="adbd-")
        self._spec = json.dumps(
            {
                "root": self._folder.name,
                "properties": {**_PROPERTIES, "ro.product.model": model},
                "disk_bytes": disk_bytes,
                "features": features,
                "steps": written(steps),
            }
        )

    def __enter__(self) -> Self:
        self._log = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child=SIGKILL", "--mount-proc",
             sys.executable, "-m", "adbd", self._spec],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )  # fmt: skip
        assert self._process.stdout is not None
        port = self._process.stdout.readline().strip()
        if not port:
            self._process.wait()
            raise RuntimeError(f"the phone did not start: {self.log()}")
        self.serial = f"127.0.0.1:{port}"
        (self._system,) = psutil.Process(self._process.pid).children()
        self.files = Path(f"/proc/{self._system.pid}/root{self._folder.name}", WRITABLE)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._system.wait(10)  # all that runs in its namespace dies with it
        self._log.close()
        self._folder.cleanup()

    def processes(self) -> list[list[str]]:
        """Command lines of what runs on it, the system itself left out."""
        found = []
        for process in self._system.children(recursive=True):
            try:
                if process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process.cmdline())
            except psutil.NoSuchProcess:
                continue
        return found

    def left(self) -> list[str]:
        """Names of what lies in /data/local/tmp."""
        return sorted(entry.name for entry in self.files.iterdir())

    def log(self) -> str:
        """What went wrong in the phone itself."""
        self._log.seek(0)
        return self._log.read().decode(errors="replace")
