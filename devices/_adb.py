"""What `adb` prints, read: the list of devices, and its words when something goes wrong."""

import re
from dataclasses import dataclass

from edge_sd.devices._process import Done, listen
from edge_sd.errors import DeviceError
from edge_sd.runtimes._child import last_words

ANSWER = 20.0  # seconds in which adb's own server answers, a connection over the network included

# What adb says, and what helps.
_HINTS = (
    ("unauthorized|authorizing|failed to authenticate",
     "unlock the phone, accept its prompt to allow USB debugging, and give the same command again"),
    ("no permissions|insufficient permissions",
     "let your user open USB devices: apt-get install -y android-sdk-platform-tools-common, then plug it in again"),
    ("no space left|not enough space", "free some space on the device"),
    ("read-only file system|permission denied", "is this a phone with USB debugging, and /data/local/tmp its shell's?"),
    ("cannot connect to daemon|failed to start|server version|failed to check server", "adb kill-server, then adb devices"),
    ("failed to connect|refused|timed out|no route|unreachable|resolve|unknown host",
     "is it in the same network, and wireless debugging on? the port changes each time it is switched on"),
    ("no such file|does not exist", "it is not there, or not any more: give the same command again"),
    ("", "is it plugged in, awake, and USB debugging on? adb devices lists what is there"),
)  # fmt: skip
# Of its own server: that it starts it, or another version of it.
_CHATTER = re.compile(r"\* |adb: warning|adb server version")
_OWN = re.compile(r"adb: |error: |\* failed|failed |cannot |unable ")
_STATES = (
    r"device|offline|unauthorized|authorizing|connecting|bootloader|recovery|rescue|sideload|host|detached|unknown"
    r"|no permissions(?: \([^)]*\))?(?:; see \[[^\]]*\])?"
)
# A serial may hold spaces: adb finds `adb-XXXX (2)._adb-tls-connect._tcp` in the network when a name is taken.
_LISTED = re.compile(rf"(?P<serial>\S.*?)\s+(?P<state>{_STATES})(?P<rest>(?:\s+(?:[A-Za-z_]+:\S+|[0-9][0-9.X-]*))*)\s*")
_PROPERTY = re.compile(r"([A-Za-z_]+):(\S+)")


@dataclass(frozen=True)
class Listed:
    """A line of `adb devices -l`.

    Attributes:
        state: `device` when it is ready; otherwise what is the matter with it.
        properties: usb, product, model, device, transport_id, as far as adb knows them.
    """

    serial: str
    state: str
    properties: dict[str, str]

    def __str__(self) -> str:
        about = (self.properties.get("model", "").replace("_", " "), "" if self.state == "device" else self.short_state)
        return f"{self.serial} ({', '.join(filter(None, about))})" if any(about) else self.serial

    @property
    def short_state(self) -> str:
        """The state without adb's own advice."""
        return re.split(r"[(;]", self.state)[0].strip()


def parse_devices(text: str) -> tuple[Listed, ...]:
    """Read what `adb devices -l` prints; lines that are no device are left out."""
    found = []
    for line in text.splitlines():
        match = _LISTED.fullmatch(line)
        if match and not _CHATTER.match(line):
            found.append(Listed(match["serial"], match["state"], dict(_PROPERTY.findall(match["rest"]))))
    return tuple(found)


def list_serials() -> tuple[Listed, ...]:
    """The devices that adb's server knows now.

    Raises:
        DeviceError: no server of adb's answers.
        InstallationError: there is no adb.
    """
    listen(["adb", "start-server"], patience=ANSWER)  # what it says of its start is then out of the way
    done = listen(["adb", "devices", "-l"], patience=ANSWER)
    if done.status:
        raise refusal("adb does not list its devices", own_words(done))
    return parse_devices(done.text)


def own_words(done: Done) -> str:
    """What adb itself said went wrong, on whichever stream; the last line of it."""
    lines = f"{done.err}\n{done.out[-4096:].decode(errors='replace')}".splitlines()
    return last_words("\n".join(line for line in lines if _OWN.match(line) and not _CHATTER.match(line)), 1)


def refusal(what: str, words: str) -> DeviceError:
    """The error for something that adb did not do, with a hint that fits its words."""
    hint = next(hint for said, hint in _HINTS if re.search(said, f"{what} {words}", re.IGNORECASE))
    return DeviceError(f"{what}: {words}" if words else what, hint)
