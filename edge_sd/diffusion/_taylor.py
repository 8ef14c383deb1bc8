"""A step of the unified solver as weights: the exponential integrator's Taylor expansion, its derivatives by finite differences.

Between two points the probability-flow ODE has an exact solution in λ = log(α/σ). With h = λ_t − λ_s and y^(k) the derivatives
of the prediction in λ at s (USF, 2312.07243, section 3.1; DPM-Solver++, 2211.01095, equation 9):

    x0:  x_t = (σ_t/σ_s)·x_s + α_t Σ_k h^(k+1) φ_(k+1)(−h) y^(k)
    ε:   x_t = (α_t/α_s)·x_s − σ_t Σ_k h^(k+1) φ_(k+1)(h) y^(k)

An expansion of order n takes k = 0 … n−1, and what it leaves out is O(h^(n+1)).
"""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from edge_sd.diffusion.plan import Float64
from edge_sd.diffusion.solvers._base import Levels

Expansion = Literal["epsilon", "x0"]


def phi(k: int, z: float) -> float:
    """φ_k(z) = ∫₀¹ e^((1−u)z) u^(k−1)/(k−1)! du for k ≥ 1: φ_1 = (e^z − 1)/z and φ_(k+1) = (φ_k − 1/k!)/z."""
    if abs(z) < 1:  # there the recursion would cancel all digits but a few
        return math.fsum(z**m / math.factorial(m + k) for m in range(20))
    value = math.expm1(z) / z
    for j in range(1, k):
        value = (value - 1 / math.factorial(j)) / z
    return value


def derivative_weights(nodes: Sequence[float]) -> Float64:
    """Weights of a function's values at `nodes` in its derivatives at 0, by the polynomial through them.

    They solve the linear system Σ_j w_j·nodes_j^i / i! = 1 for i = k, 0 for every other i. Lagrange's form writes the solution
    down, where elimination would lose it for points that are close together.

    Args:
        nodes: n different points.

    Returns:
        (n, n): row k holds the weights of the k-th derivative, row 0 those of the value itself.
    """
    given = np.asarray(nodes, dtype=np.float64)
    weights = np.empty((len(given), len(given)))
    factorials = [math.factorial(k) for k in range(len(given))]
    for j, node in enumerate(given):
        others = np.delete(given, j)
        weights[:, j] = np.atleast_1d(np.poly(others))[::-1] / np.prod(node - others) * factorials
    return weights


def step_weights(
    kind: Expansion, levels: Levels, start: int, points: Sequence[int], order: int, relaxation: Sequence[float] = ()
) -> tuple[float, list[float]]:
    """Weights of one step from level `start` to the next.

    Args:
        kind: what is expanded, ε or x0.
        points: the levels whose predictions estimate the derivatives, at least `order` of them, all different, `start` first.
        order: n of the expansion, at least 1; 1 where the next level is the clean image, whose λ is infinite.
        relaxation: c_1, c_2, …: the estimate of the k-th derivative is multiplied by 1 + c_k·h.

    Returns:
        The weight of x_s, and those of the predictions at `points`.
    """
    alpha, sigma, alpha_next, sigma_next = (
        float(v) for v in (levels.alpha[start], levels.sigma[start], levels.alpha[start + 1], levels.sigma[start + 1])
    )
    keep = sigma_next / sigma if kind == "x0" else alpha_next / alpha
    if sigma_next == 0:
        return keep, [alpha_next if kind == "x0" else -sigma * keep]
    h = float(levels.log_snr[start + 1] - levels.log_snr[start])
    gain, z = (h * alpha_next, -h) if kind == "x0" else (-h * sigma_next, h)
    # In units of h, so that row k is of h^k y^(k).
    estimates = derivative_weights([float(levels.log_snr[point] - levels.log_snr[start]) / h for point in points])
    factors = [1.0, *(1 + c * h for c in relaxation), *[1.0] * (order - 1 - len(relaxation))]
    terms = [gain * phi(k + 1, z) * factor for k, factor in enumerate(factors)]
    return keep, [math.fsum(term * w for term, w in zip(terms, column, strict=True)) for column in estimates[:order].T.tolist()]
