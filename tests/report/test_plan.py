"""What is shown of a plan: its numbers as they are, its levels by the schedule, its picture drawn."""

import io

import numpy as np
import pytest
from PIL import Image

from edge_sd.diffusion import SCHEDULES, compile_plan, solvers
from edge_sd.diffusion.plan import Tuned
from edge_sd.report.plan import plan_figure, plan_rows

COSINE = SCHEDULES["cosine"]


@pytest.mark.parametrize("solver", sorted(solvers()))
def test_rows_are_the_table_s(solver: str) -> None:
    plan = compile_plan(COSINE, 5, solver=solver, prediction="v").with_programs([0, 3])
    for index, row in enumerate(plan_rows(plan)):
        for name in ("timestep", "p", "q", "u", "a", "a_next", "c", "guidance"):
            assert getattr(row, name) == plan.columns[name][index]
        assert (list(row.b), list(row.b_next)) == (plan.b[index].tolist(), plan.b_next[index].tolist())
        assert row.program == ("denoiser" if index < 3 else "denoiser.1")
        abar = float(COSINE.alpha_bar(plan.timestep[index]))
        assert row.alpha_bar == pytest.approx(abar, rel=1e-12)
        assert row.log_snr == pytest.approx(np.log(np.sqrt(abar) / np.sqrt(1 - abar)), rel=1e-9)


def test_levels_of_tuned_rows_are_those_of_the_coefficients() -> None:
    plan = compile_plan(COSINE, 3, solver="ddim", prediction="v")
    tuned = Tuned(mode="parallel", weights="e" * 64, times=tuple(plan.timestep.tolist()))
    rows = plan_rows(plan.with_timesteps(plan.timestep * 0.9, tuned))
    assert [row.alpha_bar for row in rows] == pytest.approx(COSINE.alpha_bar(plan.timestep).tolist())
    assert [row.timestep for row in rows] == (plan.timestep * 0.9).tolist()
    assert [row.level_at for row in rows] == plan.timestep.tolist()


@pytest.mark.parametrize("tuned", [False, True])
@pytest.mark.parametrize(("solver", "steps"), [("ddim", 1), ("ddpm", 4), ("unipc-3", 7)])
def test_a_picture_of_three_panels(solver: str, steps: int, tuned: bool) -> None:
    plan = compile_plan(COSINE, steps, solver=solver, prediction="v")
    if tuned:
        about = Tuned(mode="parallel", weights="e" * 64, times=tuple(plan.timestep.tolist()))
        plan = plan.with_timesteps(plan.timestep * 0.9, about)
    with Image.open(io.BytesIO(plan_figure(plan))) as image:
        assert image.format == "PNG"
        assert image.width > 3 * image.height
