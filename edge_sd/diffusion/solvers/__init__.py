"""Solvers as pure functions schedule × steps → plan. A new one is a new file in this folder."""

import numpy as np

from edge_sd.diffusion.plan import Plan, Prediction
from edge_sd.diffusion.schedule import NoiseSchedule
from edge_sd.diffusion.solvers._base import Levels, Solver, analytic_start, tabulated
from edge_sd.diffusion.spacing import check_steps
from edge_sd.errors import UsageError, unknown
from edge_sd.registry import implementations


def solvers() -> dict[str, Solver]:
    """Every solver by name."""
    return implementations(__name__, Solver)


def compile_plan(
    schedule: NoiseSchedule,
    steps: int,
    *,
    solver: str = "dpmpp",
    prediction: Prediction = "epsilon",
    spacing: str | None = None,
    eta: float = 0.0,
    times: np.ndarray | None = None,
    analytic_first_step: bool = False,
) -> Plan:
    """Compile a solver to a plan.

    Args:
        schedule: the process the model was trained for.
        steps: the number of function evaluations, 1 … T.
        solver: a name of `solvers()`.
        prediction: what the program returns.
        spacing: a name of `SPACINGS`, or of the solver's own (FastDPM: linear, quadratic); None takes the solver's default.
        eta: share of fresh noise, 0 … 1, where the solver takes one.
        times: (steps,) timesteps to visit, decreasing, in place of a spacing's.
        analytic_first_step: place one point more, and skip the evaluation at the first: there is nothing but noise, so ε = x.
            What it saves is a rescaling of that noise, the plan's column `start`; a multistep solver begins behind it. Of `times`
            none is skipped: they begin after T − 1.

    Raises:
        UsageError: an unknown name, a number out of range, or a first step skipped where the plan adds noise.
    """
    known = solvers()
    if solver not in known:
        raise unknown("solver", solver, sorted(known))
    if not 0 <= eta <= 1:
        raise UsageError(f"eta {eta} is not in [0, 1]", "--eta 0 for none, --eta 1 for as much as DDPM")
    check_steps(steps, schedule.timesteps)
    chosen = known[solver]
    spacing = spacing or chosen.default_spacing
    if times is None:
        times, alpha_bar = chosen.visits(schedule, steps + analytic_first_step, spacing)
    else:
        spacing, times = "given", np.asarray(times, dtype=np.float64)
        if times.shape != (steps,) or (np.diff(times) >= 0).any():
            raise UsageError(
                f"{steps} steps need as many decreasing timesteps, not {times.tolist()}", "leave times out to take a spacing"
            )
        alpha_bar = schedule.alpha_bar([schedule.timesteps - 1, *times] if analytic_first_step else times)
    times, skipped, alpha_bar = times[-steps:], alpha_bar[:-steps], alpha_bar[-steps:]
    rows = chosen.rows(Levels.of(alpha_bar), prediction, eta)
    start = None
    if len(skipped):
        if any(row.c for row in rows):
            raise UsageError("the analytic first step adds no noise, and this plan's steps do", "leave it out, or --eta 0")
        start = analytic_start(skipped[0], alpha_bar[0])
    return tabulated(rows, times, schedule, prediction, solver=solver, spacing=spacing, start=start)
