"""The board is made: packages, wheels, keys, disk, initrd; then all of it takes its place at once."""

import os
import shutil
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from edge_sd.devices._device import Observe
from edge_sd.devices.emulation import _disk as disk
from edge_sd.devices.emulation import _root as roots
from edge_sd.devices.emulation._initrd import make_initrd
from edge_sd.devices.emulation._packages import Apt
from edge_sd.devices.emulation._place import board_folder
from edge_sd.devices.emulation._tools import run_tool
from edge_sd.errors import DeviceError, InstallationError
from edge_sd.files import explained, new_folder, read_model, write_model
from edge_sd.runnable import Availability
from edge_sd.validation import Record

BOARD = "board.json"
KERNEL, INITRD, DISK, CLIENT_KEY, KNOWN_HOSTS = FILES = ("kernel", "initrd", "disk.img", "client", "known_hosts")
ALIAS = "edge-sd-board"  # what the board's key is known by: its port is another each time
# A program of each Debian package that making and running it takes.
_TOOLS = {
    "qemu-system-aarch64": "qemu-system-arm",
    "apt-get": "apt",
    "dpkg-deb": "dpkg",
    "mke2fs": "e2fsprogs",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
}


class Board(Record):
    """board.json: what the board was made of.

    Attributes:
        kernel, python: versions.
        wheels: versions of NumPy and ONNX Runtime.
        packages: files of Debian's packages.
        digests: of each file, see `_disk.digest`.
    """

    schema_version: Literal[1] = 1
    kind: Literal["board"] = "board"
    made_by: str
    kernel: str
    python: str
    wheels: dict[str, str]
    packages: tuple[str, ...]
    digests: dict[str, str]


def find_tool(name: str) -> str | None:
    """Where a program is; those for administrators are not on everybody's path."""
    return shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")


def tools_available() -> Availability:
    """Whether this machine has what making and running the board takes."""
    if sys.platform != "linux":
        return Availability(False, "the emulated board is made and run on Linux only", "use another device: edge-sd list devices")
    missing = {name: package for name, package in _TOOLS.items() if find_tool(name) is None}
    if missing:
        packages = " ".join(dict.fromkeys(missing.values()))
        return Availability(False, f"{', '.join(missing)} missing", f"apt-get install -y {packages}")
    return Availability(True, "a board of arm64, imitated by qemu")


def need_tools() -> None:
    """Raises:
    InstallationError: something that making and running the board takes is missing.
    """
    available = tools_available()
    if not available.ok:
        raise InstallationError(f"the emulated board: {available.detail}", available.remedy)


def read_board(*, whole: bool = True) -> Board:
    """Read what the board was made of, and check that it still is that.

    Args:
        whole: hash its files too.

    Raises:
        DeviceError: there is no board, or it is damaged.
    """
    folder = board_folder()
    if not (folder / BOARD).is_file():
        raise DeviceError("there is no emulated board yet", "edge-sd emulator create")
    board = read_model(Board, folder / BOARD)
    wrong = [name for name in FILES if not (folder / name).is_file() or name not in board.digests]
    if whole and not wrong:
        wrong = [name for name in FILES if disk.digest(folder / name) != board.digests[name]]
    if wrong:
        raise DeviceError(f"the emulated board is damaged: {folder / wrong[0]}", "edge-sd emulator create --overwrite")
    return board


def make_board(home: Path, observe: Observe) -> Board:
    """Make the board, or make it again; the caller keeps others out.

    Raises:
        InstallationError: a tool is missing or fails; its log is named.
    """
    log = home / "create.log"
    log.unlink(missing_ok=True)
    with (
        new_folder(board_folder(), overwrite=True) as new,
        tempfile.TemporaryDirectory(prefix=".work.", dir=home, ignore_cleanup_errors=True) as work,
        explained(home),
    ):
        board = _make(new, Path(work), log, observe)
        write_model(new / BOARD, board)
        new.chmod(0o700)
    log.unlink(missing_ok=True)
    return board


def _make(new: Path, work: Path, log: Path, observe: Observe) -> Board:
    """Fill the board's folder."""
    steps = ("package lists", "packages", "kernel", "unpacking", "wheels", "compiling", "disk", "initrd", "hashes")

    def step(name: str) -> None:
        observe(steps.index(name), len(steps), name)

    (work / "apt").mkdir()
    root, modules = work / "root", work / "modules"
    step("package lists")
    apt = Apt(work / "apt", log)
    apt.update()
    step("packages")
    packages = apt.system()
    step("kernel")
    kernel = apt.kernel()
    step("unpacking")
    roots.unpack(packages, root, log)
    run_tool(["dpkg-deb", "--extract", kernel, modules], log)
    for name in ("host", CLIENT_KEY):
        run_tool(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", ALIAS, "-f", work / name], log)
    roots.configure(root, work / "host", work / CLIENT_KEY)
    step("wheels")
    wheels = roots.install_wheels(root, log)
    step("compiling")
    roots.compile_python(root, log)
    step("disk")
    mke2fs = find_tool("mke2fs")
    assert mke2fs is not None  # noqa: S101 (need_tools found it)
    disk.make_disk(root, new / DISK, log, mke2fs)
    step("initrd")
    (version_folder,) = next(folder for name in ("lib", "usr/lib") if (folder := modules / name / "modules").is_dir()).iterdir()
    make_initrd(roots.in_root(root, "busybox"), version_folder, new / INITRD)
    shutil.copy(next((modules / "boot").glob("vmlinuz-*")), new / KERNEL)
    shutil.copy(work / CLIENT_KEY, new / CLIENT_KEY)
    (new / CLIENT_KEY).chmod(0o600)
    host_key = " ".join((work / "host.pub").read_text().split()[:2])
    (new / KNOWN_HOSTS).write_text(f"{ALIAS} {host_key}\n")
    step("hashes")
    board = Board(
        made_by=f"edge-sd {version('edge-sd')}",
        kernel=version_folder.name,
        python=roots.python_of(root),
        wheels=wheels,
        packages=tuple(package.name for package in (*packages, kernel)),
        digests={name: disk.digest(new / name) for name in FILES},
    )
    observe(len(steps), len(steps), "")
    return board
