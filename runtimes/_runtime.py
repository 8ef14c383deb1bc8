"""What a runtime is: one small class, one file each in this folder, found by its name."""

from abc import ABC, abstractmethod

from edge_sd.bundle import Bundle
from edge_sd.errors import InstallationError, UsageError
from edge_sd.registry import implementations
from edge_sd.runnable import Availability, Session


class Runtime(ABC):
    """Something that runs a bundle's programs.

    Attributes:
        name: what `--runtime` takes.
        about: one line for `edge-sd list runtimes`.
        target: the target whose programs it runs.
    """

    name: str
    about: str
    target: str

    @abstractmethod
    def available(self) -> Availability:
        """Whether it works on this machine."""

    @abstractmethod
    def load(self, bundle: Bundle, threads: int | None = None, program: str = "denoiser") -> Session:
        """Load one of the bundle's programs.

        Args:
            threads: of one call; None leaves it to the runtime.
            program: denoiser, temporal or decoder.

        Raises:
            EdgeSDError: the bundle has no program for it, or one that does not keep the bundle's contract.
        """


def runtimes() -> dict[str, Runtime]:
    """Every runtime by name."""
    return implementations("edge_sd.runtimes", Runtime)


def find_runtime(name: str) -> Runtime:
    """Find a runtime that works here.

    Raises:
        UsageError: there is none of that name.
        InstallationError: its packages are missing.
    """
    known = runtimes()
    if name not in known:
        raise UsageError(f"unknown runtime {name!r}", f"one of {', '.join(known)}")
    available = known[name].available()
    if not available.ok:
        raise InstallationError(f"runtime {name}: {available.detail}", available.remedy)
    return known[name]
