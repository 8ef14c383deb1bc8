"""Programs that talk to devices (ssh, adb, scp): started as argument lists, listened to, and ended when they fall silent."""

import contextlib
import os
import queue
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from edge_sd.errors import DeviceError, InstallationError

# Most of what a program may print on standard output: results are a few hundred kilobytes.
MOST_BYTES = 256 * 2**20
_KEPT_LINES = 200
_running: set[subprocess.Popen[bytes]] = set()


@dataclass(frozen=True)
class Done:
    """How a program ended.

    Attributes:
        status: its exit code; below zero, the signal that ended it.
        out: what it printed on standard output.
        err: the last lines of what it printed on standard error.
    """

    status: int
    out: bytes
    err: str

    @property
    def text(self) -> str:
        """Standard output as text, without the white space around it."""
        return self.out.decode(errors="replace").strip()


def listen(
    arguments: Sequence[str],
    *,
    patience: float,
    on_line: Callable[[str], None] = lambda line: None,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
    source: IO[bytes] | None = None,
) -> Done:
    """Run a program to its end. It and what it started are killed when it falls silent, or when this call is interrupted.

    Its standard input is a pipe that stays open as long as it runs and holds nothing: what runs at the far end of it can tell by
    its end that nobody waits any more.

    Args:
        patience: most seconds without a byte from it.
        on_line: called with each line that it prints on standard error.
        folder: where it is started; here, if left out.
        source: a file that it reads as its standard input instead.

    Raises:
        InstallationError: there is no such program.
        DeviceError: it fell silent, or printed without end.
    """
    with tempfile.TemporaryFile() as told:
        try:
            process = subprocess.Popen(  # noqa: S603 (a list of arguments)
                list(arguments),
                stdin=subprocess.PIPE if source is None else source,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=None if environment is None else dict(environment),
                cwd=folder,
                start_new_session=True,
            )
        except OSError as error:
            raise InstallationError(f"cannot start {arguments[0]}: {error.strerror or error}", "edge-sd doctor") from error
        _running.add(process)
        try:
            lines = _hear(process, told, patience, on_line, arguments[0])
            status = process.wait(timeout=patience)
        except subprocess.TimeoutExpired as error:
            raise DeviceError(f"{arguments[0]} closed its output and goes on", "edge-sd doctor") from error
        finally:
            _running.discard(process)
            end(process)
        told.seek(0)
        return Done(status, told.read(), "\n".join(lines))


def interrupt() -> None:
    """Kill every program that a call of `listen` waits for, in whichever thread; those calls then return at once."""
    for process in list(_running):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill a program and all that it started, and close its pipes."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            with contextlib.suppress(OSError, ValueError):
                stream.close()


def _hear(
    process: subprocess.Popen[bytes], told: IO[bytes], patience: float, on_line: Callable[[str], None], name: str
) -> list[str]:
    """Take what it prints until both streams end; the last lines of standard error."""
    heard: queue.SimpleQueue[tuple[str, bytes]] = queue.SimpleQueue()
    streams = {"out": process.stdout, "err": process.stderr}

    def pump(kind: str, stream: IO[bytes]) -> None:
        with contextlib.suppress(OSError, ValueError):  # closed under our hands when the process is ended
            while block := os.read(stream.fileno(), 1 << 16):
                heard.put((kind, block))
        heard.put((kind, b""))

    for kind, stream in streams.items():
        threading.Thread(target=pump, args=(kind, stream), daemon=True).start()
    kept: list[str] = []
    rest, taken, open_streams, last = b"", 0, len(streams), time.monotonic()
    while open_streams:
        try:
            kind, block = heard.get(timeout=max(0.0, last + patience - time.monotonic()))
        except queue.Empty:
            raise DeviceError(
                f"{name} said nothing for {patience:g} s", "is the device still connected and awake? --patience waits longer"
            ) from None
        last = time.monotonic()
        if not block:
            open_streams -= 1
        elif kind == "out":
            taken += len(block)
            if taken > MOST_BYTES:
                raise DeviceError(f"{name} prints without end ({taken // 2**20} MiB so far)", "edge-sd doctor")
            told.write(block)
        else:
            *whole, rest = (rest + block).split(b"\n")
            rest = rest[-4096:]
            for line in whole:
                text = line[-4096:].decode(errors="replace").rstrip("\r")
                kept = [*kept[1 - _KEPT_LINES :], text]
                on_line(text)
    if rest:
        kept.append(rest.decode(errors="replace"))
    return kept
