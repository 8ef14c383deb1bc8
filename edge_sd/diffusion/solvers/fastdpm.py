"""FastDPM (2106.00132): few noise levels, chosen as steps or as variances, each at a real timestep of the trained process.

The reverse step from ᾱ to ᾱ' (1 at the end) is, with κ = `eta`, 1 for the paper's DDPM-rev and 0 for its DDIM-rev,

    σ = κ·√((1 − ᾱ')/(1 − ᾱ)·(1 − ᾱ/ᾱ'))
    x ← √(ᾱ'/ᾱ)·x + (√(1 − ᾱ' − σ²) − √(1 − ᾱ)·√(ᾱ'/ᾱ))·ε + σ·z

which is DDIM's, so DDIM compiles it; what is FastDPM's own is which levels it visits.
"""

from abc import abstractmethod

import numpy as np

from edge_sd.diffusion.continuous import bisect, timestep
from edge_sd.diffusion.plan import Float64, Prediction
from edge_sd.diffusion.schedule import NoiseSchedule
from edge_sd.diffusion.solvers._base import Levels, Row, Solver
from edge_sd.diffusion.solvers.ddim import DDIM
from edge_sd.diffusion.spacing import check_steps, timesteps
from edge_sd.errors import unknown

_SPACINGS = ("linear", "quadratic")


class _FastDPM(Solver):
    default_spacing = "linear"

    def visits(self, schedule: NoiseSchedule, steps: int, spacing: str) -> tuple[Float64, Float64]:
        if spacing not in _SPACINGS:
            raise unknown(f"spacing of {self.name}", spacing, _SPACINGS)
        check_steps(steps, schedule.timesteps)
        return self._approximate(schedule, steps, spacing)

    @abstractmethod
    def _approximate(self, schedule: NoiseSchedule, steps: int, spacing: str) -> tuple[Float64, Float64]:
        """As `visits`, of arguments that can be meant."""

    def rows(self, levels: Levels, prediction: Prediction, eta: float) -> list[Row]:
        return DDIM().rows(levels, prediction, eta)


class FastDPMStep(_FastDPM):
    """Chooses steps: τ_i = ⌊i·(T − 1)/(S − 1)⌋, or τ = linspace(0, √(0.8·T), S)²; ᾱ is the schedule's at τ.

    The quadratic τ stay fractional, as in `spacing`: rounded, the smallest would coincide. One step starts at the last τ.
    """

    name = "fastdpm-step"
    about = "FastDPM by steps, 1st order; --eta (κ) as of ddim, --spacing linear or quadratic"

    def _approximate(self, schedule: NoiseSchedule, steps: int, spacing: str) -> tuple[Float64, Float64]:
        last = schedule.timesteps - 1
        if spacing == "quadratic":
            times = timesteps("quadratic", schedule.timesteps, steps, includes_end=True)
        else:
            times = np.array([float(i * last // (steps - 1)) for i in reversed(range(steps))] if steps > 1 else [float(last)])
        return times, schedule.alpha_bar(times)


class FastDPMVar(_FastDPM):
    """Chooses variances: η = linspace(β_0, x, S) or η_i = β_0·(1 + i·x)², with x such that Π(1 − η_i) = ᾱ_T.

    The noise levels γ̄_s = Π(1 − η_i), i ≤ s, fall between timesteps: `continuous.timestep` says where. Meant for linear β: where
    ᾱ falls steeply at the end, as the cosine's, most levels lie in the last timestep. One step has the last variance alone.
    """

    name = "fastdpm-var"
    about = "FastDPM by variances, 1st order; --eta (κ) as of ddim, --spacing linear or quadratic"

    def _approximate(self, schedule: NoiseSchedule, steps: int, spacing: str) -> tuple[Float64, Float64]:
        last = schedule.timesteps - 1
        first, target = np.log(schedule.alpha_bar([0, last]))
        power = 2 if spacing == "quadratic" else 1  # what runs evenly: η, or its root as in √β_0·(1 + i·x)

        def log_levels(fall: Float64) -> Float64:
            """log γ̄ where the last variance is 1 − exp(−fall): a float64 variance could not come near enough to 1."""
            smallest, largest = ((-np.expm1(log)) ** (1 / power) for log in (first, -fall))
            variances = np.linspace(smallest, largest, steps) ** power
            return np.cumsum(np.append(np.log1p(-variances[:-1]), -fall))

        # There is such a fall: β never decreases, so S ≤ T variances of β_0 multiply to ᾱ_T or more, and a last one of
        # 1 − ᾱ_T alone to ᾱ_T or less.
        fall = bisect(lambda fall: np.asarray(log_levels(fall)[-1]), -first, -target, target)
        levels = np.exp(log_levels(fall))
        levels[-1] = np.exp(target)  # what is left is rounding, and the noisiest level belongs to T − 1
        times = np.append(timestep(schedule, levels[:-1]), last)
        return times[::-1].copy(), levels[::-1].copy()
