"""S³: the search for the best plan at a budget of steps, by evolution that a predictor guides (USF, 2312.07243, section 4).

Generation 0 is every known solver, tuned at the budget (`seeds`). Each further one proposes many candidates from the best trials
so far, keeps those that a regressor fitted on the trials likes, with a few at random, and tries them; all trials see the same
noise. The best few and the best known one are ranked again on fresh noise, and more of it: so the result is the best known plan
at worst, and by how much the search has fitted its own noise can be seen.

What a generation proposes is a function of the seed, its number and the trials before it, and a trial is written as it comes: a
search that was killed goes on as if it had not been.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from edge_sd.checkpoint import versions
from edge_sd.diffusion.plan import Float64, Plan
from edge_sd.diffusion.unified import SolverSchedule, compile_schedule
from edge_sd.errors import EdgeSDError
from edge_sd.files import alone, write_model
from edge_sd.search.objectives import Objective, Score
from edge_sd.search.predictor import Predictor, rank_correlation
from edge_sd.search.propose import offspring
from edge_sd.search.record import (
    FINALS,
    FRONT,
    PLAN,
    SCHEDULE,
    SEARCH,
    TRIALS,
    Final,
    Finalist,
    Generation,
    Known,
    Lines,
    SearchRecord,
    SearchSettings,
    Trial,
)
from edge_sd.search.seeds import Seed, first_round, second_round
from edge_sd.search.space import Space, encoded
from edge_sd.search.workers import Scorer

GENERATION = 24  # trials
POOL = 400  # candidates that the predictor looks over for each generation
AT_RANDOM = 4  # of a generation, whatever the predictor says of them
PARENTS = 20
FITTED = 150  # best trials, to which the predictor is fitted
FINALISTS = 5  # that differ, of the …
LEADERS = 40  # … best trials
_HOPE = 0.5  # standard deviations of the prediction by which a candidate may be better than predicted
_WORST = 0.8  # values above this quantile count as it: how bad a bad plan is teaches nothing about good ones

Observe = Callable[[str, int, int, str], None]


@dataclass(frozen=True)
class Proposal:
    """A plan to be tried."""

    schedule: SolverSchedule
    plan: Plan
    origin: str = ""
    predicted: float | None = None


@dataclass
class Search:
    """One search; `run` does it, or goes on with it.

    Attributes:
        space: where.
        scorer: what scores plans; on equal noise all give the same, whatever the number of processes.
        settings: what the trials depend on.
        objective: what the scorer scores by.
        folder: everything is written there.
        evaluations: trials in all; more where the known solvers alone are.
        fresh: samples by which finalists are ranked.
        minutes: no trial is begun after so many; finalists are still ranked.
        observe: called with (what is done, trials done, in all, a note).
    """

    space: Space
    scorer: Scorer
    settings: SearchSettings
    objective: type[Objective]
    folder: Path
    evaluations: int
    fresh: int
    minutes: float | None = None
    observe: Observe = lambda what, done, total, note: None

    def run(self) -> SearchRecord:
        """Search, and write plan, schedule and record.

        Raises:
            EdgeSDError: the folder holds another search, or a damaged one, or is at work; or what scores plans raises.
        """
        with alone(self.folder, "searches"):
            return self._run()

    def _run(self) -> SearchRecord:
        started = time.monotonic()
        until = started + 60 * self.minutes if self.minutes is not None else float("inf")
        lines = self._lines()
        found = {trial.number: trial for trial in lines.read()}
        self.scorer.prepare(self.settings.seed, self.settings.samples, self._observing("preparing"))
        trials: list[Trial] = []
        generation = 0
        while not trials or (len(trials) < self.evaluations and time.monotonic() < until):
            if generation == 0:  # whole, whatever the time: the result is to be no worse than any of them
                trials += self._tried(self._first(), 0, 0, found, lines, float("inf"))
                trials += self._tried(self._second(trials), len(trials), 0, found, lines, float("inf"))
            else:
                asked = min(GENERATION, self.evaluations - len(trials))
                recorded = [found[number] for number in range(len(trials), len(trials) + asked) if number in found]
                if len(recorded) == asked:  # what they were proposed from need not be gone through again
                    trials += recorded
                else:
                    proposals = self._proposed(trials, generation)[:asked]
                    trials += self._tried(proposals, len(trials), generation, found, lines, until)
            generation += 1
        return self._finish(trials, len(trials) >= self.evaluations, started)

    def __post_init__(self) -> None:
        self._vectors: dict[int, Float64] = {}

    def check(self) -> None:
        """Refuse a folder that holds another search, before anything is computed.

        Raises:
            EdgeSDError: it does, or its trials are damaged.
        """
        self._lines().read()

    def clear(self) -> None:
        """Remove what an earlier search left in the folder."""
        for name in (SEARCH, TRIALS, FINALS, PLAN, SCHEDULE, FRONT):
            (self.folder / name).unlink(missing_ok=True)

    def _lines(self) -> Lines[Trial]:
        return Lines(self.folder / TRIALS, Trial, self.settings)

    # Proposing

    def _first(self) -> list[Proposal]:
        if not self._seeds:
            raise EdgeSDError(f"no known solver takes {self.space.steps} steps of this process", "fewer --steps")
        return [Proposal(seed.schedule, seed.plan, f"{seed.solver}, {seed.spacing}") for seed in self._seeds]

    @cached_property
    def _seeds(self) -> list[Seed]:
        return first_round(self.space)

    def _second(self, trials: Sequence[Trial]) -> list[Proposal]:
        seeds = second_round(self.space, self._seeds, [trial.value for trial in trials])
        return [Proposal(seed.schedule, seed.plan, f"{seed.solver}, {seed.spacing}") for seed in seeds]

    def _proposed(self, trials: Sequence[Trial], generation: int) -> list[Proposal]:
        """The candidates of a generation: a function of the seed, its number and the trials before it."""
        rng = np.random.default_rng([self.settings.seed, generation])
        best = _ranked(trials)
        parents = [self.space.apart(trial.schedule) for trial in best[:PARENTS]]
        fitted = best[:FITTED]
        predictor = Predictor.fit(np.stack([self._vector(trial) for trial in fitted]), self._targets(fitted))
        seen = {trial.schedule.model_dump_json() for trial in trials}
        candidates: list[tuple[SolverSchedule, Plan]] = []
        while len(candidates) < POOL:
            made = self.space.compile(offspring(parents, rng))
            if made is not None and made[0].model_dump_json() not in seen:
                seen.add(made[0].model_dump_json())
                candidates.append(made)
        mean, deviation = predictor(np.stack([encoded(self.space, plan) for _, plan in candidates]))
        order = np.argsort(mean - _HOPE * deviation, kind="stable")
        liked = GENERATION - AT_RANDOM
        chosen = [*order[:liked], *rng.choice(order[liked:], AT_RANDOM, replace=False)]
        return [Proposal(candidates[i][0], candidates[i][1], predicted=float(mean[i])) for i in chosen]

    def _vector(self, trial: Trial) -> Float64:
        if trial.number not in self._vectors:
            self._vectors[trial.number] = encoded(self.space, compile_schedule(trial.schedule))
        return self._vectors[trial.number]

    def _targets(self, trials: Sequence[Trial]) -> Float64:
        values = np.array([trial.value for trial in trials])
        values = np.log(np.maximum(values, np.finfo(np.float64).tiny)) if self.objective.positive else values
        targets: Float64 = np.minimum(values, np.quantile(values, _WORST))
        return targets

    # Trying

    def _tried(
        self,
        proposals: Sequence[Proposal],
        first: int,
        generation: int,
        found: dict[int, Trial],
        lines: Lines[Trial],
        until: float,
    ) -> list[Trial]:
        """The trials of a generation, in their order; those that were not begun in time are left out."""
        missing = [i for i in range(len(proposals)) if first + i not in found]
        best = min((trial.value for trial in found.values()), default=float("inf"))
        with lines.appending() as append:
            scores = self.scorer.scores(
                [proposals[i].plan for i in missing], seed=self.settings.seed, count=self.settings.samples
            )
            for index, score in scores:
                number = first + missing[index]
                proposal = proposals[missing[index]]
                found[number] = Trial(
                    number=number,
                    generation=generation,
                    origin=proposal.origin,
                    schedule=proposal.schedule,
                    predicted=proposal.predicted,
                    value=score.value,
                    standard_error=score.standard_error,
                )
                append(found[number])
                best = min(best, score.value)
                total = max(self.evaluations, first + len(proposals))  # the known solvers are tried in any case
                self.observe("searching", len(found), total, f"best {best:.4g}")
                if time.monotonic() > until:
                    break
        return [found[first + i] for i in range(len(proposals)) if first + i in found]

    # Ranking

    def _finish(self, trials: Sequence[Trial], complete: bool, started: float) -> SearchRecord:
        known = best_known(trials)
        ranked = self._leaders([trial for trial in _ranked(trials) if trial.number != known[0].trial][:LEADERS])
        entered = [*ranked, next(trial for trial in trials if trial.number == known[0].trial)]
        scores = self._fresh(entered)
        base = scores[known[0].trial]
        finalists = []
        for trial in entered:
            score = scores[trial.number]
            difference, error = score.minus(base)
            finalists.append(
                Finalist(
                    trial=trial.number, origin=trial.origin, searched=trial.value, value=score.value,
                    standard_error=score.standard_error, gain=-difference, gain_error=error,
                )
            )  # fmt: skip
        finalists.sort(key=lambda one: (one.value, one.trial))
        chosen = next(trial for trial in entered if trial.number == finalists[0].trial)
        record = SearchRecord(
            settings=self.settings, about=self.objective.about, fresh_seed=self.settings.seed + 1, fresh_samples=self.fresh,
            evaluations=len(trials), complete=complete, known=known, generations=_generations(trials),
            finalists=tuple(finalists), chosen=chosen.number, best_known=known[0].trial, seconds=time.monotonic() - started,
            versions=versions(),
        )  # fmt: skip
        compile_schedule(chosen.schedule).save(self.folder / PLAN)
        write_model(self.folder / SCHEDULE, chosen.schedule)
        write_model(self.folder / SEARCH, record)
        return record

    def _leaders(self, best: Sequence[Trial]) -> list[Trial]:
        """Those of the best that are no near copies of each other: what lifts one by chance lifts its copies too."""
        if len(best) <= FINALISTS:
            return list(best)
        vectors = np.stack([self._vector(trial) for trial in best])
        distances = np.linalg.norm(vectors[:, None] - vectors[None], axis=-1)
        apart, chosen = float(np.median(distances)) / 2, [0]
        for i in range(1, len(best)):
            if len(chosen) < FINALISTS and distances[i, chosen].min() > apart:
                chosen.append(i)
        chosen += [i for i in range(len(best)) if i not in chosen][: FINALISTS - len(chosen)]
        return [best[i] for i in chosen]

    def _fresh(self, entered: Sequence[Trial]) -> dict[int, Score]:
        """Scores on noise that the search has not seen."""
        seed, lines = self.settings.seed + 1, Lines(self.folder / FINALS, Final, self.settings)
        found = {
            final.trial: Score(final.value, final.standard_error, np.array(final.deviations))
            for final in lines.read()
            if (final.seed, final.samples) == (seed, self.fresh)
        }
        missing = [trial for trial in entered if trial.number not in found]
        if missing:
            self.scorer.prepare(seed, self.fresh, self._observing("preparing fresh noise"))
        with lines.appending() as append:
            plans = [compile_schedule(trial.schedule) for trial in missing]
            for done, (index, score) in enumerate(self.scorer.scores(plans, seed=seed, count=self.fresh), 1):
                found[missing[index].number] = score
                append(
                    Final(
                        trial=missing[index].number, seed=seed, samples=self.fresh, value=score.value,
                        standard_error=score.standard_error, deviations=tuple(score.deviations.tolist()),
                    )
                )  # fmt: skip
                self.observe("ranking finalists", done, len(missing), "")
        return found

    def _observing(self, what: str) -> Callable[[int, int], None]:
        return lambda done, total: self.observe(what, done, total, "")


def _ranked(trials: Sequence[Trial]) -> list[Trial]:
    return sorted(trials, key=lambda trial: (trial.value, trial.number))


def best_known(trials: Sequence[Trial]) -> tuple[Known, ...]:
    """Each known solver at its best spacing, best first."""
    found: dict[str, Known] = {}
    for trial in _ranked([trial for trial in trials if trial.generation == 0]):
        solver, _, spacing = trial.origin.partition(", ")
        if solver not in found:
            found[solver] = Known(
                solver=solver, spacing=spacing, trial=trial.number, value=trial.value, standard_error=trial.standard_error
            )
    return tuple(found.values())


def _generations(trials: Sequence[Trial]) -> tuple[Generation, ...]:
    found, best = [], float("inf")
    for number in range(trials[-1].generation + 1):
        own = [trial for trial in trials if trial.generation == number]
        best = min(best, *(trial.value for trial in own))
        pairs = np.array([(trial.predicted, trial.value) for trial in own if trial.predicted is not None]).reshape(-1, 2)
        found.append(Generation(trials=len(own), best=best, correlation=rank_correlation(pairs[:, 0], pairs[:, 1])))
    return tuple(found)
