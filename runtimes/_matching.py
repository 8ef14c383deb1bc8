"""Finding a value among others by its numbers, whatever layout and shape it has there."""

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_sd.evaluation.metrics import SAME_DB, snr_db

_NEAR = 4.0  # a value with this many times the energy, or this part of it, is another


def best_match(value: NDArray[np.float32], among: Mapping[str, NDArray[Any]]) -> tuple[float, str]:
    """The value that comes nearest, its dimensions in any order, merged or split.

    Returns:
        SNR in dB, and its name; −`SAME_DB` and "" where none has as many numbers.
    """
    best = (-SAME_DB, "")
    energy = float(np.sum(value.astype(np.float64) ** 2))
    for name, other in among.items():
        if other.size != value.size or other.dtype.kind != "f" or not np.isfinite(other).all():
            continue
        theirs = float(np.sum(other.astype(np.float64) ** 2))
        if not energy / _NEAR <= theirs <= energy * _NEAR:
            continue
        best = max(best, (max(snr_db(turned, other.reshape(-1)) for turned in _turned(value)), name))
    return best


def _turned(value: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """A value's numbers in every order that another layout of it may have them in."""
    squeezed = value.squeeze()
    return [squeezed.transpose(order).reshape(-1) for order in itertools.permutations(range(squeezed.ndim))]
