"""The two words that everything which can be there or not, and be run, shares: availability and session."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Session(ABC):
    """A loaded program: its inputs, in the contract's order → its output. Most often the denoiser.

    Attributes:
        sample_shape: (C, H, W) of one sample; of a program that takes none, its first input's shape without the batch.
    """

    sample_shape: tuple[int, ...]

    @abstractmethod
    def __call__(self, *inputs: NDArray[Any]) -> NDArray[np.float32]:
        """(1, …) each; for the denoiser sample (1, C, H, W), time_features (1, F) → prediction (1, C, H, W), all float32."""

    def select(self, program: int) -> None:  # noqa: B027 (most have one)
        """Choose which of the plan's programs the next calls run, an index into its column's names; most plans have one."""


@dataclass(frozen=True)
class Availability:
    """Whether something works on this machine.

    Attributes:
        ok: it does.
        detail: its version, or why not.
        remedy: the command that would mend it.
    """

    ok: bool
    detail: str
    remedy: str = ""


EXTRAS = {"executorch": "executorch", "coremltools": "coreml"}  # which bring the versions that were tested


def packages_available(*requirements: str) -> Availability:
    """Check that distributions are installed (not that they import; that is seen when they are used)."""
    found = []
    for requirement in requirements:
        try:
            found.append(f"{requirement} {version(requirement)}")
        except PackageNotFoundError:
            wanted = f'"edge-sd[{EXTRAS[requirement]}]"' if requirement in EXTRAS else requirement
            return Availability(False, f"{requirement} is not installed", f"pip install {wanted}")
    return Availability(True, ", ".join(found))
