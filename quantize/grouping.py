"""Steps in groups: how activation ranges move along a plan, and where to cut it so that few sets of ranges serve all steps.

A group of steps is one program with its own activation grids over weights that all groups share. Ranges are those of a finite
set of steps (TFMQ-DM's finite set calibration, 2311.16503), here for every tensor and for contiguous groups; the cut is the
exact optimum by dynamic programming (as Jenks' and Fisher's natural breaks).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_sd.errors import UsageError

MOST_GROUPS = 4
# More groups cost more programs; they have to take away this share of the error.
WORTH_A_GROUP = 0.1


@dataclass(frozen=True)
class Ranges:
    """What was met at each step.

    Attributes:
        names: of N tensors.
        low, high: (S, N), smallest and largest value at each step.
        power: (S, N), mean square at each step.
    """

    names: tuple[str, ...]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    power: NDArray[np.float64]

    def of(self, steps: slice) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Smallest and largest value of each tensor over some steps, (N,) each."""
        return self.low[steps].min(0), self.high[steps].max(0)


def group_cost(ranges: Ranges) -> NDArray[np.float64]:
    """Cost (S, S + 1) of steps i … j − 1 as one group: their relative quantization noise, up to a factor; inf where j ≤ i.

    A tensor on a grid over a range of width r has noise of power r²/(12·levels²); it counts relative to the tensor's own power
    at the step, and all tensors count alike.
    """
    steps = len(ranges.low)
    cost = np.full((steps, steps + 1), np.inf)
    weight = 1 / np.maximum(ranges.power, np.finfo(np.float64).tiny)
    for start in range(steps):
        low, high = np.zeros(len(ranges.names)), np.zeros(len(ranges.names))  # a grid always holds 0
        total = np.zeros(len(ranges.names))
        for stop in range(start + 1, steps + 1):
            low, high = np.minimum(low, ranges.low[stop - 1]), np.maximum(high, ranges.high[stop - 1])
            total = total + weight[stop - 1]
            cost[start, stop] = ((high - low) ** 2 * total).mean()
    return cost


def partition(cost: NDArray[np.float64], groups: int) -> tuple[list[int], float]:
    """The cheapest cut of S steps into `groups` contiguous ones: where each begins, and what all cost.

    Raises:
        UsageError: there are more groups than steps.
    """
    steps = len(cost)
    if not 1 <= groups <= steps:
        raise UsageError(f"{steps} steps cannot be cut into {groups} groups", f"choose 1 to {min(steps, MOST_GROUPS)}")
    best = np.full((groups + 1, steps + 1), np.inf)
    before = np.zeros((groups + 1, steps + 1), dtype=int)
    best[0, 0] = 0
    for count in range(1, groups + 1):
        for stop in range(count, steps + 1):
            totals = best[count - 1, :stop] + cost[:stop, stop]
            before[count, stop] = int(np.argmin(totals))
            best[count, stop] = totals[before[count, stop]]
    starts, stop = [], steps
    for count in range(groups, 0, -1):
        stop = int(before[count, stop])
        starts.append(stop)
    return starts[::-1], float(best[groups, steps])


def knee(errors: Sequence[float]) -> int:
    """How many groups are worth it, from the error with 1, 2, … groups: the fewest within a tenth of the least error."""
    return next(groups for groups, error in enumerate(errors, 1) if error <= (1 + WORTH_A_GROUP) * min(errors))
