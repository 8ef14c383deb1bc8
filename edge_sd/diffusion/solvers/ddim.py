"""DDIM (2010.02502): equation 12 with σ of equation 16, scaled by η; it remembers ε."""

import math

from edge_sd.diffusion.plan import Prediction
from edge_sd.diffusion.solvers._base import Levels, Row, Solver, to_epsilon


class DDIM(Solver):
    """η = 0 is deterministic; η = 1 adds as much noise as ancestral sampling."""

    name = "ddim"
    about = "DDIM, 1st order; --eta 0 (deterministic) to 1 (as DDPM)"

    def rows(self, levels: Levels, prediction: Prediction, eta: float) -> list[Row]:
        rows = []
        for i in range(len(levels.alpha) - 1):
            alpha, sigma, alpha_next, sigma_next = (
                float(v) for v in (levels.alpha[i], levels.sigma[i], levels.alpha[i + 1], levels.sigma[i + 1])
            )
            std = eta * sigma_next / sigma * math.sqrt(max(1 - (alpha / alpha_next) ** 2, 0.0))
            p, q = to_epsilon(prediction, alpha, sigma)
            shrink = alpha_next / alpha
            direction = math.sqrt(max(sigma_next**2 - std**2, 0.0)) - shrink * sigma
            rows.append(Row(p, q, a_next=shrink, b_next=[direction], c=std))
        return rows
