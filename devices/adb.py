"""Android phones and boards, by `adb`: on a cable, or in the network as HOST:PORT.

What is pushed brings its own C library and runs as a plain Linux program of the user `shell` in /data/local/tmp; no app is
installed, no root is needed. The user's own adb server is used, and left as it is.

Tested with Debian's adb against a device of our own that runs Android's shell and commands. Unproven on a phone that one can buy
until somebody runs `edge-sd bench BUNDLE --device adb:SERIAL` on one; please send us its bench.json, and what `adb shell getprop`
says of ro.product.manufacturer, ro.product.model, ro.soc.model, ro.board.platform and ro.build.fingerprint.
"""

import re
import secrets
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from edge_sd.devices._adb import ANSWER, own_words, refusal
from edge_sd.devices._adb import list_serials as list_serials
from edge_sd.devices._device import Connection, Device, Observe, unobserved
from edge_sd.devices._process import Done, listen
from edge_sd.devices._remote import PATIENCE, RemoteConnection, Transport
from edge_sd.errors import DeviceError, EdgeSDError, UsageError
from edge_sd.files import explained
from edge_sd.runnable import Availability
from edge_sd.runtimes._child import last_words

_INSTALL = "apt-get install -y adb, or Android's platform-tools on the PATH"
_READY = 5.0  # seconds in which a device that is connected gets ready
_FOUND = 1.0  # seconds in which adb's server, just started perhaps, finds what is on the cables
_RETURN = 10.0  # seconds in which one that went away may come back
_SLOWEST = 256 * 1024  # bytes a second of the slowest link: adb says nothing while it copies
_NETWORK = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9._-]*|\[[0-9A-Fa-f:.%A-Za-z0-9]+\]):[0-9]{1,5}", re.ASCII)
_MOST_CHARACTERS = 255
# A connection that breaks looks to adb like a command that ended well: only a last word tells that it did end, and how. What the
# script started is killed when the device's adbd hangs up, for it could be something that never looks at its input.
_WRAPPED = """exec 3<&0
(
{script}
) <&3 3<&- &
p=$!; trap 'pkill -l KILL -P $p; kill -9 $p' HUP; wait $p; echo {last_word} $?"""


class Adb(Device):
    """Android devices."""

    name = "adb"
    about = "an Android phone or board with USB debugging, or HOST:PORT with wireless debugging"
    address = "SERIAL"

    def available(self) -> Availability:
        found = shutil.which("adb")
        return Availability(True, found) if found else Availability(False, "adb is not installed", _INSTALL)

    def open(self, address: str) -> Connection:
        return RemoteConnection(AdbTransport(address))


class AdbTransport(Transport):
    """One device of adb's.

    Args:
        serial: as `adb devices` lists it; HOST:PORT is connected to.
        patience: most seconds without a byte of a file that is copied.

    Raises:
        UsageError: no device has such a serial. It never reaches a process.
        DeviceError: it is not there, or not ready; those that are there are named.
        InstallationError: there is no adb.
    """

    kind = "adb"
    base = "/data/local/tmp"

    def __init__(self, serial: str, *, patience: float = PATIENCE) -> None:
        if not serial or serial.startswith("-") or len(serial) > _MOST_CHARACTERS or not serial.isprintable():
            raise UsageError(f"no device can have the serial {serial[:_MOST_CHARACTERS]!r}", "adb devices lists serials")
        self.address, self.patience = serial, patience
        self._network = _NETWORK.fullmatch(serial) is not None
        self._connected = False  # by us: then it is we who let go of it
        try:
            self._reach(_FOUND)
            features = self._adb("features", patience=ANSWER)
        except BaseException:
            self.close()
            raise
        # Androids before 7 keep neither the streams of a command apart nor its exit code.
        self._separate = "shell_v2" in features.text.split()

    def shell(self, script: str, *, patience: float = PATIENCE, on_line: Callable[[str], None] = lambda line: None) -> Done:
        last_word = secrets.token_hex(16)
        wrapped = _WRAPPED.format(script=script, last_word=last_word)
        way = ("shell", "-T") if self._separate else ("exec-out",)
        done = self._adb(*way, wrapped, patience=patience, on_line=on_line)
        out, _, status = done.out.rpartition(last_word.encode())
        if not re.fullmatch(rb" [0-9]{1,3}\n", status):
            raise self._refusal("broke off", own_words(done) or last_words(done.err, 1))
        return Done(int(status), out, done.err if self._separate else out[-4096:].decode(errors="replace"))

    def push(self, local: Path, remote: str, observe: Observe = unobserved) -> None:
        files = sorted(file for file in local.rglob("*") if file.is_file())
        sizes = [file.stat().st_size for file in files]
        for index, file in enumerate(files):
            name = file.relative_to(local).as_posix()
            observe(sum(sizes[:index]), sum(sizes), name)
            patience = self.patience + sizes[index] // _SLOWEST
            done = self._adb("push", str(file.absolute()), f"{remote}/{name}", patience=patience)
            if done.status:
                raise self._refusal(f"did not take {name}", own_words(done))
        observe(sum(sizes), sum(sizes), "")

    def pull(self, remote: str, local: Path) -> None:
        part = local.absolute().with_name(f".{local.name}.part")
        with explained(local):
            try:
                done = self._adb("pull", remote, str(part), patience=self.patience)
                if done.status:
                    raise self._refusal(f"did not give {remote.rpartition('/')[2]}", own_words(done))
                part.replace(local)
            finally:
                part.unlink(missing_ok=True)

    def reconnect(self) -> bool:
        try:
            self._reach(_RETURN)
        except EdgeSDError:
            return False
        return True

    def close(self) -> None:
        if self._connected:
            self._connected = False
            try:
                listen(["adb", "disconnect", self.address], patience=ANSWER)
            except EdgeSDError:
                return

    def _adb(self, *arguments: str, patience: float, on_line: Callable[[str], None] = lambda line: None) -> Done:
        return listen(["adb", "-s", self.address, *arguments], patience=patience, on_line=on_line)

    def _reach(self, seconds: float) -> None:
        """Wait some seconds until the device is there, and then until it is ready; one in the network is connected to.

        The serial must be one of the list: adb itself would take more, `model:…` say, and so another device.
        """
        began, said = time.monotonic(), ""
        while True:
            spent = time.monotonic() - began  # before it is looked for: however long connecting took, it is looked for afterwards
            there = list_serials()
            states = [listed.state for listed in there if listed.serial == self.address]
            if states == ["device"]:
                return
            if spent > (max(seconds, _READY) if states else seconds):
                break
            if self._network and (not states or states == ["offline"]):
                said = self._connect(stale=bool(states))
            time.sleep(0.25)
        if len(states) > 1:
            raise DeviceError(f"{len(states)} devices have the serial {self.address}", "unplug all but one of them")
        if states:
            raise self._refusal(f"is not ready: {states[0]}", "")
        others = ", ".join(map(str, there)) or "none"
        raise self._refusal(f"is not there (adb knows {others})", said)

    def _connect(self, *, stale: bool) -> str:
        """Connect over the network; what adb says."""
        if stale:  # adb takes one that it lost for one that is connected
            listen(["adb", "disconnect", self.address], patience=ANSWER)
        done = listen(["adb", "connect", self.address], patience=ANSWER)
        self._connected = True
        return own_words(done)

    def _refusal(self, what: str, words: str) -> DeviceError:
        return refusal(f"adb:{self.address} {what}", words)
