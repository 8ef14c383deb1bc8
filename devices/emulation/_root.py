"""The board's root folder: packages unpacked, NumPy and ONNX Runtime as wheels, and the files that an installer would write."""

import shutil
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

from edge_sd.devices.emulation._tools import run_tool
from edge_sd.errors import InstallationError

WHEELS = ("numpy", "onnxruntime")
HOSTNAME = "edge-sd-board"
READY = "edge-sd: the board is ready"
_EDGE = "opt/edge"  # on Python's path
_UNUSED = ("usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/info", "usr/share/lintian", "usr/share/perl5")

# The first process. Jobs lie on the disk: a file there takes no memory of theirs.
_INIT = f"""#!/bin/busybox sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
$b mount -t devtmpfs dev /dev
$b mkdir -p /dev/pts /dev/shm
$b mount -t devpts devpts /dev/pts
$b mount -t tmpfs shm /dev/shm
$b mount -t tmpfs run /run
$b mkdir -p -m 755 /run/sshd
$b hostname {HOSTNAME}
$b ifconfig lo 127.0.0.1 up
$b ifconfig eth0 10.0.2.15 netmask 255.255.255.0 up || echo "edge-sd: no network"
/usr/sbin/sshd -t && echo "{READY}"
exec /usr/sbin/sshd -D -e
"""
_SSHD = """Port 22
HostKey /etc/ssh/ssh_host_ed25519_key
AuthorizedKeysFile /etc/ssh/authorized_keys
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
StrictModes no
UsePAM no
UseDNS no
PrintMotd no
LogLevel ERROR
SetEnv ORT_DISABLE_TELEMETRY=1
Subsystem sftp /usr/lib/openssh/sftp-server
"""
_FILES = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nsshd:x:100:65534::/run/sshd:/usr/sbin/nologin\n"
    "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
    "etc/group": "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n",
    "etc/shadow": "root:*:19000:0:99999:7:::\nsshd:!:19000::::::\n",
    "etc/hostname": f"{HOSTNAME}\n",
    "etc/hosts": f"127.0.0.1 localhost {HOSTNAME}\n",
    "etc/ssh/sshd_config": _SSHD,
    "edge-init": _INIT,
    f"usr/lib/python3/dist-packages/{_EDGE.replace('/', '-')}.pth": f"/{_EDGE}\n",
}


def unpack(packages: Sequence[Path], root: Path, log: Path) -> None:
    """Lay packages over each other. Nothing in them is run."""
    for package in packages:
        run_tool(["dpkg-deb", "--extract", package, root], log)
    for name in _UNUSED:
        shutil.rmtree(root / name, ignore_errors=True)


def configure(root: Path, host_key: Path, client_key: Path) -> None:
    """Write what installing would have written, and the keys: the board's own, and that of who may enter."""
    for name in ("proc", "sys", "dev", "run", "tmp", "root", "etc/ssh"):
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / "tmp").chmod(0o1777)
    for name, text in _FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).unlink(missing_ok=True)
        (root / name).write_text(text)
    (root / "edge-init").chmod(0o755)
    (root / "etc" / "shadow").chmod(0o600)
    shutil.copy(client_key.with_suffix(".pub"), root / "etc/ssh/authorized_keys")
    shutil.copy(host_key, root / "etc/ssh/ssh_host_ed25519_key")
    (root / "etc/ssh/ssh_host_ed25519_key").chmod(0o600)
    (root / "usr" / "bin" / "awk").symlink_to("mawk")


def in_root(root: Path, name: str) -> Path:
    """A program of the board, wherever its package puts it: /bin is a link to /usr/bin, or not yet.

    Raises:
        InstallationError: it is in none of them.
    """
    for folder in ("usr/bin", "bin"):
        if (root / folder / name).is_file():
            return root / folder / name
    raise InstallationError(f"the board cannot be made: its packages hold no {name}", "edge-sd emulator create")


def python_of(root: Path) -> str:
    """The version of the board's Python, 3.11 for instance."""
    link = root / "usr" / "bin" / "python3"
    name = link.readlink().name if link.is_symlink() else ""
    if not name.startswith("python3."):
        raise InstallationError(f"the board cannot be made: its python3 is {name or 'missing'!r}", "edge-sd emulator create")
    return name.removeprefix("python")


def install_wheels(root: Path, log: Path) -> dict[str, str]:
    """Fetch NumPy and ONNX Runtime for aarch64, of the versions that this machine has; their versions."""
    python, wanted = python_of(root), {name: version(name) for name in WHEELS}
    platforms = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014")
    run_tool(
        [
            sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile",
            "--only-binary=:all:",
            *(f"--platform={name}_aarch64" for name in platforms), "--implementation=cp", f"--python-version={python}",
            "--target", root / _EDGE, *(f"{name}=={number}" for name, number in wanted.items()),
        ],
        log,
        hint="is the package index reachable? pip is asked for the aarch64 wheels of numpy and onnxruntime",
    )  # fmt: skip
    return wanted


def compile_python(root: Path, log: Path) -> None:
    """Compile the modules that jobs import, where this Python is of the board's version: the emulated one would take long.

    A module that does not compile is left to the board; the log names it.
    """
    python = python_of(root)
    if python != f"{sys.version_info.major}.{sys.version_info.minor}":
        return
    folders = [root / "usr" / "lib" / f"python{python}", root / _EDGE / "numpy", root / _EDGE / "onnxruntime" / "capi"]
    options = ["-q", "-q", "-j", "0", "--invalidation-mode", "unchecked-hash", "-s", str(root), "-p", "/"]
    with suppress(InstallationError):
        run_tool([sys.executable, "-I", "-m", "compileall", *options, *folders], log)
