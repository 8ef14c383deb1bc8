"""What a device is: one small class, one file each in this folder, found by its name."""

from abc import ABC, abstractmethod

from edge_sd.devices._job import BenchResult, DeviceInfo, Job
from edge_sd.errors import UsageError
from edge_sd.registry import implementations
from edge_sd.runnable import Availability


class Device(ABC):
    """Somewhere to run a bundle.

    Attributes:
        name: what `--device` takes.
        about: one line for `edge-sd list devices`.
    """

    name: str
    about: str

    @abstractmethod
    def available(self) -> Availability:
        """Whether it can be reached."""

    @abstractmethod
    def info(self) -> DeviceInfo:
        """What it is."""

    @abstractmethod
    def bench(self, job: Job) -> BenchResult:
        """Do a job and return what was measured.

        Raises:
            DeviceError: the device went away, or the job's process died.
        """


def devices() -> dict[str, Device]:
    """Every device by name."""
    return implementations("edge_sd.devices", Device)


def find_device(name: str) -> Device:
    """Find a device by its name."""
    known = devices()
    if name not in known:
        raise UsageError(f"unknown device {name!r}", f"one of {', '.join(known)}")
    return known[name]
