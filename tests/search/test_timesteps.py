"""Tuned timesteps: gradients against differences, optima that are known in closed form, and nothing changed but the times."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from edge_sd.diffusion import SCHEDULES, NoiseSchedule, Plan, compile_plan, execute
from edge_sd.diffusion.plan import Tuned
from edge_sd.errors import EdgeSDError, UsageError
from edge_sd.models.unet import SpectralUNet
from edge_sd.search.timesteps import State, Tuner, TuneSettings, advanced, tune_timesteps

SHAPE = (2, 4, 4)
WEIGHTS = "a" * 64
SCHEDULE = NoiseSchedule()


class Linear:
    """A network whose prediction is k·x + (t/T)·v."""

    k = 0.4

    def __init__(self) -> None:
        self.v = torch.from_numpy(np.random.default_rng(3).standard_normal(SHAPE))

    def temporal(self, t: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
        return t[:, None] / 1000

    def denoise(self, x: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        return self.k * x + features[:, :, None, None] * self.v

    def numpy(self, x: np.ndarray, t: float) -> np.ndarray:
        return self.k * x + t / 1000 * self.v.numpy()


def clean(count: int = 6) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(4).standard_normal((count, *SHAPE)))


def levels(t: float) -> tuple[float, float]:
    abar = float(SCHEDULE.alpha_bar(t))
    return np.sqrt(abar), np.sqrt(1 - abar)


def tuned(plan: Plan, network: Any = None, **settings: Any) -> Any:
    values = {"count": 6, "batch_size": 6, "iterations": 400, "learning_rate": 0.01, "substeps": 5, **settings}
    return Tuner(network or Linear(), plan, TuneSettings(**values), SHAPE, clean()).tune(WEIGHTS)


# What it should find


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_the_trajectory_s_optimum_in_closed_form(prediction: Any) -> None:
    """Mode parallel: x after the step is A·x + B·τ·v, and x* a loop of DDIM in NumPy; τ by least squares."""
    plan = compile_plan(SCHEDULE, 4, solver="ddim", prediction=prediction)
    result = tuned(plan, mode="parallel", loss="trajectory")
    network, v = Linear(), Linear().v.numpy()
    noise = Tuner(network, plan, TuneSettings(count=6), SHAPE, clean()).noise.numpy()
    for row, t in enumerate(plan.timestep):
        alpha, sigma = levels(t)
        x = start = alpha * clean().numpy() + sigma * noise
        ends = np.linspace(t, plan.timestep[row + 1], 6) if row < 3 else np.append(np.linspace(t, 0, 5), np.nan)
        for here, there in pairwise(ends):
            a, s = levels(here)
            e = network.numpy(x, here)
            x0, epsilon = ((x - s * e) / a, e) if prediction == "epsilon" else (a * x - s * e, s * x + a * e)
            a, s = (1.0, 0.0) if np.isnan(there) else levels(there)
            x = a * x0 + s * epsilon

        def step(tau: float, row: int = row, start: np.ndarray = start) -> np.ndarray:
            e = network.numpy(start, tau)
            m = float(plan.p[row]) * start + float(plan.q[row]) * e
            return float(plan.a_next[row]) * start + float(plan.b_next[row, 0]) * m

        moves = np.broadcast_to(step(1.0) - step(0.0), x.shape)
        best = float(np.vdot(moves, x - step(0.0)) / np.vdot(moves, moves))
        assert result.plan.timestep[row] == pytest.approx(np.clip(best, 0, 999), abs=0.05)
        assert result.before[row] >= result.after[row]
    assert np.abs(v).max() > 0


def test_the_paper_s_optimum_in_closed_form() -> None:
    """Mode parallel, alignment: ε at the next point is linear in τ too. The last row keeps its time."""
    plan = compile_plan(SCHEDULE, 4, solver="ddim")
    result = tuned(plan, mode="parallel", loss="alignment")
    network = Linear()
    noise = Tuner(network, plan, TuneSettings(count=6), SHAPE, clean()).noise.numpy()
    for row in range(3):
        alpha, sigma = levels(plan.timestep[row])
        x = alpha * clean().numpy() + sigma * noise

        def after(tau: float, x: np.ndarray = x, row: int = row) -> np.ndarray:
            x = float(plan.a_next[row]) * x + float(plan.b_next[row, 0]) * network.numpy(x, tau)
            return network.numpy(x, plan.timestep[row + 1])

        moves = np.broadcast_to(after(1.0) - after(0.0), x.shape)
        best = float(np.vdot(moves, network.numpy(x, plan.timestep[row]) - after(0.0)) / np.vdot(moves, moves))
        assert result.plan.timestep[row] == pytest.approx(np.clip(best, 0, 999), abs=0.05)
    assert (result.ratios[3], result.plan.timestep[3]) == (1, plan.timestep[3])
    assert np.isnan([result.before[3], result.after[3]]).all()


@pytest.mark.parametrize("solver", ["ddim", "dpmpp", "unipc", "unipc-3"])
@pytest.mark.parametrize("loss", ["alignment", "trajectory"])
def test_every_row_s_loss_falls_for_any_solver(solver: str, loss: Any) -> None:
    plan = compile_plan(SCHEDULE, 5, solver=solver)
    for mode in ("parallel", "sequential"):
        result = tuned(plan, mode=mode, loss=loss, iterations=150)
        rows = ~np.isnan(result.before)
        assert (result.after[rows] <= result.before[rows] * (1 + 1e-9)).all()
        assert (result.after[rows] < 0.9 * result.before[rows]).any()


@pytest.mark.parametrize(("sign", "end"), [(1, 0), (-1, 999)])
def test_a_time_that_wants_to_leave_the_schedule_stays_at_its_end(sign: int, end: float) -> None:
    network = Linear()
    network.v = network.v * sign * 1e-3  # so weak that no time inside is enough
    plan = compile_plan(SCHEDULE, 3, solver="ddim")
    result = tuned(plan, network=network, mode="parallel", iterations=100, learning_rate=0.1)
    assert (result.plan.timestep >= 0).all()
    assert (result.plan.timestep <= 999).all()
    assert result.plan.timestep[1] == end


# Gradients, states and coefficients


@pytest.mark.parametrize("loss", ["alignment", "trajectory"])
@pytest.mark.parametrize(("solver", "row"), [("ddim", 0), ("dpmpp", 2), ("unipc", 1)])
def test_the_gradient_is_the_difference_quotient(
    loss: Any, solver: str, row: int, make_model: Callable[..., SpectralUNet]
) -> None:
    """Through features and denoiser, and for the alignment through the next prediction as well; in float64."""
    model = make_model(1, image_size=8).double().requires_grad_(False)
    plan = compile_plan(SCHEDULES["cosine"], 4, solver=solver, prediction="v")
    samples = torch.from_numpy(np.random.default_rng(5).standard_normal((2, 3, 8, 8)))
    settings = TuneSettings(mode="parallel", loss=loss, count=2, substeps=2)
    tuner = Tuner(model, plan, settings, (3, 8, 8), samples)
    state = tuner.forced(row)
    target = tuner.target(row, state)
    ratio = torch.tensor(0.97, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(tuner.loss(row, state, target, ratio), [ratio])
    h = 1e-6
    high, low = (float(tuner.loss(row, state, target, torch.tensor(0.97 + d, dtype=torch.float64))) for d in (h, -h))
    assert abs(float(gradient)) > 1e-6
    assert float(gradient) == pytest.approx((high - low) / (2 * h), rel=1e-4)


@pytest.mark.parametrize("solver", ["ddim", "dpmpp", "unipc", "unipc-3"])
def test_rows_go_on_as_the_loop_does(solver: str) -> None:
    plan = compile_plan(SCHEDULE, 6, solver=solver, analytic_first_step=True)
    network = Linear()
    tuner = Tuner(network, plan, TuneSettings(count=3), SHAPE)
    seen: list[np.ndarray] = []
    noise = tuner.noise.double()
    last = execute(
        plan,
        lambda x, row: network.denoise(x, network.temporal(torch.full((3,), float(plan.timestep[row]), dtype=x.dtype))),
        noise,
        pytest.fail,
        lambda row, x, e: seen.append(x.numpy()),
    )
    tuner.noise = noise
    state = tuner.first()
    for row in range(6):
        np.testing.assert_allclose(state.x.numpy(), seen[row], atol=1e-12)
        state = advanced(plan, row, state, tuner.predict(state.x, float(plan.timestep[row])))
    np.testing.assert_allclose(state.x.numpy(), last.numpy(), atol=1e-12)


@pytest.mark.parametrize("solver", ["ddim", "unipc"])
def test_nothing_but_the_times_changes(solver: str) -> None:
    plan = compile_plan(SCHEDULE, 4, solver=solver, analytic_first_step=True).with_features(np.ones((4, 3), np.float32))
    result = tuned(plan, iterations=5)
    for name, column in plan.columns.items():
        if name not in ("timestep", "features"):
            np.testing.assert_array_equal(result.plan.columns[name], column)
    assert "features" not in result.plan.columns
    np.testing.assert_allclose(result.plan.timestep, result.ratios * plan.timestep)
    assert result.plan.header.tuned == Tuned(
        mode="sequential", loss="trajectory", weights=WEIGHTS, times=tuple(plan.timestep.tolist())
    )
    np.testing.assert_array_equal(result.plan.levels_at, plan.timestep)
    again = tuned(result.plan, iterations=5)
    np.testing.assert_array_equal(again.plan.timestep, result.plan.timestep)  # from where the coefficients are, not from there


def test_the_same_seed_tunes_the_same_times() -> None:
    plan = compile_plan(SCHEDULE, 3, solver="ddim")
    one, two, other = (tuned(plan, iterations=20, batch_size=2, seed=seed).plan.timestep for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, two)
    assert not np.array_equal(one, other)


def test_a_model_is_left_as_it_was_and_told_its_classes(make_model: Callable[..., SpectralUNet]) -> None:
    model = make_model(2, image_size=8, num_classes=3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    plan = compile_plan(SCHEDULES["cosine"], 3, solver="ddim", prediction="v")
    settings = TuneSettings(count=4, batch_size=2, iterations=2, substeps=2)
    seen: list[tuple[int, int]] = []
    result = tune_timesteps(model, plan, settings, WEIGHTS, observe=lambda done, total, note: seen.append((done, total)))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert seen[-1] == (6, 6)
    assert not np.array_equal(result.plan.timestep, plan.timestep)
    samples = np.zeros((4, 3, 8, 8), np.float32)
    with pytest.raises(UsageError, match="3 classes, and nothing says those of the samples"):
        tune_timesteps(model, plan, settings, WEIGHTS, clean=samples)
    tune_timesteps(model, plan, settings, WEIGHTS, clean=samples, labels=np.array([0, 1, 2, 0]))


# What cannot be meant


def test_a_plan_that_adds_noise_and_samples_that_are_missing() -> None:
    with pytest.raises(UsageError, match="ddpm adds noise"):
        tuned(compile_plan(SCHEDULE, 3, solver="ddpm"))
    with pytest.raises(UsageError, match="noises clean samples, and there are none"):
        Tuner(Linear(), compile_plan(SCHEDULE, 3), TuneSettings(mode="parallel"), SHAPE)


def test_a_model_that_is_lost_is_said_to_be() -> None:
    network = Linear()
    network.k = float("inf")
    with pytest.raises(EdgeSDError, match="row 0 leads to values that are not finite"):
        tuned(compile_plan(SCHEDULE, 3, solver="ddim"), network=network)


@pytest.mark.parametrize(
    "values",
    [
        {"mode": "random"}, {"loss": "kid"}, {"iterations": 0}, {"learning_rate": 0}, {"learning_rate": float("nan")},
        {"count": 0}, {"batch_size": 0}, {"substeps": 1}, {"seed": -1}, {"colour": 1},
    ],
)  # fmt: skip
def test_settings_that_cannot_be(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(values))):
        TuneSettings(**values)


def test_a_state_of_some_samples() -> None:
    x = torch.arange(4.0)
    some = State(x, x + 1, [x + 2]).of(torch.tensor([3, 1]))
    assert (some.x.tolist(), some.base.tolist(), some.memory[0].tolist()) == ([3, 1], [4, 2], [5, 3])
