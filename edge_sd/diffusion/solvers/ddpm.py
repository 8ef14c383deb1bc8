"""DDPM's ancestral sampling (2006.11239): the posterior mean of equation 7 and its variance β̃; it remembers x0."""

import math

from edge_sd.diffusion.plan import Prediction
from edge_sd.diffusion.solvers._base import Levels, Row, Solver, to_x0


class DDPM(Solver):
    """Draws x_s from q(x_s | x_t, x̂_0) between any two levels; the last step is noise-free."""

    name = "ddpm"
    about = "DDPM ancestral sampling, stochastic"

    def rows(self, levels: Levels, prediction: Prediction, eta: float) -> list[Row]:
        self._no_eta(eta)
        rows = []
        for i in range(len(levels.alpha) - 1):
            alpha, sigma, alpha_next, sigma_next = (
                float(v) for v in (levels.alpha[i], levels.sigma[i], levels.alpha[i + 1], levels.sigma[i + 1])
            )
            ratio = alpha / alpha_next  # √(ᾱ_t / ᾱ_s)
            beta = 1 - ratio**2
            p, q = to_x0(prediction, alpha, sigma)
            std = math.sqrt(beta) * sigma_next / sigma
            rows.append(Row(p, q, a_next=ratio * sigma_next**2 / sigma**2, b_next=[alpha_next * beta / sigma**2], c=std))
        return rows
