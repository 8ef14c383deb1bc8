"""The bijection of real timesteps and noise levels: FastDPM (2106.00132), section 3.1.

For β_t = β_0 + t·Δβ the product ᾱ_t = Π(1 − β_i), i ≤ t, has a closed form that takes any real t. With β̂ = (1 − β_0)/Δβ,

    ᾱ_t = Δβ^(t+1)·Γ(β̂ + 1)/Γ(β̂ − t)

The other schedules have none: there `NoiseSchedule.alpha_bar` is taken, which is log-linear between whole timesteps.
"""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edge_sd.diffusion.schedule import NoiseSchedule
from edge_sd.errors import UsageError

Float64 = NDArray[np.float64]

# How far past an end of the schedule, relative to it, a level may lie and still be that end: what a long product may be off by.
_ROUNDING = 1e-10
# From here on the series for log Γ is exact to float64; below, math.lgamma has nothing large to cancel.
_SERIES = 20.0


def alpha_bar(schedule: NoiseSchedule, t: ArrayLike) -> Float64:
    """ᾱ(t) in (0, 1) at real t, float64, of t's shape.

    At whole t it is `NoiseSchedule.alpha_bar` for every schedule; between, they differ for linear β by about Δβ/8 of ᾱ.

    Raises:
        UsageError: a t outside [0, T−1].
    """
    times = np.asarray(t, dtype=np.float64)
    discrete = schedule.alpha_bar(times)  # also refuses what is out of range
    return np.exp(_log_product(schedule, times)) if schedule.kind == "linear" else discrete


def timestep(schedule: NoiseSchedule, level: ArrayLike) -> Float64:
    """Inverse of `alpha_bar`: the real t in [0, T−1] at which ᾱ is `level`, float64, of level's shape.

    Exact to 1e-9 as long as float64 can tell neighbouring levels apart to that (β above 1e-6, ᾱ above 1e-300).

    Raises:
        UsageError: a level that the schedule does not pass through.
    """
    levels = np.asarray(level, dtype=np.float64)
    last = schedule.timesteps - 1
    top, bottom = alpha_bar(schedule, [0.0, float(last)])
    inside = (levels <= top * (1 + _ROUNDING)) & (levels >= bottom * (1 - _ROUNDING))
    if not inside.all():
        raise UsageError(
            f"noise level ᾱ = {levels[~inside].flat[0]:g} is not of this schedule, which runs from {top:g} down to {bottom:g}",
            "give levels inside it",
        )
    return bisect(lambda t: alpha_bar(schedule, t), np.zeros(levels.shape), np.full(levels.shape, float(last)), levels)


def bisect(f: Callable[[Float64], Float64], low: Float64, high: Float64, target: Float64) -> Float64:
    """Where a decreasing, elementwise `f` meets `target` between `low` and `high`, to 2⁻⁶⁴ of the distance between them.

    Where it meets it nowhere, the end that comes nearest: the caller says whether that will do.
    """
    for _ in range(64):
        middle = low + (high - low) / 2
        above = f(middle) > target
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    return low  # not the middle: timestep 0 comes back as 0, not as 1e-17


def _log_product(schedule: NoiseSchedule, t: Float64) -> Float64:
    """log ᾱ_t for linear β.

    The two log Γ are near 5e5 and their difference near 1e-4 where t is small, so that taken one by one they would leave t
    uncertain by 1e-6. With z = β̂ − t, n = t + 1, w = n/(z + n) and Binet's R(z) = log Γ(z) − (z − ½) log z + z − ½ log 2π,
    Stirling's terms cancel on paper instead:

        log ᾱ_t = n·log(1 − β_0 + Δβ) + (z + n)·[−(1 − w)·log(1 − w) − w] + ½ log(1 − w) + R(z + n) − R(z)
    """
    n = t + 1
    step = (schedule.beta_end - schedule.beta_start) / (schedule.timesteps - 1)
    if step == 0:
        return n * math.log1p(-schedule.beta_start)
    z = (1 - (schedule.beta_start + t * step)) / step
    top = z + n
    return n * math.log1p(step - schedule.beta_start) + top * _bend(n / top) + np.log(z / top) / 2 + _binet(top) - _binet(z)


def _bend(w: Float64) -> Float64:
    """−(1 − w)·log(1 − w) − w = −Σ w^k/(k·(k − 1)), k ≥ 2: the series where the two terms would cancel."""
    series = -sum(w**k / (k * (k - 1)) for k in range(2, 18))
    return np.where(w < 0.1, series, -(1 - w) * np.log1p(-w) - w)


def _binet(z: Float64) -> Float64:
    """Binet's R(z), what log Γ(z) has beyond Stirling's formula, z > 0."""
    square = 1 / (z * z)
    remainder: Float64 = np.asarray((1 / 12 - square * (1 / 360 - square * (1 / 1260 - square / 1680))) / z)
    small = z < _SERIES
    if small.any():
        few = z[small]
        gamma = np.array([math.lgamma(value) for value in few])
        remainder[small] = gamma - (few - 0.5) * np.log(few) + few - math.log(2 * math.pi) / 2
    return remainder
