"""A drawer whose samples say which they are: in a module of its own, so that other processes can import it."""

import os
from dataclasses import dataclass

import numpy as np

from edge_sd.errors import EdgeSDError
from edge_sd.evaluation.draw import Draw, Drawer
from edge_sd.evaluation.record import Origin


@dataclass(frozen=True)
class Numbered(Drawer):
    """Image i is of colour i; at index `bad` something happens."""

    bad: int | None = None
    fatal: bool = False

    @property
    def size(self) -> int:
        return 2

    @property
    def origin(self) -> Origin:
        return Origin(kind="folder", name="photos", digest="0" * 64)

    def open(self, threads: int | None) -> Draw:
        def one(indices: range) -> np.ndarray:
            if self.bad in indices:
                if self.fatal:
                    os._exit(9)  # as the system does to a process that takes too much memory
                raise EdgeSDError(f"image {self.bad} is bad", "leave it")
            return np.array(indices, np.uint8).reshape(-1, 1, 1, 1) * np.ones((1, 3, 2, 2), np.uint8)

        return one
