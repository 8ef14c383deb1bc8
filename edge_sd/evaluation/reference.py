"""Real images, analysed once, and any number of sets of samples measured against them.

    reference = Reference.of(pixels, features=load_features("package.module:Features", size=128))
    figures, spectra = reference.measure(sample_pixels)          # both (n, 3, H, W) uint8, of the same n
    evaluation = reference.evaluate(sample_pixels, origin)       # the same as a record that can be written

`rgb_pixels` turns float samples in [−1, 1] into such pixels; `choose` takes n images of a data set.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from edge_sd.checkpoint import versions
from edge_sd.errors import EdgeSDError, UsageError
from edge_sd.evaluation.distances import (
    FRECHET_DEFINITION,
    KERNEL_DEFINITION,
    Estimate,
    Gaussian,
    frechet_distance,
    kernel_distance,
)
from edge_sd.evaluation.features import Features, extract
from edge_sd.evaluation.manifold import PRECISION_DEFINITION, RECALL_DEFINITION, precision_recall
from edge_sd.evaluation.record import Evaluation, FeatureIdentity, Figure, Origin, RealImages, Spectra
from edge_sd.evaluation.spectrum import GAP_DEFINITION, radial_powers, spectrum_gap
from edge_sd.evaluation.wasserstein import DEFINITION as SWD_DEFINITION
from edge_sd.evaluation.wasserstein import BandPatches, band_distances, band_patches, levels_of
from edge_sd.validation import Record

if TYPE_CHECKING:
    from edge_sd.data import ImageData

Pixels = NDArray[np.uint8]
Observe = Callable[[int, int], None]


class EvaluationSettings(Record):
    """What the figures depend on besides the images.

    Attributes:
        kid_subsets, kid_subset_size: see `kernel_distance`; 100 of 1000 is what torch-fidelity and the paper's code take.
        neighbours: of precision and recall.
        wavelet, levels: of the bands; fewer levels where the images are small.
        seed: of the subsets, patches, projections and resamples.
    """

    kid_subsets: int = Field(default=100, ge=1)
    kid_subset_size: int = Field(default=1000, ge=2)
    neighbours: int = Field(default=3, ge=1)
    wavelet: str = "haar"
    levels: int = Field(default=3, ge=1)
    seed: int = Field(default=0, ge=0, lt=2**63)


@dataclass(frozen=True)
class Reference:
    """n real images and what they are measured by.

    Attributes:
        real: where they come from.
        size: height and width.
        n: how many, and how many samples every comparison takes.
        features: the extractor; None for the figures that need none.
        rows: their features (n, D), where there is an extractor.
    """

    real: RealImages
    size: int
    n: int
    settings: EvaluationSettings
    features: Features | None
    rows: NDArray[np.float32] | None
    gaussian: Gaussian | None
    patches: BandPatches
    frequencies: NDArray[np.float64]
    powers: NDArray[np.float64]

    @classmethod
    def of(
        cls,
        pixels: Pixels,
        features: Features | None = None,
        settings: EvaluationSettings | None = None,
        *,
        real: RealImages | None = None,
        batch_size: int = 64,
        observe: Observe = lambda done, total: None,
    ) -> "Reference":
        """Analyse real images.

        Args:
            pixels: (n, 3, H, W) uint8, H = W; see `choose`.
            features: what Fréchet and kernel distance, precision and recall are taken by; without it these are left out.
            real: where they come from, as `choose` says it.
            observe: called with (images done, images in all) of the features.

        Raises:
            UsageError: too few images for a figure that is asked for.
        """
        settings = settings or EvaluationSettings()
        check_pixels(pixels, "real images")
        check_enough(len(pixels), features, settings)
        rows = None if features is None else extract(features, pixels, batch_size=batch_size, observe=observe)
        levels = levels_of(pixels.shape[-1], settings.levels)
        frequencies, powers = radial_powers(pixels)
        return cls(
            real=real or RealImages(about=f"{len(pixels)} images", digest="", split="", available=len(pixels), seed=0),
            size=pixels.shape[-1],
            n=len(pixels),
            settings=settings,
            features=features,
            rows=rows,
            gaussian=None if rows is None else Gaussian.of(rows),
            patches=band_patches(pixels, wavelet=settings.wavelet, levels=levels, seed=settings.seed),
            frequencies=frequencies,
            powers=powers,
        )

    def measure(
        self, pixels: Pixels, *, batch_size: int = 64, observe: Observe = lambda done, total: None
    ) -> tuple[tuple[Figure, ...], Spectra]:
        """Every figure of samples (n, 3, H, W) uint8 against these images.

        Raises:
            UsageError: another n.
            EdgeSDError: another size, or features that fail.
        """
        check_pixels(pixels, "samples")
        if len(pixels) != self.n:
            raise UsageError(
                f"{len(pixels)} samples against {self.n} real images: figures of unequal n are biased differently",
                f"draw {self.n} samples, or give -n {min(len(pixels), self.n)}",
            )
        if pixels.shape[-1] != self.size:
            raise EdgeSDError(
                f"samples of {pixels.shape[-1]} px against real images of {self.size} px", "give --size, or --resize"
            )
        figures = [] if self.rows is None else self._by_features(pixels, batch_size, observe)
        settings = self.settings
        patches = band_patches(pixels, wavelet=settings.wavelet, levels=levels_of(self.size, settings.levels), seed=settings.seed)
        bands = band_distances(self.patches, patches, seed=settings.seed)
        mean = Estimate(float(np.mean([band.value for band in bands.values()])))
        figures.append(self._figure("wavelet SWD, mean", mean, f"mean over bands of: {SWD_DEFINITION}"))
        figures += [self._figure(f"wavelet SWD {name}", band, SWD_DEFINITION) for name, band in bands.items()]
        gap = spectrum_gap(self.frequencies, self.powers, radial_powers(pixels)[1], seed=settings.seed)
        figures.append(self._figure("spectrum gap dB", gap.mean, GAP_DEFINITION))
        curves = {
            name: tuple(float(value) for value in getattr(gap, name)) for name in ("frequencies", "real", "generated", "gap_db")
        }
        return tuple(figures), Spectra(**curves)

    def evaluate(
        self,
        pixels: Pixels,
        origin: Origin,
        *,
        batch_size: int = 64,
        seconds: dict[str, float] | None = None,
        observe: Observe = lambda done, total: None,
    ) -> Evaluation:
        """`measure` as a record.

        Args:
            seconds: that came before, for instance {"sampling": 80.2}.
        """
        started = time.monotonic()
        figures, spectra = self.measure(pixels, batch_size=batch_size, observe=observe)
        return Evaluation(
            origin=origin,
            real=self.real,
            size=self.size,
            n=self.n,
            figures=figures,
            spectra=spectra,
            settings=self.settings.model_dump(),
            versions=versions(),
            seconds={**(seconds or {}), "measuring": time.monotonic() - started},
        )

    def _by_features(self, pixels: Pixels, batch_size: int, observe: Observe) -> list[Figure]:
        features, settings = self.features, self.settings
        if features is None or self.rows is None or self.gaussian is None:
            return []
        rows = extract(features, pixels, batch_size=batch_size, observe=observe)
        if rows.shape[1] != self.rows.shape[1]:
            raise EdgeSDError(
                f"the features {features.name} of real images are {self.rows.shape[1]} wide, of samples {rows.shape[1]}",
                "return rows of one width",
            )
        kernel = kernel_distance(
            self.rows, rows, subsets=settings.kid_subsets, subset_size=settings.kid_subset_size, seed=settings.seed
        )
        frechet = Estimate(frechet_distance(self.gaussian, Gaussian.of(rows)))
        width = rows.shape[1]
        note = f"n {self.n} < {width} features: rank-deficient covariances, strongly biased" if self.n < width else ""
        precision, recall = precision_recall(self.rows, rows, settings.neighbours)
        subsets = f"{settings.kid_subsets} subsets of {settings.kid_subset_size}"
        nearest = f"k = {settings.neighbours}"
        name = "" if features.name == "Inception" else f"{features.name} "
        return [
            self._figure(features.kernel_name, kernel, f"{KERNEL_DEFINITION}; {subsets}", features=features),
            self._figure(features.frechet_name, frechet, FRECHET_DEFINITION, features=features, note=note),
            self._figure(f"{name}precision", precision, f"{PRECISION_DEFINITION}; {nearest}", features=features, best=1),
            self._figure(f"{name}recall", recall, f"{RECALL_DEFINITION}; {nearest}", features=features, best=1),
        ]

    def _figure(
        self, name: str, estimate: Estimate, definition: str, *, features: Features | None = None, best: float = 0, note: str = ""
    ) -> Figure:
        return Figure(
            name=name,
            value=estimate.value,
            standard_error=estimate.standard_error,
            spread=estimate.spread,
            best=best,
            n=self.n,
            split=self.real.split,
            features=None if features is None else FeatureIdentity(name=features.name, digest=features.digest),
            definition=definition,
            note=note,
        )


def choose(data: "ImageData", n: int | None = None, *, split: str = "all", seed: int = 0) -> tuple[Pixels, RealImages]:
    """n images of a data set, drawn without replacement, in the set's order; all of them if n is left out.

    Raises:
        UsageError: it does not hold so many.
    """
    available = len(data)
    if n is not None and n > available:
        raise UsageError(f"the data holds {available} images, not {n}", f"give -n {available} or less, or more data")
    real = RealImages(about=data.about, digest=data.digest, split=split, available=available, seed=seed)
    if n is None or n == available:
        return data.pixels, real
    return data.pixels[np.sort(np.random.default_rng(seed).choice(available, n, replace=False))], real


def rgb_pixels(samples: NDArray[np.floating]) -> Pixels:
    """Samples (n, C, H, W) in [−1, 1], clipped and rounded to 8 bits as a file would hold them → (n, 3, H, W) uint8.

    Raises:
        EdgeSDError: neither grey nor RGB, or a NaN or an infinity among them.
    """
    from edge_sd.data import rgb  # here: finding a runtime imports this module, and needs no images

    if samples.ndim != 4 or samples.shape[1] not in (1, 3):
        raise EdgeSDError(f"samples {samples.shape} are no images of 1 or 3 channels", "latents need their decoder")
    if not np.isfinite(samples).all():
        raise EdgeSDError("samples hold a NaN or an infinity", "try another solver, more steps, or an earlier checkpoint")
    return np.ascontiguousarray(rgb(samples).transpose(0, 3, 1, 2))


def check_pixels(pixels: NDArray[np.uint8], what: str) -> None:
    """Refuse anything but (n, 3, H, H) uint8."""
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[1] != 3 or pixels.shape[2] != pixels.shape[3]:
        raise EdgeSDError(f"{what} are square (n, 3, H, H) uint8, not {pixels.dtype} {pixels.shape}", "see rgb_pixels")


def check_enough(n: int, features: Features | None, settings: EvaluationSettings) -> None:
    """Say, before anything is computed, for which figure n images are too few.

    Raises:
        UsageError: for any of them.
    """
    if n < 2:
        raise UsageError(f"{n} images are too few for any figure", "give -n 2 or more; thousands for figures worth comparing")
    if features is None:
        return
    if n < settings.kid_subset_size:
        raise UsageError(
            f"{n} images are too few for {features.kernel_name} over subsets of {settings.kid_subset_size}",
            f"give -n {settings.kid_subset_size} or more, or --kid-subset-size {n} or less",
        )
    if n <= settings.neighbours:
        raise UsageError(
            f"{n} images are too few for precision and recall over {settings.neighbours} neighbours",
            f"give -n {settings.neighbours + 1} or more",
        )
