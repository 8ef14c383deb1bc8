"""All solvers over budgets of steps: each known one at its best spacing, and the plans that searches found, on equal noise.

Spacings are chosen on one noise, figures taken on another, and not on the one that a search ranked its finalists by either.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field

from edge_sd.checkpoint import versions
from edge_sd.diffusion.plan import Plan, Prediction
from edge_sd.diffusion.schedule import NoiseSchedule
from edge_sd.diffusion.unified import SolverSchedule, compile_schedule
from edge_sd.errors import EdgeSDError
from edge_sd.files import fingerprint, read_model, write_model
from edge_sd.search.record import COMPARED, SCHEDULE, SEARCH, SearchRecord, SearchSettings, folder_of
from edge_sd.search.seeds import Seed, first_round, second_round
from edge_sd.search.space import Space
from edge_sd.search.workers import Scorer
from edge_sd.validation import Record

STEPS = (3, 4, 5, 6, 8, 10, 15, 20)
FOUND = "S3"

Observe = Callable[[str, int, int, str], None]


class Row(Record):
    """One plan's figure.

    Attributes:
        solver: a known one, or "S3" for what a search found.
        spacing: the best of a known one's.
        gain, gain_error: how far a found plan lies below the best known one's figure, with the error of that difference.
    """

    steps: int = Field(ge=1)
    solver: str
    spacing: str
    value: float
    standard_error: float
    gain: float | None = None
    gain_error: float | None = None


class Comparison(Record):
    """compare.json.

    Attributes:
        about: what the objective measures.
        settings: of the noise that spacings are chosen on; its `steps` are the most.
        fresh_seed, fresh_samples: of the noise that figures are of.
        plans: hex digits that stand for the found plans among them, by steps.
        rows: by steps, best first.
    """

    schema_version: Literal[1] = 1
    kind: Literal["solver-comparison"] = "solver-comparison"
    about: str
    settings: SearchSettings
    fresh_seed: int
    fresh_samples: int
    plans: dict[int, str]
    rows: tuple[Row, ...]
    versions: dict[str, str] = Field(default_factory=dict)


@dataclass(frozen=True)
class Comparing:
    """One comparison; the same again goes on after the last budget that was done.

    Attributes:
        noise_schedule, prediction: of the model.
        settings: see `Comparison`.
        about: of the objective.
        folder: of the searches; compare.json is written there.
        fresh: samples for the figures.
    """

    noise_schedule: NoiseSchedule
    prediction: Prediction
    scorer: Scorer
    settings: SearchSettings
    about: str
    folder: Path
    fresh: int
    observe: Observe = lambda what, done, total, note: None

    def run(self, steps: Sequence[int] = STEPS) -> Comparison:
        """Compare at each of these numbers of steps, and write it.

        Raises:
            EdgeSDError: what scores plans raises; or a search's folder is damaged.
        """
        found = {n: self._found(n) for n in steps}
        plans = {n: "" if plan is None else fingerprint(plan.model_dump_json()) for n, plan in found.items()}
        done = self._kept(plans)
        rows = {n: [row for row in done if row.steps == n] for n in steps}
        for index, n in enumerate(steps):
            if not rows[n]:
                self.observe("comparing", index, len(steps), f"{n} steps")
                rows[n] = self._rows(n, found[n])
            result = Comparison(
                about=self.about, settings=self.settings, fresh_seed=self._seed, fresh_samples=self.fresh, plans=plans,
                rows=tuple(row for of_one in rows.values() for row in of_one), versions=versions(),
            )  # fmt: skip
            write_model(self.folder / COMPARED, result)
        self.observe("comparing", len(steps), len(steps), "")
        return result

    @property
    def _seed(self) -> int:
        return self.settings.seed + 2  # searches use the two before

    def _found(self, steps: int) -> SolverSchedule | None:
        """What a search of this model for this budget found by this objective; None where there was none."""
        folder = folder_of(self.folder, steps)
        if not (folder / SEARCH).is_file():
            return None
        theirs, ours = read_model(SearchRecord, folder / SEARCH).settings, self.settings
        if (theirs.model, theirs.objective, theirs.details) != (ours.model, ours.objective, ours.details):
            return None
        return read_model(SolverSchedule, folder / SCHEDULE)

    def _kept(self, plans: dict[int, str]) -> list[Row]:
        """Rows of an earlier run with the same settings; of found plans, those that are still the same."""
        try:
            kept = read_model(Comparison, self.folder / COMPARED)
        except EdgeSDError:
            return []
        if (kept.settings, kept.fresh_samples) != (self.settings, self.fresh):
            return []
        return [row for row in kept.rows if kept.plans.get(row.steps) == plans.get(row.steps)]

    def _rows(self, steps: int, found: SolverSchedule | None) -> list[Row]:
        space, settings = Space(self.noise_schedule, self.prediction, steps), self.settings
        self.scorer.prepare(settings.seed, settings.samples)
        seeds = first_round(space)
        values = self._values(seeds)
        further = second_round(space, seeds, values)
        seeds, values = seeds + further, values + self._values(further)
        best: dict[str, tuple[float, int]] = {}
        for index, (one, value) in enumerate(zip(seeds, values, strict=True)):
            best[one.solver] = min(best.get(one.solver, (float("inf"), -1)), (value, index))
        self.scorer.prepare(self._seed, self.fresh)
        entered: list[tuple[Seed | None, Plan]] = [(seeds[index], seeds[index].plan) for _, index in best.values()]
        if found is not None:
            entered.append((None, compile_schedule(found)))
        scores = dict(self.scorer.scores([plan for _, plan in entered], seed=self._seed, count=self.fresh))
        known = min((scores[i] for i, (seed, _) in enumerate(entered) if seed is not None), key=lambda score: score.value)
        rows = []
        for i, (seed, _) in enumerate(entered):
            difference, error = scores[i].minus(known) if seed is None else (None, None)
            rows.append(
                Row(
                    steps=steps,
                    solver=FOUND if seed is None else seed.solver,
                    spacing="searched" if seed is None else seed.spacing,
                    value=scores[i].value,
                    standard_error=scores[i].standard_error,
                    gain=None if difference is None else -difference,
                    gain_error=error,
                )
            )
        return sorted(rows, key=lambda row: (row.value, row.solver))

    def _values(self, seeds: Sequence[Seed]) -> list[float]:
        """On the noise that spacings are chosen on."""
        plans = [seed.plan for seed in seeds]
        scores = dict(self.scorer.scores(plans, seed=self.settings.seed, count=self.settings.samples))
        return [scores[i].value for i in range(len(seeds))]
