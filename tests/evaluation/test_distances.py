"""Fréchet and kernel distance against closed forms, against torchmetrics on the same features, and as properties."""

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance, poly_mmd

from edge_sd.errors import EdgeSDError, UsageError
from edge_sd.evaluation import Gaussian, frechet_distance, kernel_distance
from edge_sd.evaluation.distances import check_features


def features(seed: int, n: int = 200, d: int = 12, shift: float = 0.0, scale: float = 1.0) -> np.ndarray:
    """Correlated, skewed features (n, d)."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).standard_normal((d, d)) / np.sqrt(d)
    return scale * np.maximum(rng.standard_normal((n, d)) @ mixing, -0.3) + shift


class Passed(torch.nn.Module):
    """An extractor that hands its input on: torchmetrics then measures features of ours."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_features = width

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.ndim == 2 else x.flatten(1)[:, : self.num_features]


# Fréchet


@pytest.mark.parametrize(("n", "d"), [(200, 12), (500, 64), (64, 64), (65, 64)])
def test_frechet_distance_is_that_of_torchmetrics(n: int, d: int) -> None:
    real, generated = features(0, n, d), features(1, n, d, shift=0.1, scale=1.2)
    theirs = FrechetInceptionDistance(feature=Passed(d), input_img_size=(3, 8, 8)).set_dtype(torch.float64)
    theirs.update(torch.from_numpy(real), real=True)
    theirs.update(torch.from_numpy(generated), real=False)
    ours = frechet_distance(Gaussian.of(real), Gaussian.of(generated))
    assert ours == pytest.approx(float(theirs.compute()), abs=1e-6)


@pytest.mark.parametrize(("n", "d"), [(200, 12), (300, 40)])
def test_frechet_distance_is_its_formula_by_a_matrix_square_root(n: int, d: int) -> None:
    real, generated = features(2, n, d), features(3, n, d, scale=0.7)
    first, second = np.cov(real, rowvar=False), np.cov(generated, rowvar=False)
    formula = np.sum((real.mean(0) - generated.mean(0)) ** 2) + np.trace(
        first + second - 2 * scipy.linalg.sqrtm(first @ second).real
    )
    assert frechet_distance(Gaussian.of(real), Gaussian.of(generated)) == pytest.approx(formula, abs=1e-8)


def test_frechet_distance_of_commuting_gaussians_is_closed() -> None:
    """Of diagonal covariances: |μ₁ − μ₂|² + Σ (σ₁ − σ₂)²."""
    sigma, other = np.array([1.0, 2.0, 0.5]), np.array([3.0, 1.0, 0.0])
    first = Gaussian.from_covariance(np.array([1.0, 0, 0]), np.diag(sigma**2))
    second = Gaussian.from_covariance(np.array([0.0, 0, 2]), np.diag(other**2))
    assert frechet_distance(first, second) == pytest.approx(5 + np.sum((sigma - other) ** 2), abs=1e-12)


def test_frechet_distance_of_samples_nears_that_of_their_source() -> None:
    rng = np.random.default_rng(0)
    real, generated = rng.standard_normal((20_000, 4)), 2 * rng.standard_normal((20_000, 4)) + 1
    assert frechet_distance(Gaussian.of(real), Gaussian.of(generated)) == pytest.approx(4 + 4, rel=0.03)


def test_a_shift_is_its_square_also_where_covariances_are_singular() -> None:
    """20 points in 64 dimensions span 19: a square root of the product would lose half the digits."""
    real = features(0, 20, 64)
    shift = np.random.default_rng(5).standard_normal(64)
    assert frechet_distance(Gaussian.of(real), Gaussian.of(real + shift)) == pytest.approx(shift @ shift, abs=1e-9)
    assert frechet_distance(Gaussian.of(real), Gaussian.of(real)) == pytest.approx(0, abs=1e-10)


def test_singular_covariances_give_what_a_rotation_into_their_span_gives() -> None:
    """Features that fill 5 of 30 dimensions have the distance of the 5 alone."""
    real, generated = features(0, 100, 5), features(1, 100, 5, scale=2)
    basis = np.linalg.qr(np.random.default_rng(0).standard_normal((30, 5)))[0].T
    inside = frechet_distance(Gaussian.of(real), Gaussian.of(generated))
    assert frechet_distance(Gaussian.of(real @ basis), Gaussian.of(generated @ basis)) == pytest.approx(inside, abs=1e-9)


def test_moments_and_features_give_the_same_gaussian() -> None:
    values = features(4)
    by_moments = Gaussian.from_covariance(values.mean(0), np.cov(values, rowvar=False))
    assert frechet_distance(Gaussian.of(values), by_moments) == pytest.approx(0, abs=1e-10)


@pytest.mark.parametrize("matrix", [np.array([[1.0, 0.5], [0, 1]]), np.diag([1.0, -1.0]), np.ones((2, 3))])
def test_what_is_no_covariance_is_refused(matrix: np.ndarray) -> None:
    with pytest.raises(EdgeSDError, match="covariance"):
        Gaussian.from_covariance(np.zeros(2), matrix)


# Kernel


@pytest.mark.filterwarnings("ignore:Metric `Kernel:UserWarning")  # of memory
def test_kernel_distance_is_that_of_torchmetrics() -> None:
    """Over subsets as large as the sets there is but one subset, whatever draws it."""
    real, generated = features(0), features(1, shift=0.1)
    theirs = KernelInceptionDistance(feature=Passed(12), subsets=3, subset_size=200).set_dtype(torch.float64)
    theirs.update(torch.from_numpy(real), real=True)
    theirs.update(torch.from_numpy(generated), real=False)
    ours = kernel_distance(real, generated, subsets=3, subset_size=200)
    assert ours.value == pytest.approx(float(theirs.compute()[0]), abs=1e-9)
    assert ours.spread == pytest.approx(0, abs=1e-9)


def test_every_subset_is_that_of_torchmetrics() -> None:
    """Mean and spread over the very subsets that are drawn here."""
    real, generated = features(0, 90), features(1, 70, scale=1.3)
    rng = np.random.default_rng(7)
    chosen = []
    for count in (90, 70):
        chosen.append([rng.choice(count, 30, replace=False) for _ in range(11)])
    each = [
        float(poly_mmd(torch.from_numpy(real[left]), torch.from_numpy(generated[right])))
        for left, right in zip(*chosen, strict=True)
    ]
    ours = kernel_distance(real, generated, subsets=11, subset_size=30, seed=7)
    assert ours.value == pytest.approx(np.mean(each), abs=1e-9)
    assert ours.spread == pytest.approx(np.std(each), abs=1e-9)


def test_kernel_distance_of_two_points_each_is_its_formula() -> None:
    x, y = np.array([[1.0, 0], [0, 2]]), np.array([[1.0, 1], [3, 0]])

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return float((a @ b / 2 + 1) ** 3)

    across = np.mean([kernel(a, b) for a in x for b in y])
    found = kernel_distance(x, y, subsets=1, subset_size=2)
    assert found.value == pytest.approx(kernel(*x) + kernel(*y) - 2 * across)
    assert found.standard_error is None  # without one of two images there is nothing to compare


def test_three_images_are_enough_for_an_error() -> None:
    assert kernel_distance(features(0, 3), features(1, 3), subset_size=3).standard_error > 0


def test_kernel_distance_between_draws_of_one_source_is_nothing_within_its_error() -> None:
    """Unbiased: the mean over many pairs of draws is 0, and the errors say how far each is off."""
    found = [kernel_distance(features(2 * i), features(2 * i + 1), subsets=4, subset_size=200) for i in range(60)]
    values = np.array([one.value for one in found])
    errors = np.array([one.standard_error for one in found])
    assert abs(values.mean()) < 3 * values.std() / np.sqrt(60)
    assert 0.7 * values.std() < errors.mean() < 2.5 * values.std()


def test_the_error_of_a_distance_that_is_there_is_its_scatter() -> None:
    found = [kernel_distance(features(2 * i), features(2 * i + 1, shift=0.2), subsets=1, subset_size=200) for i in range(60)]
    scatter = np.std([one.value for one in found])
    assert np.mean([one.standard_error for one in found]) == pytest.approx(scatter, rel=0.35)


def test_the_kernel_goes_through_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    real, generated = features(0), features(1)
    whole = kernel_distance(real, generated, subsets=5, subset_size=50)
    monkeypatch.setattr("edge_sd.evaluation.distances._BLOCK", 37)
    blocks = kernel_distance(real, generated, subsets=5, subset_size=50)
    assert blocks.value == pytest.approx(whole.value, abs=1e-12)
    assert blocks.standard_error == pytest.approx(whole.standard_error, abs=1e-12)


def test_the_seed_alone_chooses_the_subsets() -> None:
    real, generated = features(0), features(1)
    one, again, other = (kernel_distance(real, generated, subsets=5, subset_size=50, seed=seed) for seed in (3, 3, 4))
    assert one == again
    assert one.value != other.value


# Of both

SETS = st.tuples(st.integers(0, 2**32), st.integers(6, 40), st.integers(1, 8), st.floats(-2, 2), st.floats(0.1, 3))


@given(SETS)
def test_distances_are_symmetric_and_do_not_see_an_order(drawn: tuple[int, int, int, float, float]) -> None:
    seed, n, d, shift, scale = drawn
    real, generated = features(seed, n, d), features(seed + 1, n, d, shift, scale)
    order = np.random.default_rng(seed).permutation(n)
    fd = frechet_distance(Gaussian.of(real), Gaussian.of(generated))
    kd = kernel_distance(real, generated, subsets=1, subset_size=n).value
    slack = 1e-9 * (1 + abs(fd) + abs(kd) + np.abs(real).max() ** 6 + np.abs(generated).max() ** 6)
    assert frechet_distance(Gaussian.of(generated), Gaussian.of(real[order])) == pytest.approx(fd, abs=slack)
    assert kernel_distance(generated, real[order], subsets=1, subset_size=n).value == pytest.approx(kd, abs=slack)
    assert fd >= 0


@pytest.mark.parametrize(("n", "size"), [(10, 11), (10, 1000), (10, 1)])
def test_too_few_images_for_a_subset_are_an_error_with_both_numbers(n: int, size: int) -> None:
    with pytest.raises(UsageError, match=rf"of {size} cannot be drawn from {n} images") as raised:
        kernel_distance(features(0, n), features(1, n + 5), subset_size=size)
    assert f"--kid-subset-size {n}" in raised.value.hint


def test_one_image_has_no_covariance() -> None:
    with pytest.raises(UsageError, match="1 features are too few: at least 2"):
        Gaussian.of(np.zeros((1, 4)))


def test_features_of_other_widths_are_not_compared() -> None:
    with pytest.raises(EdgeSDError, match="widths 12 and 5"):
        kernel_distance(features(0), features(1, d=5), subset_size=10)
    with pytest.raises(EdgeSDError, match="widths 12 and 5"):
        frechet_distance(Gaussian.of(features(0)), Gaussian.of(features(1, d=5)))


@pytest.mark.parametrize("bad", [np.full((4, 2), np.nan), np.full((4, 2), np.inf), np.zeros(4), np.zeros((4, 0))])
def test_what_are_no_features_is_refused(bad: np.ndarray) -> None:
    with pytest.raises(EdgeSDError):
        check_features(bad)
