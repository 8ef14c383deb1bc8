"""Which timesteps a solver visits: the four spacings in use, on continuous time.

Leading, trailing and linspace are rounded to whole timesteps as in diffusers; quadratic (DDIM, 2010.02502, section D.2) is
left fractional, because the models here take any real timestep and rounding would repeat the smallest ones.
"""

import numpy as np
from numpy.typing import NDArray

from edge_sd.errors import UsageError, unknown

SPACINGS = ("leading", "trailing", "linspace", "quadratic")


def check_steps(steps: int, total: int) -> None:
    """Refuse a number of steps that T = `total` timesteps do not hold.

    Raises:
        UsageError: fewer than 1, or more than T.
    """
    if not 1 <= steps <= total:
        raise UsageError(
            f"{steps} steps: a plan needs at least 1 and at most the schedule's {total}", f"--steps 20, or any from 1 to {total}"
        )


def timesteps(spacing: str, total: int, steps: int, *, includes_end: bool) -> NDArray[np.float64]:
    """Return `steps` strictly decreasing timesteps in [0, total−1], float64.

    Args:
        total: T of the schedule.
        includes_end: whether the solver evaluates the model at the far end of the grid (DDPM, DDIM) or, as a multistep
            solver, steps from the last but one point to the clean image; decides leading and linspace.

    Raises:
        UsageError: no such spacing, or steps outside 1 … T.
    """
    check_steps(steps, total)
    points = steps if includes_end else steps + 1
    if spacing == "leading":
        grid: NDArray[np.floating] = np.arange(points) * float(total // points)
    elif spacing == "trailing":
        grid = np.sort(np.round(np.arange(total, 0, -total / steps))[:steps] - 1)
    elif spacing == "linspace":
        grid = np.round(np.linspace(0, total - 1, points)) if points > 1 else np.array([total - 1.0])
    elif spacing == "quadratic":
        grid = np.linspace(0, np.sqrt(0.8 * total), points) ** 2 if points > 1 else np.array([0.8 * total])
        grid = np.minimum(grid, total - 1)
    else:
        raise unknown("spacing", spacing, SPACINGS)
    times = np.sort(grid.astype(np.float64))[::-1][:steps].copy()
    if (np.diff(times) >= 0).any():
        raise UsageError(
            f"{spacing} spacing cannot place {steps} different timesteps among {total}", "fewer steps, or --spacing trailing"
        )
    return times
