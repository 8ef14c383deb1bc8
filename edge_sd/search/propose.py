"""New candidates from those that were tried: mutation, crossover, differences (2312.07243, section 4.2; Storn and Price 1997)."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from edge_sd.search.space import CORRECTOR, FACTORS, HIGHEST, Candidate, Kind

_ORDERS, _ORDER_ODDS = (1, 2, 3, 4), (0.2, 0.4, 0.3, 0.1)  # the prior of USF's release
_FACTOR_RANGE = (-1.0, 3.0)


def offspring(parents: Sequence[Candidate], rng: np.random.Generator) -> Candidate:
    """One new candidate; it may be no schedule, which `Space.compile` tells.

    Args:
        parents: what has been tried, best first; the better ones are taken more often.
    """
    first = _pick(parents, rng)
    how = rng.random()
    if how < 0.35:
        return nudged(first, rng)
    if how < 0.55:
        return nudged(restructured(first, rng), rng)
    if how < 0.75:
        return nudged(crossed(first, _pick(parents, rng), rng), rng, 0.3)
    return moved(first, _pick(parents, rng), _pick(parents, rng), rng)


def _pick(parents: Sequence[Candidate], rng: np.random.Generator) -> Candidate:
    return parents[int(len(parents) * rng.random() ** 1.5)]


def nudged(one: Candidate, rng: np.random.Generator, share: float = 1.0) -> Candidate:
    """Times moved by a part of the gap to their neighbours, factors by Gaussian noise; few of them or all, little or much."""
    values, steps = one.values.copy(), len(one.values)
    touched = rng.random(values.shape) < rng.choice([1.5 / steps, 0.3, 1.0])
    gaps = np.abs(np.diff(values[:, 0], prepend=1.0, append=0.0))
    spread = share * 10 ** rng.uniform(-2, -0.4)
    values[:, 0] += touched[:, 0] * rng.normal(size=steps) * spread * np.minimum(gaps[:-1], gaps[1:]).clip(1e-3)
    noise = share * 10 ** rng.uniform(-2, -0.5) * rng.normal(size=values.shape)
    noise[:, 0] = 0
    return replace(one, values=_clipped(values + noise * touched))


def restructured(one: Candidate, rng: np.random.Generator) -> Candidate:
    """One or two steps decide otherwise: prediction type, order, points or corrector; or the start does."""
    if rng.random() < 0.1:
        return replace(one, start="noise" if one.start == "analytic" else "analytic")
    kinds = list(one.kinds)
    for i in rng.integers(len(kinds), size=rng.integers(1, 3)):
        kinds[i] = _other(kinds[i], int(i), rng)
    return replace(one, kinds=tuple(kinds))


def _other(kind: Kind, i: int, rng: np.random.Generator) -> Kind:
    what = rng.choice(["prediction", "order", "points", "corrector"])
    if what == "prediction":
        return replace(kind, prediction="x0" if kind.prediction == "epsilon" else "epsilon")
    if what == "order":
        return replace(kind, order=int(rng.choice(_ORDERS, p=_ORDER_ODDS)), points=None)
    if what == "corrector":
        return replace(kind, corrected=not kind.corrected)
    furthest = min(i, HIGHEST)
    count = int(rng.integers(kind.order - 1, furthest + 1)) if furthest >= kind.order - 1 else 0
    points = tuple(sorted(int(back) + 1 for back in rng.choice(furthest, count, replace=False))) if count else None
    return replace(kind, points=points)


def crossed(one: Candidate, other: Candidate, rng: np.random.Generator) -> Candidate:
    """Each step from either, or the steps before a cut from one and those after it from the other; times sometimes from one."""
    steps = len(one.kinds)
    from_other = rng.random(steps) < 0.5 if rng.random() < 0.5 else np.arange(steps) >= rng.integers(1, max(steps, 2))
    values = np.where(from_other[:, None], other.values, one.values)
    if rng.random() < 0.5:
        values[:, 0] = one.values[:, 0]
    kinds = tuple(theirs if swap else ours for ours, theirs, swap in zip(one.kinds, other.kinds, from_other, strict=True))
    return replace(one, kinds=kinds, values=values)


def moved(one: Candidate, to: Candidate, by: Candidate, rng: np.random.Generator) -> Candidate:
    """Values moved along the difference of two others: its directions and lengths are those in which good ones still differ."""
    factor = rng.uniform(0.2, 1.0)
    touched = rng.random(one.values.shape) < rng.choice([0.3, 1.0])
    return replace(one, values=_clipped(one.values + touched * factor * (to.values - by.values)))


def _clipped(values: np.ndarray) -> np.ndarray:
    values[:, 0] = np.sort(values[:, 0].clip(0, 1))[::-1]
    for columns in (FACTORS, CORRECTOR):
        values[:, columns] = values[:, columns].clip(*_FACTOR_RANGE)
    return values
