"""What a runtime is: one small class, one file each in this folder, found by its name."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_sd.bundle import Bundle
from edge_sd.errors import InstallationError, unknown
from edge_sd.registry import implementations
from edge_sd.runnable import Availability, Session


class Runtime(ABC):
    """Something that runs a bundle's programs.

    Attributes:
        name: what `--runtime` takes.
        about: one line for `edge-sd list runtimes`.
        target: the target whose programs it runs.
        native: machine code of others runs in this very process, which a bad program can end; see `_child.isolated`.
        emulated: it runs on a processor that is imitated; its times say nothing of a real one.
        evaluates: it computes what a runtime computes, for want of the runtime itself; its times say nothing of that.
    """

    name: str
    about: str
    target: str
    native: bool = False
    emulated: bool = False
    evaluates: bool = False

    @abstractmethod
    def available(self) -> Availability:
        """Whether it works on this machine."""

    @abstractmethod
    def load(self, bundle: Bundle, threads: int | None = None, program: str = "denoiser") -> Session:
        """Load one of the bundle's programs.

        Args:
            threads: of one call; None leaves it to the runtime.
            program: denoiser (or one of a plan's several: denoiser.1, …), temporal or decoder.

        Raises:
            EdgeSDError: the bundle has no program for it, or one that does not keep the bundle's contract.
        """


class _Programs(Session):
    """Several programs as one."""

    def __init__(self, sessions: list[Session]) -> None:
        self._sessions, self._chosen, self.sample_shape = sessions, 0, sessions[0].sample_shape

    def select(self, program: int) -> None:
        self._chosen = program

    def __call__(self, *inputs: NDArray[Any]) -> NDArray[np.float32]:
        return self._sessions[self._chosen](*inputs)


def load_programs(runtime: Runtime, bundle: Bundle, threads: int | None, programs: Sequence[str]) -> Session:
    """Load several programs; `Session.select` takes an index into `programs` and says which one the next call is of."""
    sessions = [runtime.load(bundle, threads, name) for name in programs]
    return sessions[0] if len(sessions) == 1 else _Programs(sessions)


def load_denoiser(runtime: Runtime, bundle: Bundle, threads: int | None = None) -> Session:
    """Load every denoiser that the bundle's plan calls; its column `program` is what `Session.select` takes."""
    return load_programs(runtime, bundle, threads, bundle.plan.header.programs)


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
        raise unknown("runtime", name, known)
    available = known[name].available()
    if not available.ok:
        raise InstallationError(f"runtime {name}: {available.detail}", available.remedy)
    return known[name]
