"""What a device is: one small class, one file each in this folder, found by its name."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from types import MappingProxyType, TracebackType

from typing_extensions import Self

from edge_sd.bundle import Bundle
from edge_sd.devices._fingerprint import DeviceInfo
from edge_sd.devices._job import Job, Outcome
from edge_sd.errors import InstallationError, UsageError, unknown
from edge_sd.registry import implementations
from edge_sd.runnable import Availability

Observe = Callable[[int, int, str], None]


def unobserved(done: int, total: int, note: str = "") -> None:
    """Nobody looks."""


class Connection(ABC):
    """A device that answers. Whatever is brought there is gone when the connection is closed, however it ends."""

    @abstractmethod
    def info(self) -> DeviceInfo:
        """What it is, and in what state."""

    @abstractmethod
    def runtimes(self, bundle: Bundle) -> tuple[str, ...]:
        """Names of the runtimes that can run this bundle there, the one to prefer first."""

    @abstractmethod
    def push(self, bundle: Bundle, job: Job, observe: Observe = unobserved) -> None:
        """Bring a bundle there, and what runs it, and check that all of it arrived whole.

        Raises:
            DeviceError: the device went away, has no room, or holds something else than was sent.
            EdgeSDError: the bundle has no program for the job's runtime.
        """

    @abstractmethod
    def run(self, observe: Observe = unobserved) -> None:
        """Do the job that was pushed last.

        Raises:
            DeviceError: the device went away, stopped answering, or the job's process was killed.
            EdgeSDError: the job failed in words.
        """

    @abstractmethod
    def pull(self) -> Outcome:
        """Bring back what the job found, checked: schema, shapes, finite, of this bundle.

        Raises:
            DeviceError: the device went away.
            EdgeSDError: what came is cut short or of another bundle.
        """

    @abstractmethod
    def close(self) -> None:
        """End what still runs there, and remove what was pushed. Never raises; may be called twice."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class Device(ABC):
    """A way to reach devices.

    Attributes:
        name: what `--device` begins with.
        about: one line for `edge-sd list devices`.
        address: what stands behind the colon, for a person; empty where nothing does.
        own_runtimes: names of runtimes that exist there alone, and the target whose programs each runs.
        shares_host: its jobs run on this machine's processors, so that two at once would spoil each other's times.
    """

    name: str
    about: str
    address: str = ""
    own_runtimes: Mapping[str, str] = MappingProxyType({})
    shares_host: bool = False

    @property
    def usage(self) -> str:
        """What `--device` takes: NAME, NAME:ADDRESS or NAME[:ADDRESS]."""
        if self.address.startswith("["):
            return f"{self.name}[:{self.address[1:]}"
        return f"{self.name}:{self.address}" if self.address else self.name

    @abstractmethod
    def available(self) -> Availability:
        """Whether this machine has what it takes to reach such a device (not whether one is there)."""

    @abstractmethod
    def open(self, address: str) -> Connection:
        """Reach the device.

        Args:
            address: what `--device` said behind the colon, or nothing.

        Raises:
            UsageError: no such address can be.
            DeviceError: nobody answers there, or it is not ready.
        """


def devices() -> dict[str, Device]:
    """Every way to reach devices, by name."""
    return implementations("edge_sd.devices", Device)


def find_device(place: str) -> tuple[Device, str]:
    """Find what `--device` names: NAME or NAME:ADDRESS.

    Returns:
        The device, and the address.

    Raises:
        UsageError: there is none of that name, or it takes no address, or needs one.
        InstallationError: what it takes is missing here.
    """
    name, _, address = place.partition(":")
    known = devices()
    if name not in known:
        raise unknown("device", name, (each.usage for each in known.values()))
    device = known[name]
    if address and not device.address:
        raise UsageError(f"device {name} takes no address, unlike {place!r}", f"--device {name}")
    if not address and device.address and not device.address.startswith("["):
        raise UsageError(f"device {name} needs an address", f"--device {device.usage}")
    available = device.available()
    if not available.ok:
        raise InstallationError(f"device {name}: {available.detail}", available.remedy)
    return device, address
