"""What a person sees of a plan: its rows in words of noise levels, and its picture."""

import numpy as np

from edge_sd.diffusion.plan import Plan
from edge_sd.report.page import png, subplots
from edge_sd.validation import Record

_CURVE, _ROWS, _TUNED = "#222222", "#d62728", "#1f77b4"


class PlanRow(Record):
    """One row; see `Plan` for the letters.

    Attributes:
        timestep: where the program is evaluated.
        level_at: the timestep that the coefficients are for: another one, where timesteps were tuned.
        alpha_bar, log_snr: ᾱ and λ = log(α/σ) there.
    """

    timestep: float
    level_at: float
    alpha_bar: float
    log_snr: float
    p: float
    q: float
    u: float
    a: float
    b: tuple[float, ...]
    a_next: float
    b_next: tuple[float, ...]
    c: float
    guidance: float
    program: str


def plan_rows(plan: Plan) -> list[PlanRow]:
    """A plan, row by row."""
    levels = plan.levels_at
    alpha_bar = plan.header.noise_schedule.alpha_bar(levels)
    log_snr = (np.log(alpha_bar) - np.log1p(-alpha_bar)) / 2
    return [
        PlanRow(
            **{name: float(plan.columns[name][row]) for name in ("timestep", "p", "q", "u", "a", "a_next", "c", "guidance")},
            **{name: tuple(plan.columns[name][row].tolist()) for name in ("b", "b_next")},
            level_at=float(levels[row]),
            alpha_bar=float(alpha_bar[row]),
            log_snr=float(log_snr[row]),
            program=plan.header.programs[int(plan.program[row])],
        )
        for row in range(len(plan))
    ]


def plan_figure(plan: Plan) -> bytes:
    """Draw timesteps on the schedule's ᾱ, coefficients row by row, and which program is called; PNG."""
    header, rows = plan.header, np.arange(len(plan))
    figure, (levels, coefficients, programs) = subplots(3)
    times = np.linspace(0, header.noise_schedule.timesteps - 1, 400)
    levels.plot(times, header.noise_schedule.alpha_bar(times), color=_CURVE, linewidth=1)
    at = plan.levels_at
    height = header.noise_schedule.alpha_bar(at)
    levels.plot(at, height, "o", color=_ROWS, markersize=4, label="noise level")
    if header.tuned:
        levels.plot(plan.timestep, height, "x", color=_TUNED, markersize=5, label="tuned timestep")
        levels.hlines(height, at, plan.timestep, color=_TUNED, linewidth=0.8)
    levels.invert_xaxis()
    levels.set(title=f"{header.solver}, {len(plan)} evaluations", xlabel="timestep", ylabel="ᾱ")
    levels.legend(frameon=False)
    coefficients.axhline(0, color=_CURVE, linewidth=0.6)
    drawn = {"u": plan.u, "a": plan.a, "a_next": plan.a_next, "c": plan.c}
    drawn |= {f"{name}[{j}]": plan.columns[name][:, j] for name in ("b", "b_next") for j in range(header.history)}
    for name, values in drawn.items():
        if values.any() and not (name == "u" and (values == 1).all()):  # what every row of most solvers has
            coefficients.plot(rows, values, marker=".", linewidth=1, label=name)
    coefficients.set(title=f"weights of base, of what is remembered, of noise; start {plan.start_scale:.4g}", xlabel="row")
    coefficients.title.set_fontsize("small")
    coefficients.legend(frameon=False, ncols=2, fontsize="small")
    programs.step(rows, plan.program, where="mid", color=_ROWS)
    programs.plot(rows, plan.program, "o", color=_ROWS, markersize=4)
    programs.set(title="program", xlabel="row", ylim=(-0.5, len(header.programs) - 0.5))
    programs.set_yticks(range(len(header.programs)), header.programs)
    return png(figure)
