"""Distances between two sets of features: Fréchet (FID's) and kernel (KID's), in float64.

Sources: Heusel et al. 2017, 1706.08500, equation 6 (Fréchet); Bińkowski et al. 2018, 1801.01401, section 4 (kernel); Gretton et
al. 2012, JMLR 13, equation 3 (unbiased MMD²).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_sd.errors import EdgeSDError, UsageError

Float64 = NDArray[np.float64]

FRECHET_DEFINITION = (
    "|μ₁ − μ₂|² + tr(Σ₁ + Σ₂ − 2(Σ₁Σ₂)^½), covariances over n − 1; biased upward at finite n: compare at equal n only"
)
KERNEL_DEFINITION = (
    "unbiased MMD² with k(x, y) = (x·y/d + 1)³, mean over subsets of equal size; ± is a jackknife over groups of images"
)

# Rows of a kernel that are held at a time.
_BLOCK = 1024
# Groups of images that the jackknife leaves out in turn.
_GROUPS = 20


@dataclass(frozen=True)
class Estimate:
    """A figure, how far chance may have moved it, and how far its subsets lie apart.

    Attributes:
        value: the figure.
        standard_error: of the value, over another draw of the same number of images; None where there is no estimate.
        spread: standard deviation over subsets of smaller size: what other tools print behind a KID; None where there are none.
    """

    value: float
    standard_error: float | None = None
    spread: float | None = None


def check_features(features: NDArray[np.floating], name: str = "features", least: int = 2) -> Float64:
    """(n, d), finite, as float64.

    Raises:
        EdgeSDError: another shape, a NaN or an infinity, or fewer than `least` rows.
    """
    values = np.asarray(features, np.float64)
    if values.ndim != 2 or not values.shape[1]:
        raise EdgeSDError(f"{name} are (n, d), not {values.shape}", "one row an image")
    if not np.isfinite(values).all():
        raise EdgeSDError(f"{name} hold a NaN or an infinity", "look at the images and at the feature extractor")
    if len(values) < least:
        raise UsageError(f"{len(values)} {name} are too few: at least {least} are needed", f"give -n {least} or more")
    return values


# Fréchet


@dataclass(frozen=True)
class Gaussian:
    """A normal distribution by its mean and a root of its covariance.

    The root is kept in place of Σ itself: for n ≤ d it is the centred features, and where n > d their triangular factor, so
    nothing is squared and a singular covariance costs no digits.

    Attributes:
        mean: (d,).
        root: R, (r, d), with Σ = RᵀR and r ≤ min(n, d).
    """

    mean: Float64
    root: Float64

    @classmethod
    def of(cls, features: NDArray[np.floating]) -> "Gaussian":
        """Fit it to features (n, d), n ≥ 2, the covariance over n − 1."""
        values = check_features(features)
        mean = values.mean(0)
        centred = (values - mean) / np.sqrt(len(values) - 1)
        return cls(mean, np.asarray(np.linalg.qr(centred, mode="r")) if len(centred) > len(mean) else centred)

    @classmethod
    def from_covariance(cls, mean: NDArray[np.floating], covariance: NDArray[np.floating]) -> "Gaussian":
        """From moments that are known: mean (d,), covariance (d, d), symmetric and positive semi-definite.

        Raises:
            EdgeSDError: it is not.
        """
        sigma = np.asarray(covariance, np.float64)
        if sigma.ndim != 2 or sigma.shape[0] != sigma.shape[1] or not np.allclose(sigma, sigma.T):
            raise EdgeSDError(f"a covariance is symmetric, unlike this {sigma.shape} matrix", "give np.cov(…, rowvar=False)")
        values, vectors = np.linalg.eigh(sigma)
        if values[0] < -1e-8 * max(abs(values[-1]), 1e-300):
            raise EdgeSDError(f"a covariance has no negative eigenvalue, this one has {values[0]:g}", "give np.cov(…)")
        return cls(np.asarray(mean, np.float64), np.sqrt(np.clip(values, 0, None))[:, None] * vectors.T)


def frechet_distance(real: Gaussian, generated: Gaussian) -> float:
    """Squared Fréchet (2-Wasserstein) distance of two normal distributions; ≥ 0, and 0 where they are equal.

    tr (Σ₁Σ₂)^½ is the sum of the singular values of R₁R₂ᵀ: no square root of a matrix, which has none where it is singular.

    Raises:
        EdgeSDError: features of different widths.
    """
    if real.mean.shape != generated.mean.shape:
        raise EdgeSDError(f"features of widths {len(real.mean)} and {len(generated.mean)}", "use the same features for both")
    mixed = np.linalg.svd(real.root @ generated.root.T, compute_uv=False).sum()
    difference = real.mean - generated.mean
    distance = difference @ difference + np.sum(real.root**2) + np.sum(generated.root**2) - 2 * mixed
    return max(float(distance), 0.0)


# Kernel


def kernel_distance(
    real: NDArray[np.floating], generated: NDArray[np.floating], *, subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> Estimate:
    """Kernel distance of two sets of features: MMD² with a cubic polynomial kernel, unbiased, so it may be a little below 0.

    Args:
        real, generated: (n, d) and (m, d).
        subsets, subset_size: the value is the mean over so many subsets, drawn without replacement within each.
        seed: of the subsets.

    Returns:
        The mean over subsets; its standard error, by a jackknife over 20 groups of images at the full n and m; and the standard
        deviation over subsets.

    Raises:
        UsageError: a subset is smaller than 2 or larger than either set.
        EdgeSDError: features that are not (n, d) and finite, or of different widths.
    """
    x, y = check_features(real), check_features(generated)
    if x.shape[1] != y.shape[1]:
        raise EdgeSDError(f"features of widths {x.shape[1]} and {y.shape[1]}", "use the same features for both")
    least = min(len(x), len(y))
    if not 2 <= subset_size <= least or subsets < 1:
        raise UsageError(
            f"{subsets} subsets of {subset_size} cannot be drawn from {least} images",
            f"give more images, or --kid-subset-size {least} or less (the usual 1000 is what others report)",
        )
    rng = np.random.default_rng(seed)
    groups = min(_GROUPS, least) if least > 2 else 0  # two at least are left behind
    chosen = [
        np.concatenate([_subsets(len(values), subsets, subset_size, rng), _without_a_group(len(values), groups)], axis=1)
        for values in (x, y)
    ]
    # Every subset, and everything but a group, is a column of weights: one pass over the kernel serves all of them.
    within = []
    for values, weights in zip((x, y), chosen, strict=True):
        counts, diagonal = weights.sum(0), _cubic(np.einsum("nd,nd->n", values, values), values.shape[1])
        within.append((_weighted(values, values, weights, weights) - diagonal @ weights) / (counts * (counts - 1)))
    across = _weighted(x, y, *chosen) / (chosen[0].sum(0) * chosen[1].sum(0))
    mmd = within[0] + within[1] - 2 * across
    drawn, left_out = mmd[:subsets], mmd[subsets:]
    error = None
    if groups:
        of_images = (groups - 1) / groups * np.sum((left_out - left_out.mean()) ** 2)
        of_subsets = drawn.var(ddof=1) / subsets if subsets > 1 else 0.0  # which ones happened to be drawn
        error = float(np.sqrt(of_images + of_subsets))
    return Estimate(float(drawn.mean()), error, float(drawn.std()))


def _cubic(products: Float64, width: int) -> Float64:
    cubed: Float64 = (products / width + 1) ** 3
    return cubed


def _subsets(count: int, subsets: int, size: int, rng: np.random.Generator) -> Float64:
    """Weights (count, subsets): 1 where an image is in a subset."""
    weights = np.zeros((count, subsets))
    for column in range(subsets):
        weights[rng.choice(count, size, replace=False), column] = 1
    return weights


def _without_a_group(count: int, groups: int) -> Float64:
    """Weights (count, groups): 0 where an image is in a group, image i in group i mod groups."""
    kept: Float64 = (np.arange(count)[:, None] % max(groups, 1) != np.arange(groups)).astype(np.float64)
    return kept


def _weighted(x: Float64, y: Float64, left: Float64, right: Float64) -> Float64:
    """Σᵢⱼ leftᵢₛ k(xᵢ, yⱼ) rightⱼₛ for each column s, (S,); a block of the kernel at a time."""
    total = np.zeros(left.shape[1])
    for start in range(0, len(x), _BLOCK):
        rows = slice(start, start + _BLOCK)
        total += np.sum(left[rows] * (_cubic(x[rows] @ y.T, x.shape[1]) @ right), 0)
    return total
