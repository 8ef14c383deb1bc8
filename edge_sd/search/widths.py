"""A width for each step: which of a slimmable model's widths a plan calls where (DDSM, 2310.03337, section 3.3).

NSGA-II (Deb et al. 2002, by pymoo) looks for the front of quality against multiply-accumulates over the whole trajectory. DDSM's
code folds both into one number by a weight that has to be guessed; a front needs none, and the choice is made at its end: the
cheapest plan that fresh noise cannot tell from the full width.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_sd.diffusion.plan import Plan
from edge_sd.errors import InstallationError, UsageError
from edge_sd.models.config import ModelConfig
from edge_sd.models.count import count
from edge_sd.models.slim import slim_config, widths_of

Genes = tuple[int, ...]  # one a step: an index into the model's widths, ascending
Evaluate = Callable[[Sequence[Genes]], Sequence[float]]


@dataclass(frozen=True)
class Costs:
    """What calls cost.

    Attributes:
        widths: channels of the first level, ascending, the full one last.
        macs: multiply-accumulates of one call at each, attention's products included, time features not: they cost nothing then.
    """

    widths: tuple[int, ...]
    macs: tuple[int, ...]

    @classmethod
    def of(cls, config: ModelConfig) -> "Costs":
        """Count them.

        Raises:
            UsageError: the model has one width.
        """
        if not config.slim_widths:
            raise UsageError("the model's weights work at one width alone", "edge-sd train --slimmable makes others")
        counts = [count(slim_config(config, width)) for width in widths_of(config)]
        return cls(widths_of(config), tuple(found.macs - found.temporal_macs + found.attention_macs for found in counts))

    def total(self, genes: Genes) -> int:
        """Of a trajectory."""
        return sum(self.macs[gene] for gene in genes)

    def share(self, genes: Genes) -> float:
        """Of the full width's total."""
        return self.total(genes) / (len(genes) * self.macs[-1])

    def plan(self, plan: Plan, genes: Genes) -> Plan:
        """The plan with these widths; every width is one of its programs, so that all trials share their networks."""
        return plan.with_widths([self.widths[gene] for gene in genes], self.widths)


def seeds(steps: int, widths: int) -> list[Genes]:
    """Where a search starts: every constant width, and widths that rise or fall along the trajectory in even parts."""
    found = [(width,) * steps for width in range(widths)]
    for levels in combinations_with_replacement(range(widths), min(steps, 3)):
        parts = np.array_split(np.arange(steps), len(levels))
        rising = tuple(level for level, part in zip(levels, parts, strict=True) for _ in part)
        found += [rising, rising[::-1]]
    return list(dict.fromkeys(found))


def search(
    evaluate: Evaluate, costs: Costs, steps: int, *, population: int, generations: int, seed: int
) -> Iterator[tuple[int, dict[Genes, float]]]:
    """Yield (generations done, quality of all that was tried) after each generation; lower quality is better.

    The same evaluations lead to the same trials, so a search goes on where it was cut off if those that were made are remembered.

    Args:
        evaluate: quality of each of several choices.

    Raises:
        InstallationError: pymoo is missing.
    """
    try:
        from pymoo.algorithms.moo.nsga2 import NSGA2
        from pymoo.core.evaluator import Evaluator
        from pymoo.core.problem import Problem
        from pymoo.operators.crossover.pntx import PointCrossover
        from pymoo.problems.static import StaticProblem
    except ImportError as error:
        raise InstallationError("the search for widths needs pymoo", 'pip install "edge-sd[search]"') from error

    first = seeds(steps, len(costs.widths))
    rng = np.random.default_rng(seed)
    while len(first) < population:  # few steps or widths have few seeds
        first.append(tuple(rng.integers(0, len(costs.widths), steps).tolist()))
    problem = Problem(n_var=steps, n_obj=2, xl=0, xu=len(costs.widths) - 1, vtype=int)
    algorithm = NSGA2(
        pop_size=population,
        sampling=np.array(first),
        crossover=PointCrossover(n_points=1),
        mutation=_mutation(len(costs.widths)),
        eliminate_duplicates=True,
    )
    algorithm.setup(problem, termination=("n_gen", generations), seed=seed, verbose=False)
    tried: dict[Genes, float] = {}
    while algorithm.has_next():
        asked = algorithm.ask()
        choices = [tuple(int(gene) for gene in genes) for genes in asked.get("X")]
        new = [genes for genes in dict.fromkeys(choices) if genes not in tried]
        tried |= dict(zip(new, evaluate(new), strict=True))
        values = np.array([[tried[genes], costs.share(genes)] for genes in choices])
        Evaluator().eval(StaticProblem(problem, F=values), asked)
        algorithm.tell(infills=asked)
        yield algorithm.n_iter - 1, dict(tried)


def front(tried: dict[Genes, float], costs: Costs) -> list[Genes]:
    """Those that nothing both cheaper and better is known of, the cheapest first."""
    found: list[Genes] = []
    for genes in sorted(tried, key=lambda genes: (costs.total(genes), tried[genes])):
        if not found or tried[genes] < tried[found[-1]]:
            found.append(genes)
    return found


def _mutation(widths: int) -> Any:
    """One step in some of the genes: to the next width, or any."""
    from pymoo.core.mutation import Mutation

    class Steps(Mutation):  # type: ignore[misc]  # pymoo has no types
        def _do(self, problem: Any, X: NDArray[Any], *args: Any, random_state: Any, **kwargs: Any) -> NDArray[Any]:
            rng = random_state
            changed = rng.random(X.shape) < 1.5 / X.shape[1]
            near = np.clip(X + rng.choice([-1, 1], X.shape), 0, widths - 1)
            anywhere = rng.integers(0, widths, X.shape)
            moved = np.where(rng.random(X.shape) < 0.7, near, anywhere)
            return np.where(changed, moved, X).astype(int)

    return Steps()
