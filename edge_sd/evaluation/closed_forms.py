"""Cases in which what a measure must read is known without it: what `edge-sd selftest` checks on the machine it runs on."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from edge_sd.evaluation.distances import Gaussian, frechet_distance, kernel_distance
from edge_sd.evaluation.manifold import precision_recall
from edge_sd.evaluation.metrics import SAME_DB, band_snr_db, psnr_db, snr_db, ssim
from edge_sd.evaluation.spectrum import spectrum_gap_db
from edge_sd.evaluation.wasserstein import sliced_wasserstein

_SHAPES = ((7,), (3, 8, 8), (1, 4, 16, 16), (2, 3, 5, 7))
_DB = 72.0


@dataclass(frozen=True)
class ClosedForm:
    """One case: what was measured and what it must read."""

    what: str
    found: float
    expected: float
    tolerance: float = 1e-9

    @property
    def holds(self) -> bool:
        """Whether it reads that."""
        return abs(self.found - self.expected) <= self.tolerance


def closed_forms() -> list[ClosedForm]:
    """Measure every case."""
    return [*_decibels(), *_similarity(), *_distances()]


def _decibels() -> Iterator[ClosedForm]:
    rng = np.random.default_rng(0)
    share = 10 ** (-_DB / 20)  # of the amplitude
    for shape in _SHAPES:
        x = rng.standard_normal(shape)
        yield ClosedForm(f"SNR of a pair {_DB:g} dB apart, shape {shape}", snr_db(x, x * (1 + share)), _DB)
        # A constant difference d has the mean square d², and the peak is the range, 2.
        inside = np.clip(x, -0.9, 0.9)
        yield ClosedForm(f"PSNR of a pair {_DB:g} dB apart, shape {shape}", psnr_db(inside, inside + 2 * share), _DB)
    x = rng.standard_normal((3, 32, 32))
    yield ClosedForm("SNR of a pair in float32", snr_db(np.float32(x), np.float32(x * (1 + share))), _DB, 0.05)
    yield ClosedForm("SNR of equal arrays", snr_db(x, x), SAME_DB)
    yield ClosedForm("SNR where a value is not finite", snr_db(x, np.full_like(x, np.nan)), -SAME_DB)
    for name, value in band_snr_db(x, x * (1 + share)).items():
        yield ClosedForm(f"SNR in band {name}", value, _DB)
    # +1 and −1 in turn along both axes is HH of the finest level alone.
    checkers = share * (-1.0) ** np.add.outer(np.arange(32), np.arange(32))
    bands = band_snr_db(x, x + checkers)
    elsewhere = min(value for name, value in bands.items() if name != "HH1")
    signal = np.sum((x[:, ::2, ::2] - x[:, ::2, 1::2] - x[:, 1::2, ::2] + x[:, 1::2, 1::2]) ** 2) / 4
    yield ClosedForm("SNR of a checkerboard in HH1", bands["HH1"], 10 * np.log10(signal / (3 * 32 * 32 * share**2)), 1e-6)
    yield ClosedForm("SNR of a checkerboard in the other bands", elsewhere, SAME_DB, 10)


def _similarity() -> Iterator[ClosedForm]:
    x = np.random.default_rng(1).uniform(-1, 1, (3, 16, 16))
    yield ClosedForm("SSIM of equal images", ssim(x, x) or 0.0, 1.0)
    # Flat images differ in luminance alone: (2ab + C₁)/(a² + b² + C₁), C₁ = (0.01 · 2)².
    a, b, c1 = 0.5, 0.25, 0.02**2
    flat = ssim(np.full((1, 16, 16), a), np.full((1, 16, 16), b)) or 0.0
    yield ClosedForm("SSIM of two flat images", flat, (2 * a * b + c1) / (a * a + b * b + c1))
    yield ClosedForm(
        "gap of a spectrum with twice the power", spectrum_gap_db(x[None], x[None] * np.sqrt(2)), 10 * np.log10(2), 1e-6
    )


def _distances() -> Iterator[ClosedForm]:
    # |μ₁ − μ₂|² + Tr(Σ₁ + Σ₂ − 2(Σ₁Σ₂)^½): (3² + 4²) + 5 · (1 + 4 − 2 · 2)
    first = Gaussian.from_covariance(np.zeros(5), np.eye(5))
    second = Gaussian.from_covariance(np.array([3.0, 4.0, 0, 0, 0]), 4 * np.eye(5))
    yield ClosedForm("Fréchet distance of two Gaussians", frechet_distance(first, second), 30.0, 1e-8)
    # All of one set at a, all of the other at b: k(a, a) + k(b, b) − 2 k(a, b), k = (a·b/d + 1)³, d = 4.
    a, b = np.array([1.0, 1, 1, 1]), np.array([1.0, 1, -1, -1])
    distance = kernel_distance(np.tile(a, (10, 1)), np.tile(b, (10, 1)), subsets=2, subset_size=10).value
    yield ClosedForm("kernel distance of two points", distance, 8 + 8 - 2 * 1, 1e-9)
    points = np.random.default_rng(2).standard_normal((50, 1))
    yield ClosedForm("sliced Wasserstein distance of a shift", sliced_wasserstein(points, points + 0.7), 0.7, 1e-6)
    precision, recall = precision_recall(points, points + 100)
    yield ClosedForm("precision and recall of sets apart", precision.value + recall.value, 0.0)
    precision, recall = precision_recall(points, points)
    yield ClosedForm("precision and recall of equal sets", precision.value + recall.value, 2.0)
