"""The unified solver against diffusers, our own solvers, a loop that keeps everything, and exact solutions."""

import json
import math
from collections.abc import Callable
from typing import Any

import diffusers
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from edge_sd.diffusion import NoiseSchedule, Plan, compile_plan, execute
from edge_sd.diffusion.unified import KNOWN, Decision, SolverSchedule, compile_schedule, known_schedule
from edge_sd.errors import EdgeSDError, UsageError
from edge_sd.files import parse_model
from schedulers import PREDICTION, SCHEDULE, SHAPE, model, their_trajectory

STEPS = (5, 10, 20, 50)
MULTISTEP, UNIPC = diffusers.DPMSolverMultistepScheduler, diffusers.UniPCMultistepScheduler


def run(plan: Plan, program: Callable[[np.ndarray, float], np.ndarray] = model, dtype: Any = np.float64) -> list[np.ndarray]:
    """Every x that the program was given, and the final one."""
    points: list[np.ndarray] = []
    start = np.random.default_rng(0).standard_normal(SHAPE).astype(dtype)
    final = execute(
        plan,
        lambda x, row: program(x, float(plan.timestep[row])).astype(dtype),
        start,
        lambda row: pytest.fail("a deterministic plan asked for noise"),
        lambda row, x, e: points.append(x),
    )
    return [*points, final]


def distance(ours: list[np.ndarray], theirs: list[np.ndarray]) -> float:
    """The largest along a trajectory, in units of what is there."""
    return max(float(np.abs(mine - other).max() / np.abs(other).max()) for mine, other in zip(ours, theirs, strict=True))


def spaced(steps: int) -> np.ndarray:
    return np.linspace(999, 3, steps)


# Known solvers


def their_points(scheduler: Any, schedule: NoiseSchedule, steps: int) -> list[np.ndarray]:
    """Diffusers' whole trajectory, its end included."""
    last, points = their_trajectory(scheduler, schedule, steps)
    return [*points, last]


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize(("kind", "prediction"), list(zip(SCHEDULE, PREDICTION, strict=True)))
@pytest.mark.parametrize(
    ("name", "scheduler_class"),
    [("dpmpp-1m", MULTISTEP), ("dpmpp-2m", MULTISTEP), ("dpmpp-3m", MULTISTEP), ("unipc-2", UNIPC), ("unipc-3", UNIPC)],
)
def test_multistep_is_diffusers(steps: int, kind: Any, prediction: Any, name: str, scheduler_class: Any) -> None:
    schedule = NoiseSchedule(kind=kind)
    scheduler = scheduler_class(
        beta_schedule=SCHEDULE[kind], timestep_spacing="trailing", final_sigmas_type="zero",
        solver_order=int(name.split("-")[1][0]), prediction_type=PREDICTION[prediction],
    )  # fmt: skip
    theirs = their_points(scheduler, schedule, steps)
    plan = compile_schedule(known_schedule(name, schedule, prediction, scheduler.timesteps.numpy()))
    assert distance(run(plan), theirs) <= 1e-9


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize(("kind", "prediction"), list(zip(SCHEDULE, PREDICTION, strict=True)))
def test_ddim_is_diffusers(steps: int, kind: Any, prediction: Any) -> None:
    schedule = NoiseSchedule(kind=kind)
    scheduler = diffusers.DDIMScheduler(
        beta_schedule=SCHEDULE[kind], clip_sample=False, timestep_spacing="trailing", prediction_type=PREDICTION[prediction]
    )
    theirs = their_points(scheduler, schedule, steps)
    plan = compile_schedule(known_schedule("ddim", schedule, prediction, scheduler.timesteps.numpy()))
    assert distance(run(plan), theirs) <= 1e-10


@pytest.mark.parametrize("steps", [1, 2, 10, 300])
@pytest.mark.parametrize("kind", SCHEDULE)
@pytest.mark.parametrize("prediction", PREDICTION)
@pytest.mark.parametrize(("name", "solver"), [("ddim", "ddim"), ("dpmpp-2m", "dpmpp"), ("unipc-2", "unipc")])
def test_the_table_is_that_of_our_own_solver(steps: int, kind: Any, prediction: Any, name: str, solver: str) -> None:
    schedule = NoiseSchedule(kind=kind)
    theirs = compile_plan(schedule, steps, solver=solver, prediction=prediction)
    ours = compile_schedule(known_schedule(name, schedule, prediction, theirs.timestep))
    assert ours.columns.keys() == theirs.columns.keys()
    for column, values in theirs.columns.items():
        np.testing.assert_allclose(
            ours.columns[column], values, rtol=0, atol=1e-10 * max(1.0, np.abs(values).max()), err_msg=column
        )
    assert ours.header == theirs.header.model_copy(update={"solver": "unified", "spacing": "given"})


# Any schedule, against a loop that keeps every x and every prediction


def naive(given: SolverSchedule, program: Callable[[np.ndarray, float], np.ndarray] = model) -> list[np.ndarray]:
    """The definition: φ by quadrature, derivatives by elimination, ε and x0 of every point at hand."""
    abar = given.schedule.alpha_bar([d.timestep for d in given.decisions])
    alpha, sigma = [*np.sqrt(abar), 1.0], [*np.sqrt(1 - abar), 0.0]
    lam = [math.log(a / s) if s else math.inf for a, s in zip(alpha, sigma, strict=True)]
    nodes, shares = np.polynomial.legendre.leggauss(40)
    seen: dict[str, list[np.ndarray]] = {"epsilon": [], "x0": []}

    def expand(i: int, x: np.ndarray, points: list[int], order: int, relaxation: tuple[float, ...]) -> np.ndarray:
        kind = given.decisions[i].prediction
        if i + 1 == len(given.decisions):
            return seen["x0"][i] if kind == "x0" else (x - sigma[i] * seen["epsilon"][i]) / alpha[i]
        h, values = lam[i + 1] - lam[i], seen[kind]
        distances = np.array([lam[j] - lam[i] for j in points])
        taylor = np.array([[(d / h) ** k / math.factorial(k) for k in range(1, len(points) + 1)] for d in distances])
        derivatives = [values[i]]
        if points:
            scaled = np.linalg.solve(taylor, np.stack([values[j] - values[i] for j in points]).reshape(len(points), -1))
            derivatives += [row.reshape(SHAPE) for row in scaled]  # h^k y^(k)
        z, u = (h if kind == "epsilon" else -h), (nodes + 1) / 2
        total = np.zeros(SHAPE)
        for k in range(order):
            relaxed = 1 + relaxation[k - 1] * h if 0 < k <= len(relaxation) else 1
            total += relaxed * (shares @ (np.exp((1 - u) * z) * u**k)) / 2 / math.factorial(k) * derivatives[k]
        if kind == "epsilon":
            return alpha[i + 1] / alpha[i] * x - sigma[i + 1] * h * total
        return sigma[i + 1] / sigma[i] * x + alpha[i + 1] * h * total

    x = base = np.random.default_rng(0).standard_normal(SHAPE)
    points = []
    for i, d in enumerate(given.decisions):
        points.append(x)
        e = program(x, d.timestep)
        a, s = alpha[i], sigma[i]
        x0 = {"epsilon": (x - s * e) / a, "v": a * x - s * e, "x0": e}[given.prediction]
        seen["x0"].append(x0)
        seen["epsilon"].append((x - a * x0) / s)
        before = given.decisions[i - 1]
        if i and before.corrector == "pseudo":
            around = [i, *(i - 1 - back for back in before.looks_back)]
            base = expand(i - 1, base, around, before.order + 1, before.corrector_relaxation)
        else:
            base = x
        x = expand(i, base, [i - back for back in d.looks_back], d.order, d.relaxation)
    return [*points, x]


@st.composite
def schedules(draw: st.DrawFn, even: bool = True, mixed: bool = True, highest: int = 4) -> SolverSchedule:
    """Any that is valid: `even` keeps the points apart, so that rounding does not drown what is compared."""
    steps = draw(st.integers(1, 14))
    if even:
        jitter = np.array(draw(st.lists(st.floats(0, 0.4), min_size=steps, max_size=steps)))
        times = (999 * (steps - np.arange(steps) - jitter) / steps).tolist()
    else:
        times = sorted(draw(st.sets(st.integers(0, 99900), min_size=steps, max_size=steps)), reverse=True)
        times = [t / 100 for t in times]
    kinds = st.sampled_from(["epsilon", "x0"])
    one = draw(kinds)
    decisions = []
    for i, t in enumerate(times):
        last = i == steps - 1
        corrected = not last and draw(st.booleans())
        reach = min(i, 7 - corrected)
        order = 1 if last else draw(st.integers(1, min(highest, reach + 1)))
        points = None if (order == 1 and not corrected) or draw(st.booleans()) else sorted(
            draw(st.sets(st.integers(1, reach), min_size=order - 1, max_size=min(reach, 4))) if reach else set()
        )  # fmt: skip
        factors = st.lists(st.floats(-0.5, 0.5), max_size=order - 1)
        decisions.append(
            Decision(
                timestep=t, prediction=draw(kinds) if mixed else one, order=order, points=points and tuple(points),
                relaxation=tuple(draw(factors)), corrector="pseudo" if corrected else "none",
                corrector_relaxation=tuple(draw(factors)) if corrected else (),
            )
        )  # fmt: skip
    schedule = NoiseSchedule(kind=draw(st.sampled_from(["linear", "scaled_linear"])))
    return SolverSchedule(schedule=schedule, prediction=draw(st.sampled_from(list(PREDICTION))), decisions=tuple(decisions))


@given(schedules(even=False, mixed=False))
@settings(max_examples=60, deadline=None)
def test_any_valid_schedule_compiles_to_a_plan_and_comes_back_from_json(given: SolverSchedule) -> None:
    plan = compile_schedule(given)  # finite, or it would not be a Plan
    np.testing.assert_array_equal(plan.timestep, [d.timestep for d in given.decisions])
    assert plan.header.history <= 8
    assert not plan.stochastic
    again = parse_model(SolverSchedule, given.model_dump_json(), "a file")
    assert again == given
    for name, column in compile_schedule(again).columns.items():
        np.testing.assert_array_equal(column, plan.columns[name])


@given(schedules())
@settings(max_examples=60, deadline=None)
def test_a_plan_is_what_the_decisions_say(given: SolverSchedule) -> None:
    """Prediction types that change at every step too; only what a history of 8 cannot hold is refused."""
    try:
        plan = compile_schedule(given)
    except UsageError as error:
        refusal = error.message
    else:
        assert distance(run(plan), naive(given)) <= 1e-9
        return
    assert len({d.prediction for d in given.decisions}) == 2
    assert len(given.decisions) > 4
    assert "a point where the other was remembered" in refusal


@pytest.mark.parametrize("prediction", PREDICTION)
@pytest.mark.parametrize("kinds", [("epsilon", "x0"), ("x0", "epsilon")])
def test_order_2_may_change_type_at_every_step(kinds: tuple[Any, Any], prediction: Any) -> None:
    times = spaced(30).tolist()
    decisions = [Decision(timestep=t, prediction=kinds[i % 2], order=2 if 0 < i < 29 else 1) for i, t in enumerate(times)]
    given = SolverSchedule(schedule=NoiseSchedule(), prediction=prediction, decisions=tuple(decisions))
    plan = compile_schedule(given)
    assert plan.header.history == 2
    assert distance(run(plan), naive(given)) <= 1e-10


@pytest.mark.parametrize("kinds", [("epsilon", "x0"), ("x0", "epsilon")])
def test_one_change_of_type_at_order_3_with_correctors_costs_no_digits_in_float32(kinds: tuple[Any, Any]) -> None:
    times = spaced(16).tolist()
    decisions = [
        Decision(timestep=t, prediction=kinds[i // 8], order=min(3, i + 1, 16 - i), corrector="none" if i > 14 else "pseudo")
        for i, t in enumerate(times)
    ]
    given = SolverSchedule(schedule=NoiseSchedule(), prediction="epsilon", decisions=tuple(decisions))
    plan = compile_schedule(given)
    exact = naive(given)
    assert distance(run(plan), exact) <= 1e-10
    assert distance(run(plan, dtype=np.float32), exact) <= 2e-5


# Orders, on a model whose ODE has a solution


def gaussian_error(kind: Any, order: int, corrected: bool, steps: int) -> float:
    """Of the last x before the clean image, for data of standard deviation 0.7 around 0.3: each λ grows by h, from −2 to 2."""
    schedule, mean, std = NoiseSchedule(), 0.3, 0.7
    ts = np.arange(schedule.timesteps)
    log_abar = np.log(schedule.alpha_bar(ts))
    h = 4 / steps
    # Starts of lower order are steps so short that their own error does not show.
    lam = np.concatenate([-2 + h**2 * np.arange(order - 1) / 4, np.linspace(-2 + h**2 * (order - 1) / 4, 2, steps + 1)])
    times = np.interp(np.log1p(np.exp(-2 * lam)), -log_abar, ts)  # −log ᾱ = log(1 + e^(−2λ))
    decisions = [
        Decision(timestep=t, prediction=kind, order=min(order, i + 1), corrector="pseudo" if corrected else "none")
        for i, t in enumerate(times[:-1])
    ]
    decisions.append(Decision(timestep=times[-1], prediction=kind))
    plan = compile_schedule(SolverSchedule(schedule=schedule, prediction="epsilon", decisions=tuple(decisions)))

    def level(t: float) -> tuple[float, float, float]:
        abar = float(schedule.alpha_bar(t))
        return math.sqrt(abar), math.sqrt(1 - abar), math.sqrt(abar * std**2 + 1 - abar)

    def perfect(x: np.ndarray, t: float) -> np.ndarray:
        alpha, sigma, spread = level(t)
        return sigma * (x - alpha * mean) / spread**2

    points = run(plan, perfect)
    (alpha, _, spread), (alpha_last, _, spread_last) = level(times[0]), level(times[-1])
    exact = alpha_last * mean + spread_last / spread * (points[0] - alpha * mean)
    return float(np.abs(points[-2] - exact).max())


@pytest.mark.parametrize("kind", ["epsilon", "x0"])
@pytest.mark.parametrize(
    ("order", "corrected", "rate"), [(1, False, 1), (2, False, 2), (3, False, 3), (1, True, 2), (2, True, 3)]
)
def test_the_error_falls_as_the_order_says(kind: Any, order: int, corrected: bool, rate: int) -> None:
    coarse, fine = (gaussian_error(kind, order, corrected, steps) for steps in (128, 256))
    assert abs(math.log2(coarse / fine) - rate) <= 0.3


# What cannot be meant

GOOD: dict[str, Any] = {"timestep": 500.0, "prediction": "x0"}


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"order": 5}, "order"),
        ({"order": 0}, "order"),
        ({"timestep": float("nan")}, "timestep"),
        ({"timestep": -1.0}, "timestep"),
        ({"prediction": "v"}, "prediction"),
        ({"corrector": "implicit"}, "corrector"),
        ({"order": 3, "points": (1, 1)}, r"points \(1, 1\) are not different"),
        ({"order": 3, "points": (2, 1)}, "ascending"),
        ({"order": 2, "points": (0,)}, "from 1"),
        ({"order": 3, "points": (1,)}, "order 3 needs 2 earlier points, not 1"),
        ({"order": 2, "points": (8,)}, "further back than 7"),
        ({"order": 2, "points": (7,), "corrector": "pseudo"}, "further back than 6"),
        ({"order": 1, "points": (1,)}, "no derivative"),
        ({"order": 2, "relaxation": (0.1, 0.1)}, "2 relaxations, but order 2 has 1"),
        ({"order": 2, "relaxation": (float("inf"),)}, "not finite"),
        ({"corrector_relaxation": (0.1,)}, "1 relaxations of a corrector with 0 derivatives"),
        ({"colour": 1}, "colour"),
    ],
)
def test_a_decision_that_cannot_be(values: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        Decision(**{**GOOD, **values})


def schedule_text(*decisions: dict[str, Any], **header: Any) -> str:
    values = {
        "schedule": {"timesteps": 1000},
        "prediction": "epsilon",
        "decisions": [{"prediction": "x0", **d} for d in decisions],
    }
    return json.dumps({**values, **header})


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (schedule_text(), "decisions: .* at least 1 item"),
        (schedule_text({"timestep": 10}, {"timestep": 1000}), r"step 1 \(timestep 1000\) leaves the schedule's range 0–999"),
        (schedule_text({"timestep": 10}, {"timestep": 10}), r"step 1 \(timestep 10\) does not lie below step 0's, 10"),
        (schedule_text({"timestep": 10}, {"timestep": 20}), "step 1 .*does not lie below step 0's, 10"),
        (schedule_text({"timestep": 10 + 1e-9}, {"timestep": 10}), "steps 0 and 1 lie .* apart in λ: too close"),
        (
            schedule_text({"timestep": 2}, {"timestep": 1}, {"timestep": 0}, schedule={"timesteps": 2}),
            "3 steps, but the schedule has 2",
        ),
        (
            schedule_text({"timestep": 10, "order": 2}, {"timestep": 1}),
            "step 0 .*order 2, looks 1 steps back, and 0 lie behind it",
        ),
        (schedule_text({"timestep": 10}, {"timestep": 1, "order": 2}), "step 1 .*the last, has order 2"),
        (schedule_text({"timestep": 10}, {"timestep": 1, "corrector": "pseudo"}), "step 1 .*the last, has a corrector"),
        (schedule_text({"timestep": 10}, {"timestep": 1, "order": 9}), "decisions.1.order"),
        (schedule_text({"timestep": 10}, prediction="score"), "prediction"),
        (schedule_text({"timestep": 10}, kind="plan"), "kind"),
        ("{", "JSON"),
    ],
)
def test_a_file_that_cannot_be(text: str, complaint: str) -> None:
    with pytest.raises(EdgeSDError, match=complaint):
        parse_model(SolverSchedule, text, "search.json")


def test_times_that_a_known_schedule_cannot_have() -> None:
    with pytest.raises(UsageError, match=r"no known schedule 'heun'.*unipc-3"):
        known_schedule("heun", NoiseSchedule(), "epsilon", [10.0])
    for name in KNOWN:
        for times, complaint in [
            ([10, 20], "below"),
            ([2000, 1], "range"),
            ([-1], "timestep"),
            ([], "decisions"),
            ([[5, 1]], "timestep"),
        ]:
            with pytest.raises(UsageError, match=complaint):
                known_schedule(name, NoiseSchedule(), "epsilon", times)
        with pytest.raises(UsageError, match="prediction"):
            known_schedule(name, NoiseSchedule(), "score", [10.0])  # type: ignore[arg-type]
        with pytest.raises(UsageError, match="6 steps, but the schedule has 5"):
            known_schedule(name, NoiseSchedule(timesteps=5), "epsilon", np.linspace(4, 0, 6))


def test_a_program_that_returns_something_else() -> None:
    given = known_schedule("unipc-2", NoiseSchedule(), "v", spaced(5))
    assert compile_schedule(given, prediction="v").header.prediction == "v"
    with pytest.raises(UsageError, match="for programs that return v, and this one returns epsilon"):
        compile_schedule(given, prediction="epsilon")


def test_a_change_of_type_that_a_history_of_8_does_not_hold() -> None:
    kinds: list[Any] = ["epsilon", "x0"]
    decisions = [Decision(timestep=t, prediction=kinds[i % 2], order=min(3, i + 1)) for i, t in enumerate(spaced(10))]
    decisions += [Decision(timestep=1, prediction="x0")]
    given = SolverSchedule(schedule=NoiseSchedule(), prediction="epsilon", decisions=tuple(decisions))
    with pytest.raises(UsageError, match=r"step 8 .*a history of 9 rows would hold it, and a plan has 8"):
        compile_schedule(given)


def test_an_x_that_its_step_does_not_keep() -> None:
    """Step 1 is relaxed such that x at step 1 has no weight in x at step 2; step 3 would have to get it back from there."""

    def relaxed(c: float, last_order: int) -> SolverSchedule:
        kinds: list[Any] = ["epsilon", "epsilon", "x0", "epsilon", "epsilon"]
        orders = [1, 2, 2, last_order, 1]
        decisions = [
            Decision(timestep=t, prediction=kind, order=order, relaxation=(c,) if i == 1 else ())
            for i, (t, kind, order) in enumerate(zip(spaced(5), kinds, orders, strict=True))
        ]
        return SolverSchedule(schedule=NoiseSchedule(), prediction="epsilon", decisions=tuple(decisions))

    at_0, at_1 = (float(compile_schedule(relaxed(c, 3)).a_next[1]) for c in (0.0, 1.0))
    c = at_0 / (at_0 - at_1)
    assert compile_schedule(relaxed(c, 2)).a_next[1] == pytest.approx(0, abs=1e-12)
    with pytest.raises(UsageError, match=r"step 3 .*x at step 1 cannot be told from what came after it"):
        compile_schedule(relaxed(c, 3))


def test_a_relaxation_that_overflows() -> None:
    decisions = [Decision(timestep=t, prediction="epsilon") for t in (900, 500, 10)]
    decisions[1] = Decision(timestep=500, prediction="epsilon", order=2, relaxation=(1e308,))
    given = SolverSchedule(schedule=NoiseSchedule(), prediction="epsilon", decisions=tuple(decisions))
    with pytest.raises(UsageError, match=r"step 1 \(timestep 500\) has a weight that is not finite"):
        compile_schedule(given)
