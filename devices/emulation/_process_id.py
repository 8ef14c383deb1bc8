"""A process that is not a child of ours, known by more than its number: numbers are given again."""

import contextlib
import os
import signal
import time
from pathlib import Path
from typing import Literal

from edge_sd.validation import Record


class ProcessId(Record):
    """A process of this boot of this machine.

    Attributes:
        pid: its number.
        started: clock ticks from boot to its start.
        boot: which boot.
    """

    kind: Literal["process"] = "process"
    pid: int
    started: int
    boot: str

    @classmethod
    def of(cls, pid: int) -> "ProcessId":
        """The process that has this number now.

        Raises:
            ProcessLookupError: none has.
        """
        try:
            return cls(pid=pid, started=int(_stat(pid)[19]), boot=_boot())
        except OSError as error:
            raise ProcessLookupError(pid) from error

    @property
    def alive(self) -> bool:
        """Whether it still runs; one that has ended and waits for its parent to notice does not."""
        with contextlib.suppress(OSError):
            stat = _stat(self.pid)
            return stat[0] not in "ZX" and int(stat[19]) == self.started and self.boot == _boot()
        return False

    def kill(self, seconds: float = 10.0) -> None:
        """Kill it, if it still runs, and wait until it has ended. No other process is hit."""
        with contextlib.suppress(OSError):
            handle = os.pidfd_open(self.pid)  # from here on the number is this process's, whatever becomes of it
            try:
                if self.alive:
                    signal.pidfd_send_signal(handle, signal.SIGKILL)
            finally:
                os.close(handle)
        self.wait(seconds)

    def wait(self, seconds: float) -> bool:
        """Wait for its end, so many seconds at most; whether it has ended."""
        deadline = time.monotonic() + seconds
        while self.alive:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        return True


def _stat(pid: int) -> list[str]:
    """What /proc tells of a process, from its state on; its name may hold anything and is left out."""
    return (Path("/proc") / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
