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

One of USF's later options is `start`, the analytic first step: at T there is nothing but noise, so ε = x_T needs no evaluation,
and the step from there to the first decision's timestep rescales the noise. It leaves nothing behind to look back on.
"""

import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from edge_sd.diffusion._decisions import HISTORY
from edge_sd.diffusion._decisions import Decision as Decision
from edge_sd.diffusion._decisions import SolverSchedule as SolverSchedule
from edge_sd.diffusion._taylor import Expansion, phi, step_weights
from edge_sd.diffusion.plan import Plan, Prediction
from edge_sd.diffusion.schedule import NoiseSchedule
from edge_sd.diffusion.solvers._base import Levels, Row, analytic_start, tabulated, to_epsilon, to_x0
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
    start = None
    if given.start == "analytic":
        start = analytic_start(*given.schedule.alpha_bar([given.schedule.timesteps - 1, given.decisions[0].timestep]))
    rows = _rows(given.decisions, given.levels(), given.prediction)
    times = np.array([decision.timestep for decision in given.decisions])
    return tabulated(rows, times, given.schedule, given.prediction, solver="unified", spacing="given", start=start)


def _rows(decisions: Sequence[Decision], levels: Levels, prediction: Prediction) -> list[Row]:
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
        row = Row(*_conversion(prediction, kept[i], levels, i))
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
    return rows


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


# Solvers that are points of the space


def known_schedule(
    name: str, noise_schedule: NoiseSchedule, prediction: Prediction, times: ArrayLike, orders: Sequence[int] | None = None
) -> SolverSchedule:
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
        orders: (N,) Taylor orders in place of these; a step of order n has n − 1 others behind it, the last has order 1.

    Raises:
        UsageError: no such solver, or times or orders that cannot be.
    """
    if name not in KNOWN:
        raise UsageError(f"no known schedule {name!r}", f"one of {', '.join(KNOWN)}")
    kind: Expansion = "epsilon" if name == "ddim" else "x0"
    visited = np.asarray(times, dtype=np.float64).tolist()
    first_order = _with_decisions(noise_schedule, prediction, ({"timestep": t, "prediction": kind} for t in visited))
    if orders is not None and len(orders) != len(visited):
        raise UsageError(f"{len(orders)} orders for {len(visited)} steps", "one for each step")
    return _with_decisions(noise_schedule, prediction, _known(name, visited, first_order.levels(), orders))


def known_rows(name: str, levels: Levels, prediction: Prediction) -> list[Row]:
    """Rows of a published solver between noise levels; see `known_schedule`."""
    steps = len(levels.alpha) - 1
    # Where the steps are is said by the levels; of these timesteps the order alone counts.
    decisions = [Decision.model_validate(values) for values in _known(name, list(range(steps))[::-1], levels, None)]
    return _rows(decisions, levels, prediction)


def _known(name: str, times: Sequence[float], levels: Levels, orders: Sequence[int] | None) -> list[dict[str, object]]:
    """Decisions of a known schedule, not yet checked."""
    family, _, number = name.partition("-")
    steps, lam, highest = len(times), levels.log_snr, int(number[:1] or 1)
    found: list[dict[str, object]] = []
    for i, t in enumerate(times):
        last = i == steps - 1
        usual = 1 if last else min(highest, i + 1, steps - i if family == "unipc" or steps < 15 else 3)
        order = usual if orders is None else orders[i]
        values: dict[str, object] = {"timestep": t, "prediction": "epsilon" if family == "ddim" else "x0", "order": order}
        if not last:
            h = float(lam[i + 1] - lam[i])
            half = ((phi(1, -h) / (2 * phi(2, -h)) - 1) / h,)
            if order == 2 and family != "ddim":
                values["relaxation"] = half
            if order == 3 and family == "dpmpp":
                values["relaxation"] = (0.0, -0.5 / h)
            if family == "unipc":
                values |= {"corrector": "pseudo", "corrector_relaxation": half if order == 1 else ()}
        found.append(values)
    return found


def _with_decisions(
    noise_schedule: NoiseSchedule, prediction: Prediction, decisions: Iterable[dict[str, object]]
) -> SolverSchedule:
    values = {"schedule": noise_schedule, "prediction": prediction, "decisions": tuple(decisions)}
    return validated(SolverSchedule, values, "a solver schedule")
