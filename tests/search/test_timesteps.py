"""Tuned timesteps: gradients against differences, optima that are known in closed form, and nothing changed but the times."""

from collections.abc import Callable
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


def tuned(plan: Plan, network: Any = None, ends: torch.Tensor | None = None, **settings: Any) -> Any:
    values = {"count": 6, "batch_size": 6, "iterations": 400, "learning_rate": 0.01, **settings}
    if ends is None and values.get("mode", "joint") == "joint":
        ends = clean()
    return Tuner(network or Linear(), plan, TuneSettings(**values), SHAPE, clean(), ends=ends).tune(WEIGHTS)


# What it should find


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
@pytest.mark.parametrize("solver", ["ddim", "unipc"])
def test_the_nearest_end_in_closed_form(solver: str, prediction: Any) -> None:
    """Mode joint: the end of the loop is linear in all r together; where they stay inside, least squares finds them."""
    plan = compile_plan(SCHEDULE, 3, solver=solver, prediction=prediction)
    network = Linear()
    noise = Tuner(network, plan, TuneSettings(count=6), SHAPE, clean()).noise.numpy()

    def end(ratios: np.ndarray) -> np.ndarray:
        return execute(plan, lambda x, row: network.numpy(x, ratios[row] * plan.timestep[row]), noise, pytest.fail)

    rng = np.random.default_rng(7)
    ends = end(np.array([0.93, 0.96, 0.9])) + 0.1 * rng.standard_normal(noise.shape)
    zero, units = end(np.zeros(3)), np.eye(3)
    moves = np.stack([(end(unit) - zero).ravel() for unit in units], axis=1)
    best, *_ = np.linalg.lstsq(moves, (ends - zero).ravel(), rcond=None)
    # v is one direction, so that only the sum of the rows' moves is told: what is nearest is compared, and not by which r.
    nearest = np.sqrt(np.mean((end(best) - ends) ** 2))
    result = tuned(plan, ends=torch.from_numpy(ends))
    assert result.before == pytest.approx(np.sqrt(np.mean((end(np.ones(3)) - ends) ** 2)))
    assert result.after == pytest.approx(nearest, rel=1e-4)
    assert result.after == pytest.approx(np.sqrt(np.mean((end(result.ratios) - ends) ** 2)))
    assert result.after < 0.98 * result.before


def test_the_paper_s_optimum_in_closed_form() -> None:
    """Mode parallel, alignment: ε at the next point is linear in τ too. The last row keeps its time."""
    plan = compile_plan(SCHEDULE, 4, solver="ddim")
    result = tuned(plan, mode="parallel")
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
    assert result.after < result.before


@pytest.mark.parametrize("solver", ["ddim", "dpmpp", "unipc", "unipc-3"])
@pytest.mark.parametrize("mode", ["joint", "sequential", "parallel"])
def test_the_loss_falls_for_any_solver(solver: str, mode: Any) -> None:
    result = tuned(compile_plan(SCHEDULE, 5, solver=solver), mode=mode, iterations=100)
    assert result.after < 0.98 * result.before


@pytest.mark.parametrize(("sign", "end"), [(1, 0), (-1, 999)])
def test_a_time_that_wants_to_leave_the_schedule_stays_at_its_end(sign: int, end: float) -> None:
    network = Linear()
    plan = compile_plan(SCHEDULE, 3, solver="ddim")
    ends = execute(
        plan,
        lambda x, row: network.numpy(x, sign * -5e3),
        Tuner(network, plan, TuneSettings(count=6), SHAPE, clean()).noise.numpy(),
        pytest.fail,
    )
    result = tuned(plan, network=network, ends=torch.from_numpy(ends), iterations=100, learning_rate=0.1)
    assert (result.plan.timestep >= 0).all()
    assert (result.plan.timestep <= 999).all()
    assert result.plan.timestep[1] == end


# Gradients, states and coefficients


H = 1e-6


@pytest.mark.parametrize(("solver", "row"), [("ddim", 0), ("dpmpp", 2), ("unipc", 1)])
def test_the_paper_s_gradient_is_the_difference_quotient(solver: str, row: int, make_model: Callable[..., SpectralUNet]) -> None:
    """Through features, denoiser, the plan's row and the next prediction; in float64."""
    model = make_model(1, image_size=8).double().requires_grad_(False)
    plan = compile_plan(SCHEDULES["cosine"], 4, solver=solver, prediction="v")
    samples = torch.from_numpy(np.random.default_rng(5).standard_normal((2, 3, 8, 8)))
    tuner = Tuner(model, plan, TuneSettings(mode="parallel", count=2), (3, 8, 8), samples)
    state = tuner.forced(row)
    target = tuner.epsilon(state.x, row, tuner.predict(state.x, float(plan.timestep[row])))
    ratio = torch.tensor(0.97, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(tuner.alignment(row, state, target, ratio), [ratio])
    high, low = (float(tuner.alignment(row, state, target, torch.tensor(0.97 + d, dtype=torch.float64))) for d in (H, -H))
    assert abs(float(gradient)) > 1e-6
    assert float(gradient) == pytest.approx((high - low) / (2 * H), rel=1e-4)


@pytest.mark.parametrize("solver", ["ddim", "unipc"])
def test_the_gradient_through_the_loop_is_the_difference_quotient(solver: str, make_model: Callable[..., SpectralUNet]) -> None:
    model = make_model(1, image_size=8).double().requires_grad_(False)
    plan = compile_plan(SCHEDULES["cosine"], 3, solver=solver, prediction="v")
    samples = torch.from_numpy(np.random.default_rng(5).standard_normal((2, 2, 3, 8, 8)))
    tuner = Tuner(model, plan, TuneSettings(count=2), (3, 8, 8), samples[0], ends=samples[1])
    point = torch.tensor([0.99, 0.95, 1.04], dtype=torch.float64)
    ratios = point.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(tuner.distance(ratios), [ratios])
    for row in range(3):
        move = torch.zeros(3, dtype=torch.float64)
        move[row] = H
        high, low = (float(tuner.distance(point + sign * move)) for sign in (1, -1))
        assert abs(float(gradient[row])) > 1e-7
        assert float(gradient[row]) == pytest.approx((high - low) / (2 * H), rel=1e-4)


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
    assert result.plan.header.tuned == Tuned(mode="joint", weights=WEIGHTS, times=tuple(plan.timestep.tolist()))
    np.testing.assert_array_equal(result.plan.levels_at, plan.timestep)
    again = tuned(result.plan, iterations=5)
    np.testing.assert_array_equal(again.plan.timestep, result.plan.timestep)  # from where the coefficients are, not from there


def test_the_same_seed_tunes_the_same_times() -> None:
    plan = compile_plan(SCHEDULE, 3, solver="ddim")
    one, two, other = (tuned(plan, iterations=20, batch_size=2, seed=seed).plan.timestep for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, two)
    assert not np.array_equal(one, other)


@pytest.mark.parametrize("mode", ["joint", "sequential"])
def test_a_model_is_left_as_it_was_and_told_its_classes(mode: Any, make_model: Callable[..., SpectralUNet]) -> None:
    model = make_model(2, image_size=8, num_classes=3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    plan = compile_plan(SCHEDULES["cosine"], 3, solver="ddim", prediction="v")
    settings = TuneSettings(count=4, batch_size=2, iterations=3, fine=4, mode=mode)
    seen: list[tuple[int, int]] = []
    result = tune_timesteps(model, plan, settings, WEIGHTS, observe=lambda done, total, note: seen.append((done, total)))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert seen[-1] == ((3, 3) if mode == "joint" else (6, 6))
    assert result.after <= result.before or mode != "joint"
    if mode == "joint":
        return
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
    with pytest.raises(UsageError, match="needs the ends of fine trajectories"):
        Tuner(Linear(), compile_plan(SCHEDULE, 3), TuneSettings(), SHAPE).tune(WEIGHTS)


def test_a_model_that_is_lost_is_said_to_be() -> None:
    network = Linear()
    network.k = float("inf")
    with pytest.raises(EdgeSDError, match="ddim leads to values that are not finite"):
        tuned(compile_plan(SCHEDULE, 3, solver="ddim"), network=network)


@pytest.mark.parametrize(
    "values",
    [
        {"mode": "random"}, {"iterations": 0}, {"learning_rate": 0}, {"learning_rate": float("nan")},
        {"count": 0}, {"batch_size": 0}, {"fine": 1}, {"seed": -1}, {"colour": 1},
    ],
)  # fmt: skip
def test_settings_that_cannot_be(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(values))):
        TuneSettings(**values)


def test_a_state_of_some_samples() -> None:
    x = torch.arange(4.0)
    some = State(x, x + 1, [x + 2]).of(torch.tensor([3, 1]))
    assert (some.x.tolist(), some.base.tolist(), some.memory[0].tolist()) == ([3, 1], [4, 2], [5, 3])
