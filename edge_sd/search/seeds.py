"""Where a search starts: every known solver, tuned at the budget by spacing, starting and ending time.

In two rounds: a solver of first order and one of higher order at every spacing; then the others at those that were best.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from edge_sd.diffusion._decisions import SolverSchedule
from edge_sd.diffusion.plan import Float64, Plan
from edge_sd.diffusion.solvers._base import Levels
from edge_sd.diffusion.spacing import timesteps
from edge_sd.diffusion.unified import KNOWN, compile_schedule, known_schedule
from edge_sd.errors import UsageError
from edge_sd.search.space import Space

ROUNDS = (("ddim", "unipc-2"), tuple(name for name in KNOWN if name not in ("ddim", "unipc-2", "dpmpp-1m")))  # 1M is DDIM
SPACINGS_LEFT = 10  # for the second round
_STARTS = (1.0, 0.97, 0.93)  # of T − 1
_ENDS = (0.2, 0.6, 1.2)  # of T/N, half of T at most: where the last evaluation is; trailing has it at 1
_RHO = 7.0  # 2206.00364, equation 5


@dataclass(frozen=True)
class Seed:
    """A known solver at known times.

    Attributes:
        solver: one of `KNOWN`.
        spacing: how its times are found, for a person: "trailing", "karras 0.97–0.02".
    """

    solver: str
    spacing: str
    schedule: SolverSchedule
    plan: Plan


def first_round(space: Space) -> list[Seed]:
    """Two solvers at every spacing; those that cannot be are left out."""
    return [seed for spacing, times in spacings(space) for seed in _seeds(space, ROUNDS[0], spacing, times)]


def second_round(space: Space, first: Sequence[Seed], values: Sequence[float]) -> list[Seed]:
    """The other solvers at the best spacings.

    Args:
        first: what `first_round` gave.
        values: of each of them; lower is better.
    """
    order = sorted(range(len(first)), key=lambda i: (values[i], i))
    best = list(dict.fromkeys(first[i].spacing for i in order))[:SPACINGS_LEFT]
    times = dict(spacings(space))
    return [seed for spacing in best for seed in _seeds(space, ROUNDS[1], spacing, times[spacing])]


def _seeds(space: Space, names: Sequence[str], spacing: str, times: Float64) -> Iterator[Seed]:
    for solver in names:
        try:
            schedule = known_schedule(solver, space.noise_schedule, space.prediction, times)
            yield Seed(solver, spacing, schedule, compile_schedule(schedule))
        except UsageError:  # two times too close for a derivative between them
            continue


def spacings(space: Space) -> Iterator[tuple[str, Float64]]:
    """(name, (N,) timesteps): three that are in use, and linear in t, in log-SNR and in z, and Karras', between several ends."""
    last, steps = space.noise_schedule.timesteps - 1, space.steps
    for name in ("trailing", "linspace", "quadratic"):
        try:
            yield name, timesteps(name, last + 1, steps, includes_end=False)
        except UsageError:
            continue
    ramp = np.linspace(0, 1, steps) if steps > 1 else np.zeros(1)
    grid = np.linspace(0, last, 4 * last + 1)
    log_snr = Levels.of(space.noise_schedule.alpha_bar(grid)).log_snr[:-1]
    for start in _STARTS:
        for end in (min(end / steps, 0.5) for end in _ENDS):
            first, final = start * last, end * last
            ends = np.interp([first, final], grid, log_snr)
            sigmas = np.exp(-ends) ** (1 / _RHO)
            ways = {
                "uniform": first + ramp * (final - first),
                "log-SNR": np.interp(-(ends[0] + ramp * (ends[1] - ends[0])), -log_snr, grid),
                "half log-SNR": space.times(space.z(first) + ramp * (space.z(final) - space.z(first))),
                "karras": np.interp(_RHO * np.log(sigmas[0] + ramp * (sigmas[1] - sigmas[0])), -log_snr, grid),
            }
            for name, times in ways.items():
                if steps == 1 or np.diff(times).max() < 0:
                    yield f"{name} {start:g}–{end:.2g}", times
