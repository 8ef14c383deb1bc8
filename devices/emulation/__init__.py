"""An arm64 board of our own: Debian's kernel and packages, run by qemu, reached by ssh.

For whether a bundle runs and agrees on ARM, without a board. Its processor is imitated: its times say nothing of a real one.
"""

from edge_sd.devices.emulation._boot import Running as Running
from edge_sd.devices.emulation._create import Board as Board
from edge_sd.devices.emulation._create import read_board as read_board
from edge_sd.devices.emulation._create import tools_available as tools_available
from edge_sd.devices.emulation._place import board_folder as board_folder
from edge_sd.devices.emulation._qemu import HOST as HOST
from edge_sd.devices.emulation._qemu import Settings as Settings
from edge_sd.devices.emulation._running import create as create
from edge_sd.devices.emulation._running import find_running as find_running
from edge_sd.devices.emulation._running import remove as remove
from edge_sd.devices.emulation._running import start as start
from edge_sd.devices.emulation._running import start_for as start_for
from edge_sd.devices.emulation._running import stop as stop
