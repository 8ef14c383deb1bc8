"""Every value that a saved program computes on its way, for `runtimes.locate`. A new target is a new file in this folder."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_sd.bundle import Bundle
from edge_sd.registry import implementations


class Values(ABC):
    """A way to look inside of a target's programs.

    Attributes:
        name: of the target.
        about: what it is that is looked at, in words for a person.
    """

    name: str
    about: str

    @abstractmethod
    def of(self, bundle: Bundle, program: str, inputs: Sequence[NDArray[np.float32]]) -> Iterator[tuple[str, NDArray[Any]]]:
        """Yield (name in the program, value) of everything that one call of a denoiser computes, in any layout.

        Args:
            program: denoiser, denoiser.1, …
            inputs: sample (1, C, H, W), time_features (1, F).

        Raises:
            EdgeSDError: the program does not load.
        """


def values() -> dict[str, Values]:
    """Every way, by target."""
    return implementations("edge_sd.runtimes.values", Values)
