"""The emulated arm64 board as a device: the one that runs, or one that runs as long as the connection stands."""

from edge_sd.devices import emulation
from edge_sd.devices._device import Connection, Device
from edge_sd.devices._remote import RemoteConnection
from edge_sd.devices.ssh import SshTransport
from edge_sd.errors import EdgeSDError
from edge_sd.runnable import Availability


class BoardTransport(SshTransport):
    """ssh to an emulated board.

    Args:
        board: it runs, and has answered.
        ours: it ends with the connection.
    """

    def __init__(self, board: emulation.Running, *, ours: bool) -> None:
        self._board = board if ours else None
        try:
            super().__init__(emulation.HOST, config=board.config, kind=Emulator.name, shown="", emulated=True)
        except BaseException:
            self._switch_off()
            raise

    def close(self) -> None:
        super().close()
        self._switch_off()

    def _switch_off(self) -> None:
        board, self._board = self._board, None
        if board is not None:
            board.kill()  # its disk is as it was, whatever it was doing


class Emulator(Device):
    """An arm64 board that qemu imitates on this machine."""

    name = "emulator"
    about = "an arm64 board that this machine emulates, made by edge-sd emulator create; for correctness, not for times"
    shares_host = True

    def available(self) -> Availability:
        found = emulation.tools_available()
        if not found.ok:
            return found
        try:
            board = emulation.read_board(whole=False)
        except EdgeSDError as error:
            return Availability(True, f"{found.detail}; {error.message}: {error.hint}")
        wheels = ", ".join(f"{name} {number}" for name, number in board.wheels.items())
        return Availability(True, f"Linux {board.kernel}, Python {board.python}, {wheels}")

    def open(self, address: str) -> Connection:
        running = emulation.find_running()
        if running is not None:
            return RemoteConnection(BoardTransport(running, ours=False))
        return RemoteConnection(BoardTransport(emulation.start_for(), ours=True))
