"""The search for widths as it is done: trials on one noise, kept as they come, and the choice on noise that it has not seen."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Literal

import numpy as np
import torch
from pydantic import Field

from edge_sd.checkpoint import versions
from edge_sd.diffusion.plan import Plan
from edge_sd.errors import EdgeSDError
from edge_sd.files import alone, write_model
from edge_sd.models.slim import SlimUNet, widths_of
from edge_sd.models.unet import SpectralUNet
from edge_sd.search.objectives import Score
from edge_sd.search.record import FRONT, PLAN, Lines, SearchSettings
from edge_sd.search.widths import Costs, Genes, front, search
from edge_sd.search.workers import Scorer
from edge_sd.validation import Record

WIDTHS, WIDTH_TRIALS, WIDTH_FINALS = "widths.json", "width-trials.jsonl", "width-finals.jsonl"
SURE = 1.96  # standard errors of a 95 % interval
_FINALISTS = 16
_CALLS = 30  # of each width, for its time

Observe = Callable[[str, int, int, str], None]


class WidthSettings(SearchSettings):
    """What the trials of a search for widths depend on.

    Attributes:
        plan: SHA-256 over its columns.
        solver: of it, for a person.
        against: steps of the full width that they are judged against; None for those of the plan.
        population, generations: of NSGA-II.
    """

    plan: str
    solver: str
    against: int | None = None
    population: int = Field(ge=4)
    generations: int = Field(ge=1)


class WidthTrial(Record):
    """Widths that were tried, as channels of the first level, and what came of them."""

    widths: tuple[int, ...]
    value: float = Field(allow_inf_nan=False)
    standard_error: float = Field(allow_inf_nan=False)
    deviations: tuple[float, ...] = ()  # of finalists; see `Score`


class WidthFinalist(Record):
    """Widths on fresh noise, beside the full width on the same. Shares are of what that takes in its own steps.

    Attributes:
        widths: of each step.
        macs_share: multiply-accumulates over the trajectory, as a share of the full width's.
        milliseconds: of the trajectory's calls in torch on this machine, one image, one thread.
        searched: value on the search's noise.
        value, standard_error: on fresh noise.
        worse, worse_error: how far it lies above the full width there, with the error of that difference.
    """

    widths: tuple[int, ...]
    macs_share: float
    milliseconds: float
    searched: float
    value: float
    standard_error: float
    worse: float
    worse_error: float

    @property
    def equal(self) -> bool:
        """Whether fresh noise cannot tell it from the full width, or finds it better."""
        return self.worse <= SURE * self.worse_error


class WidthsRecord(Record):
    """widths.json.

    Attributes:
        about: what the objective measures.
        widths, macs, milliseconds: channels of the first level, and what one call at each costs.
        fresh_seed, fresh_samples: of the noise on which finalists are judged.
        trials: (share of the full width's multiply-accumulates, value) of every one.
        finalists: from the cheapest to the full width, in as many steps as they are judged against.
        chosen: index of the cheapest that is equal to the full width.
    """

    schema_version: Literal[1] = 1
    kind: Literal["widths"] = "widths"
    settings: WidthSettings
    about: str
    widths: tuple[int, ...]
    macs: tuple[int, ...]
    milliseconds: tuple[float, ...]
    fresh_seed: int
    fresh_samples: int
    trials: tuple[tuple[float, float], ...]
    finalists: tuple[WidthFinalist, ...]
    chosen: int
    seconds: float = 0.0
    versions: dict[str, str] = Field(default_factory=dict)

    @property
    def choice(self) -> WidthFinalist:
        """The one chosen."""
        return self.finalists[self.chosen]


@dataclass
class WidthSearch:
    """One search; `run` does it, or goes on with it.

    Attributes:
        model: slimmable.
        plan: whose steps get widths.
        against: the full width's, to which the result has to be equal; None for the same as `plan`.
        scorer, about: what scores plans, and what it measures.
        folder: everything is written there.
        fresh: samples by which finalists are judged.
        observe: called with (what is done, done, in all, a note).
    """

    model: SpectralUNet
    plan: Plan
    scorer: Scorer
    about: str
    settings: WidthSettings
    folder: Path
    fresh: int
    observe: Observe = lambda what, done, total, note: None
    against: Plan | None = None

    def run(self) -> WidthsRecord:
        """Search, and write the plan with its widths and the record.

        Raises:
            UsageError: the model has one width.
            EdgeSDError: the folder holds another search, or a damaged one, or is at work; or what scores plans raises.
        """
        with alone(self.folder, "searches"):
            return self._run()

    def _run(self) -> WidthsRecord:
        started, settings = time.monotonic(), self.settings
        costs = Costs.of(self.model.config)
        lines = self._lines(WIDTH_TRIALS)
        known = {self._genes(trial.widths, costs): trial for trial in lines.read()}
        self.scorer.prepare(settings.seed, settings.samples, self._observing("preparing"))
        total = settings.generations

        def evaluate(choices: Sequence[Genes]) -> list[float]:
            missing = [genes for genes in choices if genes not in known]
            with lines.appending() as append:
                plans = [self._plan(genes, costs) for genes in missing]
                for index, score in self.scorer.scores(plans, seed=settings.seed, count=settings.samples):
                    genes = missing[index]
                    widths = tuple(costs.widths[gene] for gene in genes)
                    known[genes] = WidthTrial(widths=widths, value=score.value, standard_error=score.standard_error)
                    append(known[genes])
                    self.observe("searching", done, total, f"{len(known)} trials")
            return [known[genes].value for genes in choices]

        done, tried = 0, dict[Genes, float]()
        for done, tried in search(
            evaluate, costs, len(self.plan), population=settings.population, generations=total, seed=settings.seed
        ):
            self.observe("searching", done, total, f"{len(tried)} trials")
        base = self._base(costs)
        record = self._judged({**tried, base: evaluate([base])[0]}, costs, started)
        widths = record.choice.widths
        self._steps(len(widths)).bare().with_widths(widths).save(self.folder / PLAN)
        write_model(self.folder / WIDTHS, record)
        return record

    def check(self) -> None:
        """Refuse a folder that holds another search, before anything is computed.

        Raises:
            EdgeSDError: it does, or its trials are damaged.
        """
        self._lines(WIDTH_TRIALS).read()

    def clear(self) -> None:
        """Remove what an earlier search left in the folder."""
        for name in (WIDTHS, WIDTH_TRIALS, WIDTH_FINALS, PLAN, FRONT):
            (self.folder / name).unlink(missing_ok=True)

    def _judged(self, tried: dict[Genes, float], costs: Costs, started: float) -> WidthsRecord:
        """The front and the constant widths on fresh noise, and the cheapest of them that is as good as the full width.

        What costs as much as the full width, in its own steps, is left out.
        """
        base = self._base(costs)
        best = [genes for genes in front(tried, costs) if costs.total(genes) < costs.total(base)]
        spread = [best[i] for i in np.unique(np.linspace(0, len(best) - 1, min(_FINALISTS, len(best))).round().astype(int))]
        constant = [(width,) * len(self.plan) for width in range(len(costs.widths))]
        cheaper = {*spread, *(genes for genes in constant if costs.total(genes) < costs.total(base))}
        entered = [*sorted(cheaper, key=lambda genes: (costs.total(genes), genes)), base]
        scores = self._fresh(entered, costs)
        milliseconds = call_milliseconds(self.model)
        finalists = []
        for genes in entered:
            score = scores[genes]
            worse, error = score.minus(scores[base])
            finalists.append(
                WidthFinalist(
                    widths=tuple(costs.widths[gene] for gene in genes), macs_share=costs.total(genes) / costs.total(base),
                    milliseconds=sum(milliseconds[gene] for gene in genes), searched=tried[genes], value=score.value,
                    standard_error=score.standard_error, worse=worse, worse_error=error,
                )
            )  # fmt: skip
        trials = tuple((costs.total(genes) / costs.total(base), value) for genes, value in tried.items())
        return WidthsRecord(
            settings=self.settings, about=self.about, widths=costs.widths, macs=costs.macs, milliseconds=milliseconds,
            fresh_seed=self.settings.seed + 1, fresh_samples=self.fresh,
            trials=trials, finalists=tuple(finalists),
            chosen=next(i for i, one in enumerate(finalists) if one.equal), seconds=time.monotonic() - started,
            versions=versions(),
        )  # fmt: skip

    def _fresh(self, entered: Sequence[Genes], costs: Costs) -> dict[Genes, Score]:
        """Scores on noise that the search has not seen."""
        seed, lines = self.settings.seed + 1, self._lines(WIDTH_FINALS)
        found = {
            self._genes(final.widths, costs): Score(final.value, final.standard_error, np.array(final.deviations))
            for final in lines.read()
        }
        missing = [genes for genes in entered if genes not in found]
        if missing:
            self.scorer.prepare(seed, self.fresh, self._observing("preparing fresh noise"))
        with lines.appending() as append:
            plans = [self._plan(genes, costs) for genes in missing]
            for done, (index, score) in enumerate(self.scorer.scores(plans, seed=seed, count=self.fresh), 1):
                genes = missing[index]
                found[genes] = score
                append(
                    WidthTrial(
                        widths=tuple(costs.widths[gene] for gene in genes), value=score.value,
                        standard_error=score.standard_error, deviations=tuple(score.deviations.tolist()),
                    )
                )  # fmt: skip
                self.observe("judging finalists", done, len(missing), "")
        return found

    def _lines(self, name: str) -> Lines[WidthTrial]:
        owner = self.settings
        if name == WIDTH_FINALS:  # of other samples they are others
            owner = owner.model_copy(update={"details": {**owner.details, "fresh": self.fresh}})
        return Lines(self.folder / name, WidthTrial, owner)

    def _genes(self, widths: Sequence[int], costs: Costs) -> Genes:
        if set(widths) <= set(costs.widths):
            genes = tuple(costs.widths.index(width) for width in widths)
            if len(genes) == len(self.plan) or genes == self._base(costs):
                return genes
        raise EdgeSDError(f"{self.folder} holds a trial of widths {list(widths)}, which this search has not", "--overwrite")

    def _base(self, costs: Costs) -> Genes:
        """The full width in as many steps as the others are judged against."""
        return (len(costs.widths) - 1,) * len(self.against or self.plan)

    def _steps(self, count: int) -> Plan:
        """The plan of so many steps; only the full width has another number of them."""
        return self.plan if self.against is None or count == len(self.plan) else self.against

    def _plan(self, genes: Genes, costs: Costs) -> Plan:
        return costs.plan(self._steps(len(genes)), genes)

    def _observing(self, what: str) -> Callable[[int, int], None]:
        return lambda done, total: self.observe(what, done, total, "")


def call_milliseconds(model: SpectralUNet) -> tuple[float, ...]:
    """Median time of one call at each width, ascending, in torch with one thread, the widths taking turns."""
    networks = [SlimUNet(model, width).load(model).eval() for width in widths_of(model.config)]
    x, features = torch.randn(1, *model.config.sample_shape), torch.randn(1, model.feature_width)
    threads = torch.get_num_threads()
    times: list[list[float]] = [[] for _ in networks]
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            for _ in range(_CALLS):
                for network, taken in zip(networks, times, strict=True):
                    began = time.perf_counter()
                    network.denoise(x, features)
                    taken.append(1000 * (time.perf_counter() - began))
    finally:
        torch.set_num_threads(threads)
    return tuple(median(taken) for taken in times)
