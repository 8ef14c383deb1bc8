"""Running a plan: one loop for NumPy arrays and torch tensors alike, the same arithmetic in the same order.

Only +, × and lists are used, so that the loop is also the specification for every other language. The coefficients are
Python floats: NumPy and torch both round them to the sample's dtype before they multiply. At run time this file needs NumPy
alone: it travels to boards that have nothing else (`edge_sd.devices`).
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np

from edge_sd.diffusion.noise import gaussian

if TYPE_CHECKING:
    from torch import Tensor

Array = TypeVar("Array", np.ndarray, "Tensor")


class Header(Protocol):
    """What the loop reads of a plan's header."""

    @property
    def history(self) -> int:
        """How many m the widest row looks back."""


class Table(Protocol):
    """What the loop reads of a `Plan`: its rows' number, its columns and its header."""

    @property
    def columns(self) -> Mapping[str, np.ndarray]:
        """See `Plan`."""

    @property
    def header(self) -> Header:
        """See `PlanHeader`."""

    def __len__(self) -> int:
        """Number of rows."""


def advance(plan: Table, row: int, x: Array, base: Array, memory: list[Array], e: Array) -> tuple[Array, Array, list[Array]]:
    """A row but for its noise: the next x, base, and what is remembered, newest first.

    Args:
        e: what the program returned at x.
    """
    p, q, u, a, a_next = (float(plan.columns[name][row]) for name in ("p", "q", "u", "a", "a_next"))
    latest: Array = p * x + q * e
    kept: list[Array] = [latest]
    kept += memory[: plan.header.history - 1]
    base = u * x + a * base
    for weight, m in zip(plan.columns["b"][row].tolist(), kept, strict=False):
        base = base + weight * m
    x = a_next * base
    for weight, m in zip(plan.columns["b_next"][row].tolist(), kept, strict=False):
        x = x + weight * m
    return x, base, kept


def execute(
    plan: Table,
    program: Callable[[Array, int], Array],
    x: Array,
    noise: Callable[[int], Array],
    observe: Callable[[int, Array, Array], None] | None = None,
) -> Array:
    """Denoise `x` along a plan.

    Args:
        program: (x, row) → the prediction at that row's timestep; x is (B, C, H, W), float32 or float64.
        x: unit Gaussian noise, where the loop starts; a plan's column `start` scales it first.
        noise: row → fresh unit Gaussian noise of x's shape; called only for rows with c ≠ 0.
        observe: called with (row, x, prediction) after each call of the program, x being what the program was given.

    Returns:
        The sample after the last row, of x's shape and dtype.
    """
    if "start" in plan.columns:
        x = float(plan.columns["start"][0]) * x
    base = x
    memory: list[Array] = []  # newest first
    for row in range(len(plan)):
        e = program(x, row)
        if observe:
            observe(row, x, e)
        x, base, memory = advance(plan, row, x, base, memory, e)
        if c := float(plan.columns["c"][row]):
            x = x + c * noise(row)
    return x


def trace(
    plan: Table, program: Callable[[np.ndarray, int], np.ndarray], seed: int, index: int, shape: tuple[int, ...]
) -> tuple[list[np.ndarray], list[np.ndarray], np.ndarray]:
    """Draw one image from the noise of (seed, index) and keep everything.

    Args:
        program: (x, row) → the prediction; x is (1, C, H, W) float32.
        shape: (C, H, W).

    Returns:
        x before each row and the prediction at it, (C, H, W) each, and x after the last row.
    """
    samples: list[np.ndarray] = []
    predictions: list[np.ndarray] = []

    def observe(row: int, x: np.ndarray, e: np.ndarray) -> None:
        samples.append(x[0])
        predictions.append(e[0])

    def noise(row: int) -> np.ndarray:
        return gaussian(seed, index, row, (1, *shape))

    final = execute(plan, program, noise(-1), noise, observe)
    return samples, predictions, final[0]
