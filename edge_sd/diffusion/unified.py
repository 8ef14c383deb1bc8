"""The unified solver (USF, 2312.07243): every step is a set of decisions of its own, and all of them compile to a plan.

DDIM, DPM-Solver++ and UniPC are points of this space (`known_schedule`); a search over it finds others. A `SolverSchedule` is
JSON, checked as a whole when it is read; `compile_schedule` makes the table.

A step may expand ε, the next one x0. Then a later step wants of an older point what its row did not remember, and
x0 = (x − σε)/α asks for the x of that row, which the table does not keep. Two things make it exact all the same:

* A row remembers what the next step that looks back on it will expand, and its own step only otherwise. Its own step can
  always convert: `base` is x there. So order 2 may change type at every step.
* An older x is what led from it, undone. A row gives `base` and the next x from `base`, x and the history, linearly, so that x
  at older rows is linear in the present `base` and the history too. That reaches further back than the steps themselves, and a
  plan's history ends at 8: what would need more is refused. One change of type fits at any order up to 4 (with correctors up to
  3), a change at every step up to 2 (without).

One of USF's later options is left out, the analytic first step (ε = x_T at T, without an evaluation). It would scale x before the
first evaluation; a row only acts after its own. A row with p = 1 and q = 0 takes that step exactly, but saves no evaluation.
"""

import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from edge_sd.diffusion._decisions import HISTORY
from edge_sd.diffusion._decisions import Decision as Decision
from edge_sd.diffusion._decisions import SolverSchedule as SolverSchedule
from edge_sd.diffusion._taylor import Expansion, phi, step_weights
from edge_sd.diffusion.plan import Plan, PlanHeader, Prediction
from edge_sd.diffusion.schedule import NoiseSchedule
from edge_sd.diffusion.solvers._base import Levels, Row, to_epsilon, to_x0
from edge_sd.errors import UsageError
from edge_sd.validation import validated

KNOWN = ("ddim", "dpmpp-1m", "dpmpp-2m", "dpmpp-3m", "unipc-2", "unipc-3")

Form = dict[int, float]  # something linear in `base` (its weight under _BASE) and in the history (that of m_j under j)
_BASE, _X = -1, -2  # _X: x at the present row
_FAINTEST = 1e-6  # a smaller weight of `base` is not divided by: float32 would keep nothing of what comes out


def compile_schedule(given: SolverSchedule, *, prediction: Prediction | None = None) -> Plan:
    """Compile to a plan, in float64; its spacing is called "given".

    Args:
        prediction: what the program at hand returns; refused where the schedule was made for another.

    Raises:
        UsageError: it is for another prediction, changes between ε and x0 in a way that a history of 8 does not hold, or its
            relaxations overflow.
    """
    if prediction not in (None, given.prediction):
        raise UsageError(
            f"the solver schedule is for programs that return {given.prediction}, and this one returns {prediction}",
            "set its prediction and compile it again: the decisions do not depend on it",
        )
    decisions, levels = given.decisions, given.levels()
    kept = [_kept(decisions, i) for i in range(len(decisions))]
    rows: list[Row] = []
    xs: dict[int, Form] = {}  # x at earlier rows, by the present `base`
    arrival: Form = {_BASE: 1.0}  # x at the present row, by the `base` before it

    def wanted(i: int, kind: Expansion, x: Form | None) -> Form:
        """The prediction of row i as `kind`."""
        p, q = _conversion(kept[i], kind, levels, i)
        if p == 0:
            return {i: q}
        if x is None:
            raise _too_far(len(rows), f"x at step {i} cannot be told from what came after it")
        return _sum((p, x), (q, {i: 1.0}))

    for i, decision in enumerate(decisions):
        row = Row(*_conversion(given.prediction, kept[i], levels, i))
        corrected = bool(i) and decisions[i - 1].corrector == "pseudo"
        base = arrival
        if corrected:
            before = decisions[i - 1]
            points = [i - 1, i, *(i - 1 - back for back in before.looks_back)]
            keep, weights = step_weights(before.prediction, levels, i - 1, points, before.order + 1, before.corrector_relaxation)
            terms = [
                (w, wanted(j, before.prediction, {_X: 1.0} if j == i else xs.get(j)))
                for w, j in zip(weights, points, strict=True)
            ]
            acted = _sum((keep, {_BASE: 1.0}), *terms)
            row.u, row.a, row.b = acted.pop(_X, 0.0), acted.get(_BASE, 0.0), _history(acted, i)
            base = _sum((row.u, arrival), (1.0, acted))
        xs = _rebased({**xs, i: arrival}, base, i)
        if not corrected:
            xs[i] = {_BASE: 1.0}
        points = [i, *(i - back for back in decision.looks_back if decision.order > 1)]
        keep, weights = step_weights(decision.prediction, levels, i, points, decision.order, decision.relaxation)
        arrival = _sum(
            (keep, {_BASE: 1.0}), *((w, wanted(j, decision.prediction, xs.get(j))) for w, j in zip(weights, points, strict=True))
        )
        row.a_next, row.b_next = arrival.get(_BASE, 0.0), _history(arrival, i)
        if not all(map(math.isfinite, (row.u, row.a, row.a_next, *row.b, *row.b_next))):
            raise UsageError(f"step {i} (timestep {decision.timestep:g}) has a weight that is not finite", "smaller relaxations")
        rows.append(row)
    return _plan(given, rows)


def _kept(decisions: Sequence[Decision], i: int) -> Expansion:
    """What row i remembers: see the top of this file."""
    later = decisions[i + 1 : i + HISTORY]
    return next((d.prediction for back, d in enumerate(later, 1) if back in d.looks_back), decisions[i].prediction)


def _conversion(source: Prediction, kind: Expansion, levels: Levels, i: int) -> tuple[float, float]:
    """(p, q) that make a prediction at level i into `kind`."""
    return (to_x0 if kind == "x0" else to_epsilon)(source, float(levels.alpha[i]), float(levels.sigma[i]))


def _sum(*terms: tuple[float, Form]) -> Form:
    total: Form = {}
    for weight, form in terms:
        for key, value in form.items():
            total[key] = total.get(key, 0.0) + weight * value
    return total


def _rebased(xs: dict[int, Form], base: Form, i: int) -> dict[int, Form]:
    """Earlier x by the new `base`, which is given by the old one; {} where the old one does not come back out of it."""
    weight = base.get(_BASE, 0.0)
    if abs(weight) < _FAINTEST:
        return {}
    old = _sum((1 / weight, {_BASE: 1.0}), *((-value / weight, {key: 1.0}) for key, value in base.items() if key != _BASE))
    return {
        j: _sum((x.get(_BASE, 0.0), old), (1.0, {key: value for key, value in x.items() if key != _BASE}))
        for j, x in xs.items()
        if j > i - HISTORY
    }


def _history(form: Form, i: int) -> list[float]:
    """Weights of m, the newest first, at row i."""
    used = [key for key, value in form.items() if key >= 0 and value != 0]
    if not used:
        return []
    length = i - min(used) + 1
    if length > HISTORY:
        raise _too_far(i, f"a history of {length} rows would hold it, and a plan has {HISTORY}")
    return [form.get(i - back, 0.0) for back in range(length)]


def _too_far(i: int, why: str) -> UsageError:
    return UsageError(
        f"step {i} needs ε or x0 of a point where the other was remembered: {why}",
        "change the prediction type at fewer steps, or make the order 1 and the corrector none where it changes",
    )


def _plan(given: SolverSchedule, rows: Sequence[Row]) -> Plan:
    steps = len(rows)
    history = max(1, *(len(weights) for row in rows for weights in (row.b, row.b_next)))
    columns = {name: np.array([getattr(row, name) for row in rows]) for name in ("p", "q", "u", "a", "a_next", "c")}
    columns |= {
        name: np.array([[*getattr(row, name), *[0.0] * (history - len(getattr(row, name)))] for row in rows])
        for name in ("b", "b_next")
    }
    times = np.array([decision.timestep for decision in given.decisions])
    columns |= {"timestep": times, "guidance": np.ones(steps), "program": np.zeros(steps, dtype=np.int64)}
    header = PlanHeader(
        solver="unified",
        steps=steps,
        spacing="given",
        prediction=given.prediction,
        noise_schedule=given.schedule,
        history=history,
    )
    return Plan(header, columns)


# Solvers that are points of the space


def known_schedule(name: str, noise_schedule: NoiseSchedule, prediction: Prediction, times: ArrayLike) -> SolverSchedule:
    """A published solver as decisions.

    * "ddim" (2010.02502, η = 0): order 1 in ε.
    * "dpmpp-1m", "-2m", "-3m" (2211.01095, multistep): in x0. Order 2 is the "midpoint" of diffusers: the first derivative is
      relaxed by φ_1/2φ_2. Order 3 takes half of the second derivative, as diffusers does and the authors' code before it; so
      its error falls as h² and not h³.
    * "unipc-2", "-3" (2302.04867): in x0, with the corrector. B(h) is e^h − 1 ("bh2"); it matters only where the one weight is
      set to ½, in the predictor of order 2 and the corrector of order 1, and cancels elsewhere.

    Orders grow from 1 as there is more to look back on, and fall to 1 at the end: at once in DPM-Solver++ (over two steps in 3M
    of fewer than 15, as in diffusers), one a step in UniPC.

    Args:
        name: one of `KNOWN`.
        prediction: what the program returns.
        times: (N,) timesteps, decreasing.

    Raises:
        UsageError: no such solver, or times that cannot be.
    """
    if name not in KNOWN:
        raise UsageError(f"no known schedule {name!r}", f"one of {', '.join(KNOWN)}")
    kind: Expansion = "epsilon" if name == "ddim" else "x0"
    first_order = _with_decisions(
        noise_schedule, prediction, ({"timestep": t, "prediction": kind} for t in np.asarray(times, dtype=np.float64).tolist())
    )
    if name == "ddim":
        return first_order
    lam, steps = first_order.levels().log_snr, len(first_order.decisions)
    family, highest = name.split("-")[0], int(name.split("-")[1][0])
    decisions: list[dict[str, object]] = []
    for i, decision in enumerate(first_order.decisions):
        order = min(highest, i + 1, steps - i if family == "unipc" or steps < 15 else 3)
        values: dict[str, object] = {**decision.model_dump(), "order": order}
        if i == steps - 1:
            values["order"] = 1
        else:
            h = float(lam[i + 1] - lam[i])
            half = ((phi(1, -h) / (2 * phi(2, -h)) - 1) / h,)
            if order == 2:
                values["relaxation"] = half
            if order == 3 and family == "dpmpp":
                values["relaxation"] = (0.0, -0.5 / h)
            if family == "unipc":
                values |= {"corrector": "pseudo", "corrector_relaxation": half if order == 1 else ()}
        decisions.append(values)
    return _with_decisions(noise_schedule, prediction, decisions)


def _with_decisions(
    noise_schedule: NoiseSchedule, prediction: Prediction, decisions: Iterable[dict[str, object]]
) -> SolverSchedule:
    values = {"schedule": noise_schedule, "prediction": prediction, "decisions": tuple(decisions)}
    return validated(SolverSchedule, values, "a solver schedule")
