"""UniPC (2302.04867) of order 2, B(h) = e^h − 1 ("bh2"), predictor and corrector, in x0.

The corrector needs the prediction at the new point, which is the next row's: so it acts there, on `base`, at no extra cost.
"""

import math

import numpy as np

from edge_sd.diffusion.plan import Prediction
from edge_sd.diffusion.solvers._base import Levels, Row, Solver, to_x0


class UniPC2(Solver):
    """Order 1 at both ends (nothing to look back on, and an infinite λ), order 2 between."""

    name = "unipc"
    about = "UniPC-2 (bh2) with its corrector, 2nd order multistep"
    includes_end = False

    def rows(self, levels: Levels, prediction: Prediction, eta: float) -> list[Row]:
        self._no_eta(eta)
        steps = len(levels.alpha) - 1
        order = [min(2, i + 1, steps - i) for i in range(steps)]
        rows = []
        for i in range(steps):
            row = Row(*to_x0(prediction, float(levels.alpha[i]), float(levels.sigma[i])))
            if i:
                row.u = 0.0
                row.a, row.b = _corrected(levels, i - 1, order[i - 1])
            row.a_next, row.b_next = _predicted(levels, i, order[i])
            rows.append(row)
        return rows


def _predicted(levels: Levels, i: int, order: int) -> tuple[float, list[float]]:
    """Weights (of base, of the history) of the predictor from level i to i + 1."""
    lam = levels.log_snr
    gain = -float(levels.alpha[i + 1]) * math.expm1(-float(lam[i + 1] - lam[i]))
    keep = float(levels.sigma[i + 1] / levels.sigma[i])
    if order == 1:
        return keep, [gain]
    r = float((lam[i] - lam[i - 1]) / (lam[i + 1] - lam[i]))
    return keep, [gain * (1 + 0.5 / r), -gain * 0.5 / r]


def _corrected(levels: Levels, i: int, order: int) -> tuple[float, list[float]]:
    """Weights (of base, of the history with the prediction at i + 1 first) of the corrector from level i to i + 1."""
    lam = levels.log_snr
    h = float(lam[i + 1] - lam[i])
    growth = math.expm1(-h)  # B(−h), and φ_1·(−h)
    gain = -float(levels.alpha[i + 1]) * growth
    keep = float(levels.sigma[i + 1] / levels.sigma[i])
    if order == 1:
        return keep, [gain * 0.5, gain * 0.5]
    r = float((lam[i - 1] - lam[i]) / h)  # negative: the older point lies behind
    # Σ_k ρ_k r_k^{j−1} = j!·φ_{j+1}(−h)/B for j = 1, 2 and the points r and 1 (equation 10).
    phi_2 = growth / -h - 1
    phi_3 = phi_2 / -h - 0.5
    older, newest = np.linalg.solve(np.array([[1.0, 1.0], [r, 1.0]]), np.array([phi_2, 2 * phi_3]) / growth)
    return keep, [gain * float(newest), gain * float(1 - newest - older / r), gain * float(older / r)]
