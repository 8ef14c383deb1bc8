"""DPM-Solver++(2M) (2211.01095, algorithm 2): multistep, second order, in x0."""

import math

from edge_sd.diffusion.plan import Prediction
from edge_sd.diffusion.solvers._base import Levels, Row, Solver, to_x0


class DPMSolverPlusPlus2M(Solver):
    """The first step and the step to the clean image (whose λ is infinite) are first order."""

    name = "dpmpp"
    about = "DPM-Solver++(2M), 2nd order multistep"
    includes_end = False

    def rows(self, levels: Levels, prediction: Prediction, eta: float) -> list[Row]:
        self._no_eta(eta)
        rows = []
        steps = len(levels.alpha) - 1
        lam = levels.log_snr
        for i in range(steps):
            alpha, sigma, alpha_next, sigma_next = (
                float(v) for v in (levels.alpha[i], levels.sigma[i], levels.alpha[i + 1], levels.sigma[i + 1])
            )
            p, q = to_x0(prediction, alpha, sigma)
            h = float(lam[i + 1] - lam[i])
            gain = -alpha_next * math.expm1(-h)
            if i in (0, steps - 1):
                weights = [gain]
            else:
                r = float(lam[i] - lam[i - 1]) / h
                weights = [gain * (1 + 0.5 / r), -gain * 0.5 / r]
            rows.append(Row(p, q, a_next=sigma_next / sigma, b_next=weights))
        return rows
