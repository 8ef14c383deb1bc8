"""A light regressor that looks over candidates before they are tried: a Gaussian process on what their plans do.

Of a few hundred trials it is the nearest ones that tell how a candidate will do, and the distance to them how well that is known
(Rasmussen and Williams 2006, equations 2.25 and 2.26). USF (2312.07243, section 4.2) has a small network here. On this space's
trials ridge regressions, linear or on random features, ranked what was tried next no better than chance; this ranks it at 0.5.
"""

from dataclasses import dataclass

import numpy as np

from edge_sd.diffusion.plan import Float64

LENGTHS = (0.25, 0.5, 1.0, 2.0)  # of the kernel, in √d deviations of an entry
NOISES = (1e-3, 1e-2, 1e-1, 1.0)  # variance of what no plan explains, in that of what it does
_FLOOR = 3e-3  # of an entry's deviation: one that hardly differs among the trials is not made much of where it does
_LEAST = 1e-12


@dataclass(frozen=True)
class Predictor:
    """Fitted by `Predictor.fit`; predicts values from vectors.

    Attributes:
        centre, scale: of the vectors.
        length, noise: of `LENGTHS` and `NOISES`, or given.
        inputs: (n, d) the vectors it was fitted to, standardised.
        inverse: (n, n) of the kernel with the noise on its diagonal.
        level, amplitude: of the values: their mean, and the deviation of the process.
        weights: (n,) of the kernels to each of them.
    """

    centre: Float64
    scale: Float64
    length: float
    noise: float
    inputs: Float64
    inverse: Float64
    level: float
    amplitude: float
    weights: Float64

    @classmethod
    def fit(cls, vectors: Float64, values: Float64, length: float | None = None, noise: float | None = None) -> "Predictor":
        """Fit to vectors (n, d), whose entries are about 1 or less, and their values (n,).

        Args:
            length, noise: those under which the values are likeliest, if left out (equation 5.8, its amplitude the best).
        """
        centre, scale, level = vectors.mean(0), np.hypot(vectors.std(0), _FLOOR), float(values.mean())
        inputs, n, target = (vectors - centre) / scale, len(values), values - level
        best: tuple[float, float, float, Float64, Float64, float] | None = None
        for one_length in LENGTHS if length is None else (length,):
            own, basis = np.linalg.eigh(_kernel(inputs, inputs, one_length))  # noise moves eigenvalues alone
            turned = (basis.T @ target) ** 2
            for one_noise in NOISES if noise is None else (noise,):
                eigenvalues = np.maximum(own, 0.0) + one_noise
                variance = max(float((turned / eigenvalues).sum()) / n, _LEAST)
                surprise = n * np.log(variance) + float(np.log(eigenvalues).sum())
                if best is None or surprise < best[0]:
                    best = surprise, one_length, one_noise, eigenvalues, basis, variance
        assert best is not None  # noqa: S101 (neither grid is empty)
        _, length, noise, eigenvalues, basis, variance = best
        inverse: Float64 = (basis / eigenvalues) @ basis.T
        return cls(centre, scale, length, noise, inputs, inverse, level, float(np.sqrt(variance)), inverse @ target)

    def __call__(self, vectors: Float64) -> tuple[Float64, Float64]:
        """Predict: mean (m,) and standard deviation (m,) of what a plan explains."""
        cross = _kernel((vectors - self.centre) / self.scale, self.inputs, self.length)
        known = np.einsum("mn,mn->m", cross @ self.inverse, cross)
        deviation: Float64 = self.amplitude * np.sqrt(np.maximum(1 - known, 0.0))
        return self.level + cross @ self.weights, deviation


def _kernel(x: Float64, y: Float64, length: float) -> Float64:
    """exp(−‖x − y‖²/2l²), l in √d."""
    squares = np.sum(x**2, 1)[:, None] + np.sum(y**2, 1) - 2 * (x @ y.T)
    kernel: Float64 = np.exp(-np.maximum(squares, 0.0) / (2 * length**2 * x.shape[1]))
    return kernel


def rank_correlation(predicted: Float64, found: Float64) -> float | None:
    """Spearman's, ties in the order given; None of fewer than three points."""
    if len(found) < 3:
        return None
    ranks = [np.argsort(np.argsort(values)).astype(np.float64) for values in (predicted, found)]
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])
