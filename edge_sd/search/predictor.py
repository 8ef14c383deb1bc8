"""A light regressor that looks over candidates before they are tried: an ensemble of ridge regressions on random features.

Each member sees the vector itself, which fits the slope, and tanh of random projections of it, which fit what bends (2312.07243,
section 4.2, has a small network here; a few hundred points do not train one better). Members differ in their projections and in
the points they are given (a bootstrap), so that where they disagree nothing is known yet.
"""

from dataclasses import dataclass

import numpy as np

from edge_sd.diffusion.plan import Float64

MEMBERS, PROJECTIONS = 8, 64
_PENALTIES = np.logspace(-4, 2, 13)  # of which each member takes the best by leaving one out
_LEAST = 1e-9
_FLOOR = 3e-3  # of an entry's deviation: one that hardly differs among the trials is not made much of where it does


@dataclass(frozen=True)
class Predictor:
    """Fitted by `Predictor.fit`; predicts values from vectors.

    Attributes:
        centre, scale: of the vectors.
        members: (projection, offset, weights) each.
    """

    centre: Float64
    scale: Float64
    members: tuple[tuple[Float64, Float64, Float64], ...]

    @classmethod
    def fit(cls, vectors: Float64, values: Float64, rng: np.random.Generator) -> "Predictor":
        """Fit to vectors (n, d), whose entries are about 1 or less, and their values (n,)."""
        centre, scale = vectors.mean(0), np.hypot(vectors.std(0), _FLOOR)
        inputs, members = (vectors - centre) / scale, []
        for _ in range(MEMBERS):
            projection = rng.normal(size=(inputs.shape[1], PROJECTIONS)) / np.sqrt(inputs.shape[1])
            offset = rng.uniform(-1, 1, PROJECTIONS)
            drawn = rng.integers(len(inputs), size=len(inputs))
            members.append((projection, offset, ridge(_lifted(inputs[drawn], projection, offset), values[drawn])))
        return cls(centre, scale, tuple(members))

    def __call__(self, vectors: Float64) -> tuple[Float64, Float64]:
        """Predict: the members' mean (n,) and their standard deviation (n,)."""
        inputs = (vectors - self.centre) / self.scale
        found = np.stack([_lifted(inputs, projection, offset) @ weights for projection, offset, weights in self.members])
        return found.mean(0), found.std(0)


def _lifted(inputs: Float64, projection: Float64, offset: Float64) -> Float64:
    """(n, d) → (n, 1 + d + projections): a constant, the input, and what bends."""
    return np.concatenate([np.ones((len(inputs), 1)), inputs, np.tanh(inputs @ projection + offset)], 1)


def ridge(inputs: Float64, values: Float64, penalty: float | None = None) -> Float64:
    """Weights (d,) that minimise ‖inputs·w − values‖² + n·penalty·‖w‖², the first of them, of a constant, not penalised.

    Args:
        penalty: the one of thirteen with the smallest error when each point is left out (PRESS), if left out.
    """
    offset, level = inputs[:, 1:].mean(0), values.mean()
    u, s, vt = np.linalg.svd(inputs[:, 1:] - offset, full_matrices=False)
    target = u.T @ (values - level)
    n = len(values)

    def shrunk(given: float) -> Float64:
        shrinkage: Float64 = s**2 / (s**2 + n * given)
        return shrinkage

    def press(given: float) -> float:
        shrinkage = shrunk(given)
        leverage = np.minimum(1 / n + (u**2) @ shrinkage, 1 - _LEAST)
        residual = values - level - u @ (shrinkage * target)
        return float(np.mean((residual / (1 - leverage)) ** 2))

    chosen = min(_PENALTIES, key=press) if penalty is None else penalty
    slope = vt.T @ (s / np.maximum(s**2 + n * chosen, _LEAST) * target)
    return np.concatenate([[level - offset @ slope], slope])


def rank_correlation(predicted: Float64, found: Float64) -> float | None:
    """Spearman's, ties in the order given; None of fewer than three points."""
    if len(found) < 3:
        return None
    ranks = [np.argsort(np.argsort(values)).astype(np.float64) for values in (predicted, found)]
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])
