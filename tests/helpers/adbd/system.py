"""A phone's root directory, made of mounts that only the namespace of this process sees, and the sensors below it.

Android's shell is mksh and its commands are toybox, and both are Debian packages too; what Debian's toybox leaves out and
Android's has comes from coreutils. PATH, the folders, the user and the properties are a phone's. There is no Python, no /tmp, no
/bin, as on a phone. The machine's own libraries are there, read-only: without them nothing here would run.
"""

import os
import shutil
import subprocess
from pathlib import Path

SHELL_USER = 2000  # Android's `shell`
WRITABLE = "data/local/tmp"
ENVIRONMENT = {
    "PATH": "/product/bin:/system/bin",
    "ANDROID_DATA": "/data",
    "ANDROID_ROOT": "/system",
    "HOME": "/",
    "TMPDIR": "/data/local/tmp",
    "SHELL": "/system/bin/sh",
    "USER": "shell",
    "LOGNAME": "shell",
}
# Commands of Android's toybox, of those that a script of ours could come to use.
_COMMANDS = """
    basename cat chgrp chmod chown cksum clear cmp comm cp cut date dd df diff dirname du echo env expand expr false
    fgrep find fold free getconf grep egrep groups gunzip gzip head hostname id kill killall ln log logname ls md5sum
    mkdir mkfifo mknod mktemp more mount mountpoint mv nice nl nohup nproc od paste patch pgrep pidof pkill printenv
    printf prlimit ps pwd readlink realpath renice rev rm rmdir sed seq setsid sha1sum sha256sum sleep sort split stat
    strings sync tac tail tar taskset tee test time timeout top touch tr true truncate ulimit umount uname uniq unlink
    uptime usleep wc which whoami xargs yes zcat
"""
_GETPROP = """#!/system/bin/sh
while IFS="=" read -r name value; do [ "$name" = "$1" ] && echo "$value" && exit; done < /system/build.prop
echo
"""
_CORES, _MAX_KHZ = os.cpu_count() or 1, 2_400_000


def build(root: Path, properties: dict[str, str], disk_bytes: int) -> None:
    """Mount a phone's file system below an empty folder. This process must be in a mount namespace of its own, and be root."""
    _mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", root)
    for entry in ("usr/lib", "usr/lib64", "lib", "lib64"):
        source = Path("/", entry)
        if source.is_symlink():
            (root / entry).symlink_to(source.readlink())
        elif source.is_dir():
            (root / entry).mkdir(parents=True)
            _mount("--bind", "-o", "ro", source, root / entry)
    (root / "proc").mkdir()
    _mount("--rbind", "/proc", root / "proc")
    (root / "dev").mkdir()
    for name in ("null", "zero", "full", "random", "urandom"):
        (root / "dev" / name).touch()
        _mount("--bind", f"/dev/{name}", root / "dev" / name)
    (root / "etc").mkdir()
    (root / "etc/passwd").write_text(f"root:x:0:0::/:/system/bin/sh\nshell:x:{SHELL_USER}:{SHELL_USER}::/:/system/bin/sh\n")
    (root / "etc/group").write_text(f"root:x:0:\nshell:x:{SHELL_USER}:\n")
    shutil.copy("/etc/ld.so.cache", root / "etc/ld.so.cache")
    _commands(root / "system/bin", properties)
    Sensors(root).build()
    writable = root / WRITABLE
    writable.mkdir(parents=True)
    _mount("-t", "tmpfs", "-o", f"size={disk_bytes},mode=771,uid={SHELL_USER},gid={SHELL_USER}", "tmpfs", writable)
    for folder in (root / "data", root / "data/local"):
        folder.chmod(0o771)


def _mount(*arguments: object) -> None:
    subprocess.run(["mount", *map(str, arguments)], check=True)


def _commands(folder: Path, properties: dict[str, str]) -> None:
    folder.mkdir(parents=True)
    toybox = _program("toybox")
    known = subprocess.run([toybox], check=True, capture_output=True, text=True).stdout.split()
    shutil.copy(toybox, folder / "toybox")
    shutil.copy(_program("mksh"), folder / "sh")
    for name in _COMMANDS.split():
        if name in known:
            (folder / name).symlink_to("toybox")
        elif (program := shutil.which(name)) is not None:
            shutil.copy(program, folder / name)
    lines = "".join(f"{name}={value}\n" for name, value in properties.items())
    (folder.parent / "build.prop").write_text(lines)
    getprop = folder / "getprop"
    getprop.write_text(_GETPROP)
    getprop.chmod(0o755)


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise FileNotFoundError(f"{name} is not installed: apt-get install {name}")
    return found


class Sensors:
    """A thermal zone, a battery and the processors' frequencies, where Linux has them."""

    def __init__(self, root: Path) -> None:
        self._sys = root / "sys"
        self.celsius = 30.0

    def build(self) -> None:
        """Make the files of a phone that is cool, on its battery, and at its full frequency."""
        for name, value in {
            "class/thermal/thermal_zone0/type": "cpu-0-0-usr",
            "class/power_supply/battery/type": "Battery",
            "class/power_supply/battery/status": "Discharging",
            "class/power_supply/battery/capacity": "83",
            "class/power_supply/battery/online": "1",
            "class/power_supply/usb/type": "USB",
            "class/power_supply/usb/online": "0",
        }.items():
            self._write(name, value)
        listed = f"0-{_CORES - 1}" if _CORES > 1 else "0"
        for name in ("possible", "present", "online"):
            self._write(f"devices/system/cpu/{name}", listed)
        self._write("devices/system/cpu/kernel_max", str(_CORES - 1))
        for core in range(_CORES):
            self._write(f"devices/system/cpu/cpu{core}/cpufreq/cpuinfo_max_freq", str(_MAX_KHZ))
            self._write(f"devices/system/cpu/cpu{core}/cpufreq/scaling_max_freq", str(_MAX_KHZ))
            self._write(f"devices/system/cpu/cpu{core}/cpufreq/scaling_governor", "schedutil")
        self.show(slow=False)

    def show(self, *, slow: bool) -> None:
        """Bring the files up to date with `celsius`, and with what the frequency is then."""
        self._write("class/thermal/thermal_zone0/temp", str(round(self.celsius * 1000)))
        for core in range(_CORES):
            self._write(f"devices/system/cpu/cpu{core}/cpufreq/scaling_cur_freq", str(_MAX_KHZ // 3 if slow else _MAX_KHZ))

    def _write(self, name: str, value: str) -> None:
        path = self._sys / name
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_suffix(".new")  # a reader finds the old value or the new one
        beside.write_text(value + "\n")
        beside.replace(path)
