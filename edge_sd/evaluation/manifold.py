"""Improved precision and recall (Kynkäänniemi et al. 2019, 1904.06991): fidelity and coverage, apart.

A set's manifold is the union of balls around its features, each as large as the distance to the k-th nearest other feature.
Precision is the share of generated features inside the real manifold, recall that of real features inside the generated one.
"""

import numpy as np
from numpy.typing import NDArray

from edge_sd.errors import EdgeSDError, UsageError
from edge_sd.evaluation.distances import Estimate, Float64, check_features

NEIGHBOURS = 3
PRECISION_DEFINITION = "share of generated features within the distance of a real one to its k-th neighbour; ± binomial"
RECALL_DEFINITION = "share of real features within the distance of a generated one to its k-th neighbour; ± binomial"

# Rows of a distance matrix that are held at a time: 1024 × 10,000 float64 are 82 MB.
_BLOCK = 1024
# |x|² + |y|² − 2xy leaves so much of a distance of 0, in units of the largest |x|².
_ROUNDING = 1e-13


def precision_recall(
    real: NDArray[np.floating], generated: NDArray[np.floating], neighbours: int = NEIGHBOURS
) -> tuple[Estimate, Estimate]:
    """Precision and recall, each in [0, 1].

    Args:
        real, generated: (n, d) and (m, d).
        neighbours: k.

    Raises:
        UsageError: k < 1, or no more than k features in either set.
        EdgeSDError: features that are not (n, d) and finite, or of different widths.
    """
    if neighbours < 1:
        raise UsageError(f"the {neighbours}-th neighbour cannot be found", "give --neighbours 3, as in the paper")
    x, y = (check_features(values, least=neighbours + 1) for values in (real, generated))
    if x.shape[1] != y.shape[1]:
        raise EdgeSDError(f"features of widths {x.shape[1]} and {y.shape[1]}", "use the same features for both")
    origin = x.mean(0)  # near the data the differences of squares lose fewer digits
    x, y = x - origin, y - origin
    x_radii, y_radii = _squared_radii(x, neighbours), _squared_radii(y, neighbours)
    return _share(_covered(y, x, x_radii)), _share(_covered(x, y, y_radii))


def _share(inside: NDArray[np.bool_]) -> Estimate:
    value = float(inside.mean())
    return Estimate(value, float(np.sqrt(value * (1 - value) / len(inside))))


def _squared_radii(points: Float64, neighbours: int) -> Float64:
    """Squared distance of each point to its k-th nearest other one, (n,)."""
    found = []
    for start in range(0, len(points), _BLOCK):
        squared = _squared_distances(points[start : start + _BLOCK], points)
        rows = np.arange(len(squared))
        squared[rows, start + rows] = -1  # itself, first whatever the rounding
        found.append(np.partition(squared, neighbours, axis=1)[:, neighbours])
    return np.concatenate(found)


def _covered(points: Float64, centres: Float64, squared_radii: Float64) -> NDArray[np.bool_]:
    """Whether each point lies in any centre's ball, its rim included, (n,)."""
    blocks = (points[start : start + _BLOCK] for start in range(0, len(points), _BLOCK))
    return np.concatenate([(_squared_distances(block, centres) <= squared_radii).any(1) for block in blocks])


def _squared_distances(x: Float64, y: Float64) -> Float64:
    x_norms, y_norms = np.einsum("nd,nd->n", x, x), np.einsum("nd,nd->n", y, y)
    squared = x_norms[:, None] + y_norms - 2 * x @ y.T
    squared[squared < _ROUNDING * max(x_norms.max(), y_norms.max())] = 0  # the same point twice
    distances: Float64 = squared
    return distances
