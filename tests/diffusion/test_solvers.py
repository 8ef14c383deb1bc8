"""Each solver against diffusers' scheduler over whole trajectories, both driven by the same model, in float64."""

from collections.abc import Callable
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from edge_sd.diffusion import NoiseSchedule, compile_plan, execute, solvers
from edge_sd.diffusion.continuous import alpha_bar
from edge_sd.errors import EdgeSDError, UsageError
from schedulers import PREDICTION, SCHEDULE, SHAPE, model, their_trajectory

STEPS = (5, 10, 20, 50)


def our_trajectory(
    schedule: NoiseSchedule, steps: int, noise: Callable[[int], np.ndarray] | None = None, **choices: Any
) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
    plan = compile_plan(schedule, steps, **choices)
    points: list[np.ndarray] = []
    x = execute(
        plan,
        lambda x, row: model(x, float(plan.timestep[row])),
        np.random.default_rng(0).standard_normal(SHAPE),
        noise or (lambda row: pytest.fail("a deterministic plan asked for noise")),
        lambda row, x, e: points.append(x),
    )
    return x, points, plan.timestep


def assert_same(ours: tuple[np.ndarray, list[np.ndarray], np.ndarray], theirs: tuple[np.ndarray, list[np.ndarray]]) -> None:
    for mine, other in zip([*ours[1], ours[0]], [*theirs[1], theirs[0]], strict=True):
        assert np.abs(mine - other).max() <= 1e-10 * np.abs(other).max()


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("kind", SCHEDULE)
@pytest.mark.parametrize("prediction", PREDICTION)
def test_ddim_is_diffusers(steps: int, spacing: str, kind: Any, prediction: Any) -> None:
    schedule = NoiseSchedule(kind=kind)
    scheduler = diffusers.DDIMScheduler(
        beta_schedule=SCHEDULE[kind], clip_sample=False, timestep_spacing=spacing, prediction_type=PREDICTION[prediction]
    )
    theirs = their_trajectory(scheduler, schedule, steps)
    assert_same(our_trajectory(schedule, steps, solver="ddim", spacing=spacing, prediction=prediction), theirs)


@pytest.mark.parametrize("steps", STEPS)
def test_ddim_with_noise_is_diffusers(steps: int) -> None:
    schedule = NoiseSchedule()
    z = np.random.default_rng(1).standard_normal(SHAPE)
    scheduler = diffusers.DDIMScheduler(clip_sample=False, timestep_spacing="leading")
    scheduler.final_alpha_cumprod = torch.tensor(1.0, dtype=torch.float64)
    theirs = their_trajectory(scheduler, schedule, steps, eta=0.7, variance_noise=torch.from_numpy(z))
    assert_same(our_trajectory(schedule, steps, lambda row: z, solver="ddim", spacing="leading", eta=0.7), theirs)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("prediction", PREDICTION)
def test_ddpm_is_diffusers(steps: int, prediction: Any) -> None:
    schedule = NoiseSchedule(kind="scaled_linear", beta_start=0.0015, beta_end=0.0195)
    scheduler = diffusers.DDPMScheduler(
        beta_schedule="scaled_linear", beta_start=0.0015, beta_end=0.0195, clip_sample=False, timestep_spacing="leading",
        prediction_type=PREDICTION[prediction],
    )  # fmt: skip
    theirs = their_trajectory(scheduler, schedule, steps, generator=torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(3)

    def noise(row: int) -> np.ndarray:
        return torch.randn(SHAPE, generator=generator, dtype=torch.float64).numpy()

    assert_same(our_trajectory(schedule, steps, noise, solver="ddpm", spacing="leading", prediction=prediction), theirs)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("kind", SCHEDULE)
@pytest.mark.parametrize("prediction", PREDICTION)
@pytest.mark.parametrize(
    ("solver", "scheduler_class"),
    [("dpmpp", diffusers.DPMSolverMultistepScheduler), ("unipc", diffusers.UniPCMultistepScheduler)],
)
def test_multistep_is_diffusers(steps: int, spacing: str, kind: Any, prediction: Any, solver: str, scheduler_class: Any) -> None:
    schedule = NoiseSchedule(kind=kind)
    scheduler = scheduler_class(
        beta_schedule=SCHEDULE[kind], timestep_spacing=spacing, final_sigmas_type="zero", prediction_type=PREDICTION[prediction]
    )
    theirs = their_trajectory(scheduler, schedule, steps)
    ours = our_trajectory(schedule, steps, solver=solver, spacing=spacing, prediction=prediction)
    np.testing.assert_array_equal(ours[2], scheduler.timesteps.numpy())
    assert_same(ours, theirs)


@pytest.mark.parametrize("solver", sorted(solvers()))
@pytest.mark.parametrize("prediction", PREDICTION)
def test_a_perfect_model_is_followed_exactly(solver: str, prediction: Any) -> None:
    """Where the data is one image, the true prediction is known in closed form, and every solver must return that image.

    All but fastdpm-var visit whole timesteps here, where ᾱ is the schedule's product; its own lie on the continuous ᾱ.
    """
    schedule = NoiseSchedule()
    image = np.random.default_rng(4).uniform(-1, 1, SHAPE)
    plan = compile_plan(schedule, 7, solver=solver, prediction=prediction)

    def program(x: np.ndarray, row: int) -> np.ndarray:
        abar = alpha_bar(schedule, plan.timestep[row])
        alpha, sigma = np.sqrt(abar), np.sqrt(1 - abar)
        epsilon = (x - alpha * image) / sigma
        return {"epsilon": epsilon, "v": alpha * epsilon - sigma * image, "x0": image}[prediction]

    rng = np.random.default_rng(5)
    final = execute(plan, program, rng.standard_normal(SHAPE), lambda row: rng.standard_normal(SHAPE))
    np.testing.assert_allclose(final, image, atol=1e-9)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("solver", sorted(solvers()))
def test_numpy_and_torch_run_a_plan_to_the_same_bits(solver: str, dtype: Any) -> None:
    plan = compile_plan(NoiseSchedule(), 9, solver=solver)
    rng = np.random.default_rng(6)
    x, z = rng.standard_normal(SHAPE).astype(dtype), rng.standard_normal(SHAPE).astype(dtype)
    from_numpy = execute(plan, lambda x, row: x * dtype(0.5), x, lambda row: z)
    from_torch = execute(plan, lambda x, row: x * 0.5, torch.from_numpy(x), lambda row: torch.from_numpy(z))
    assert from_numpy.dtype == dtype
    np.testing.assert_array_equal(from_numpy, from_torch.numpy())


def test_unknown_solver_is_named_with_the_known_ones() -> None:
    known = "ddim, ddpm, dpmpp, dpmpp-3m, fastdpm-step, fastdpm-var, unipc, unipc-3"
    with pytest.raises(UsageError, match=f"unknown solver 'euler'.*{known}"):
        compile_plan(NoiseSchedule(), 10, solver="euler")


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_steps_out_of_range(steps: int) -> None:
    with pytest.raises(UsageError, match=f"{steps} steps"):
        compile_plan(NoiseSchedule(), steps)


def test_eta_where_there_is_none() -> None:
    with pytest.raises(EdgeSDError, match="takes no eta"):
        compile_plan(NoiseSchedule(), 10, solver="unipc", eta=0.5)
    with pytest.raises(UsageError, match=r"eta 2 is not in \[0, 1\]"):
        compile_plan(NoiseSchedule(), 10, solver="ddim", eta=2)


@pytest.mark.parametrize("times", [[10.0], [5.0, 10.0], [10.0, 10.0]])
def test_given_times_must_decrease(times: list[float]) -> None:
    with pytest.raises(UsageError, match="2 steps need as many decreasing timesteps"):
        compile_plan(NoiseSchedule(), 2, times=np.array(times))
