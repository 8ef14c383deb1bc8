"""A board that runs: qemu behind a keeper, a port of the loopback address, and a console whose words are kept.

The disk is never written to: what the board writes goes to a file without a name, which is gone with it.
"""

import contextlib
import os
import re
import shutil
import socket
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Literal

from pydantic import Field

from edge_sd.devices._device import Observe, unobserved
from edge_sd.devices._process import listen
from edge_sd.devices._ssh import SshLink
from edge_sd.devices.emulation import _create as made
from edge_sd.devices.emulation._process_id import ProcessId
from edge_sd.devices.emulation._qemu import HOST, KEEPER, Settings, command, ssh_config
from edge_sd.devices.emulation._root import READY
from edge_sd.errors import DeviceError, EdgeSDError
from edge_sd.files import explained, write_model, write_text
from edge_sd.validation import Record

STATE, CONSOLE, CONFIG = "state.json", "console.log", "ssh_config"
_BOOT, _ANSWER = 180.0, 60.0  # seconds: until the console says that it is ready, and until ssh answers then
_OFF = 20.0
_PORTS = 3  # tries for a port that nobody takes before qemu does
_NOT_YET = re.compile(r"reset|closed|refused|timed out", re.IGNORECASE)  # of a server that does not listen yet
_PORT_TAKEN = "Could not set up host forwarding"


class State(Record):
    """state.json: a board that runs, or was started.

    Attributes:
        ready: whether it has answered.
    """

    schema_version: Literal[1] = 1
    kind: Literal["running board"] = "running board"
    process: ProcessId
    keeper: ProcessId
    port: int = Field(ge=1, lt=2**16)
    settings: Settings
    ready: bool = False


@dataclass
class Running:
    """A board that runs.

    Attributes:
        folder: of its state, its console's output and the configuration for ssh.
        lifeline: the keeper's input; None where the board is on its own.
    """

    folder: Path
    state: State
    lifeline: IO[bytes] | None = field(default=None, repr=False)

    @property
    def config(self) -> Path:
        """For ssh's `-F`; the board's name in it is `HOST`."""
        return self.folder / CONFIG

    @property
    def alive(self) -> bool:
        """Whether the emulator runs."""
        return self.state.process.alive

    def let_go(self) -> None:
        """Leave the board running after this process."""
        self._tell(b"stay\n")

    def power_off(self) -> None:
        """End it as its switch would, or else as a kill does; then remove what belonged to it. Never raises."""
        if self.alive and self.state.ready:
            with contextlib.suppress(EdgeSDError):
                script = "sync; echo o > /proc/sysrq-trigger; sleep 10"
                listen(["ssh", "-F", str(self.config), "-T", "-o", "ConnectTimeout=10", "--", HOST, script], patience=_OFF)
            self.state.process.wait(_OFF)
        self.kill()

    def kill(self) -> None:
        """End it at once. Never raises."""
        self.state.process.kill()
        self._tell(b"stay\n")  # there is nobody left to be killed
        self.state.keeper.wait(5)
        self.state.keeper.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def console(self, lines: int = 25) -> str:
        """The last lines that its console printed."""
        return last_lines(self.folder, lines)

    def _tell(self, word: bytes) -> None:
        if self.lifeline is not None:
            with contextlib.suppress(OSError, ValueError):
                self.lifeline.write(word)
            with contextlib.suppress(OSError, ValueError):
                self.lifeline.close()
            self.lifeline = None


def boot(folder: Path, settings: Settings, observe: Observe = unobserved) -> Running:
    """Start the board and wait for its first answer by ssh.

    It ends with this process, unless it is let go.

    Args:
        folder: an empty one, which goes when the board ends.

    Raises:
        DeviceError: there is no board, it is damaged, or it does not come up; then nothing is left of it.
    """
    observe(0, 3, "checking")
    made.need_tools()
    made.read_board()
    observe(1, 3, "booting")
    for attempt in range(_PORTS):
        running = _start(folder, settings)
        try:
            _wait(running)
            observe(2, 3, "first answer")
            _answer(running)
            running.state = running.state.model_copy(update={"ready": True})
            write_model(folder / STATE, running.state)
            observe(3, 3, "")
            return running
        except BaseException as error:
            said = running.console()
            running.kill()
            if isinstance(error, DeviceError):
                if _PORT_TAKEN in said and attempt + 1 < _PORTS:
                    folder.mkdir(mode=0o700)
                    continue
                raise DeviceError(f"{error.message}; its console's last lines:\n{said}", error.hint) from error
            raise
    raise AssertionError  # the last try returns or raises


def last_lines(folder: Path, lines: int) -> str:
    """The last lines of a console's output, without what steers a terminal."""
    try:
        with (folder / CONSOLE).open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 2**14))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    plain = "".join(character for character in text if character == "\n" or character.isprintable())
    return "\n".join([line for line in plain.splitlines() if line.strip()][-lines:])


def _start(folder: Path, settings: Settings) -> Running:
    port = _free_port()
    with explained(folder):
        write_text(folder / CONFIG, ssh_config(port))
        keeper = subprocess.Popen(  # noqa: S603 (a constant script; what is started comes as arguments)
            ["sh", "-c", KEEPER, "sh", str(folder / CONSOLE), *command(settings, port)],  # noqa: S607
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    lifeline, answer = keeper.stdin, keeper.stdout
    assert lifeline is not None  # noqa: S101 (a pipe)
    assert answer is not None  # noqa: S101 (and another)
    try:
        with answer:
            numbers = answer.readline().split()
        process, parent = (ProcessId.of(int(number)) for number in numbers)
    except BaseException as error:
        lifeline.close()  # the keeper kills what it started
        if isinstance(error, (ProcessLookupError, ValueError)):
            raise DeviceError(f"the emulated board ended at once: {last_lines(folder, 3)}", "edge-sd doctor") from error
        raise
    finally:
        keeper.wait()  # this half of it ended when the other had started
    running = Running(folder, State(process=process, keeper=parent, port=port, settings=settings), lifeline)
    try:
        write_model(folder / STATE, running.state)
    except BaseException:
        running.kill()
        raise
    return running


def _wait(running: Running) -> None:
    """Until the console says that it is ready."""
    deadline = time.monotonic() + _BOOT
    while READY not in last_lines(running.folder, 50):
        if not running.alive:
            raise DeviceError("the emulated board ended while it started", "edge-sd emulator create --overwrite")
        if time.monotonic() > deadline:
            raise DeviceError(f"the emulated board is not up after {_BOOT:g} s", "is this machine busy? try again")
        time.sleep(0.1)


def _answer(running: Running) -> None:
    """Until ssh lets us in."""
    deadline = time.monotonic() + _ANSWER
    while True:
        try:
            SshLink(HOST, running.config).close()
            return
        except DeviceError as error:
            if not running.alive or not _NOT_YET.search(error.message) or time.monotonic() > deadline:
                raise DeviceError(f"the emulated board does not answer: {error.message}", error.hint) from error
            time.sleep(0.5)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
