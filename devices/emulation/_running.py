"""What `edge-sd emulator` does: make the board, start it and leave it running, stop it, remove it."""

import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from edge_sd.devices._device import Observe, unobserved
from edge_sd.devices.emulation._boot import STATE, Running, State, boot
from edge_sd.devices.emulation._create import BOARD, Board, make_board, need_tools
from edge_sd.devices.emulation._place import board_folder, home, locked, run_folder
from edge_sd.devices.emulation._qemu import Settings
from edge_sd.errors import EdgeSDError, UsageError
from edge_sd.files import explained, read_model

_HELD = "held-"  # folders of boards that a process holds


def find_running(*, ready: bool = True) -> Running | None:
    """The board that runs on its own, if one does.

    Args:
        ready: only one that has answered; else also one whose start was cut off.
    """
    folder = run_folder()
    try:
        state = read_model(State, folder / STATE)
    except EdgeSDError:  # none, or written by another version
        return None
    running = Running(folder, state)
    return running if running.alive and (state.ready or not ready) else None


def create(*, overwrite: bool = False, observe: Observe = unobserved) -> Board:
    """Make the board; some 60 MB are downloaded from Debian's and Python's package indexes.

    Raises:
        UsageError: there is one and `overwrite` is false, or it runs, or another edge-sd is at it.
        InstallationError: a tool is missing or fails; its log is named.
    """
    need_tools()
    with locked() as folder:
        if (board_folder() / BOARD).exists() and not overwrite:
            raise UsageError(f"there is a board in {board_folder()}", "give --overwrite to make it again")
        _refuse_running()
        return make_board(folder, observe)


def start(settings: Settings, observe: Observe = unobserved) -> Running:
    """Start the board, and leave it running.

    Raises:
        UsageError: it runs already, or another edge-sd is at it.
        DeviceError: there is no board, it is damaged, or it does not come up; then nothing is left of it.
    """
    with locked():
        if (running := find_running()) is not None:
            raise UsageError(
                f"the board runs already, process {running.state.process.pid}, port {running.state.port}", "edge-sd emulator stop"
            )
        _clear()
        folder = run_folder()
        with explained(folder):
            folder.mkdir(mode=0o700)
        try:
            running = boot(folder, settings, observe)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        running.let_go()
        return running


def start_for(observe: Observe = unobserved) -> Running:
    """Start a board beside whichever runs, for as long as this process holds it; it is ended by `Running.kill`.

    Raises:
        DeviceError: as `start` raises it.
    """
    folder = home()
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        own = Path(tempfile.mkdtemp(prefix=_HELD, dir=folder))
    for left in _held():
        if not left.alive:
            left.kill()
    try:
        return boot(own, Settings(), observe)
    except BaseException:
        shutil.rmtree(own, ignore_errors=True)
        raise


def stop() -> bool:
    """Power the board off; whether one ran."""
    if not home().exists():
        return False
    with locked():
        running = find_running(ready=False)
        if running is not None:
            running.power_off()
        _clear()
        return running is not None


def remove() -> bool:
    """Delete the board and all that belongs to it; whether there was one.

    Raises:
        UsageError: it runs.
    """
    if not home().exists():
        return False
    with locked() as folder:
        _refuse_running()
        _clear()
        there = (board_folder() / BOARD).exists()
        with explained(folder):
            shutil.rmtree(folder)
        return there


def _refuse_running() -> None:
    if find_running() is not None:
        raise UsageError("the board runs", "edge-sd emulator stop")
    if held := [board for board in _held() if board.alive]:
        raise UsageError(f"a board runs for another edge-sd, process {held[0].state.process.pid}", "wait until it has ended")


def _held() -> list[Running]:
    """Boards that run as long as a process holds them, or ran until one was killed."""
    found = []
    for path in sorted(home().glob(f"{_HELD}*/{STATE}")):
        with suppress(EdgeSDError):
            found.append(Running(path.parent, read_model(State, path)))
    return found


def _clear() -> None:
    """End a board whose start was cut off, and remove what one left that went away by itself."""
    if (left := find_running(ready=False)) is not None:
        left.kill()
    shutil.rmtree(run_folder(), ignore_errors=True)
