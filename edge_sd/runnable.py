"""The two words that everything which can be there or not, and be run, shares: availability and session."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import numpy as np
from numpy.typing import NDArray


class Session(ABC):
    """A loaded denoiser program: (sample, time_features) → prediction.

    Attributes:
        sample_shape: (C, H, W) of one sample.
    """

    sample_shape: tuple[int, int, int]

    @abstractmethod
    def __call__(self, sample: NDArray[np.float32], time_features: NDArray[np.float32]) -> NDArray[np.float32]:
        """sample (1, C, H, W), time_features (1, F) → prediction (1, C, H, W); all float32."""


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


def packages_available(*requirements: str) -> Availability:
    """Check that distributions are installed (not that they import; that is seen when they are used)."""
    found = []
    for requirement in requirements:
        try:
            found.append(f"{requirement} {version(requirement)}")
        except PackageNotFoundError:
            return Availability(False, f"{requirement} is not installed", f"pip install {requirement}")
    return Availability(True, ", ".join(found))
