"""Kernel distance to real images: MMD² of features with a cubic kernel, unbiased, over all images of both sets.

It is what `edge_sd.evaluation.distances.kernel_distance` is with one subset that is the whole of both sets, and its error. No
subsets: a search compares plans on the same noise, and which images are in a subset would be noise on top. The real images' part
is computed once.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from edge_sd.diffusion.plan import Float64, Plan
from edge_sd.errors import EdgeSDError, UsageError
from edge_sd.evaluation.distances import check_features
from edge_sd.evaluation.features import Features, extract, load_features
from edge_sd.evaluation.reference import rgb_pixels
from edge_sd.files import read_tensors, tensors_digest, write_tensors
from edge_sd.search.objectives._base import Objective, Score
from edge_sd.search.subject import Subject
from edge_sd.validation import Record

REAL = "real.safetensors"


class RealHeader(Record):
    """The metadata of a file of real images' features.

    Attributes:
        features, features_digest: name and hash of the extractor.
        about, data_digest: which images.
        digest: SHA-256 over the features.
    """

    schema_version: Literal[1] = 1
    kind: Literal["real-features"] = "real-features"
    features: str
    features_digest: str
    about: str
    data_digest: str
    digest: str


class KernelDistance(Objective):
    """Kernel distance of the pictures' features to those of real images; it may be a little below 0.

    Args:
        subject: the model; where it makes latents, its decoder too.
        features: the extractor.
        real: (n, D), its features of real images.
    """

    name: ClassVar[str] = "kid"
    about: ClassVar[str] = "kernel distance of the pictures' features to those of real images"
    samples: ClassVar[int] = 64
    evaluations: ClassVar[int] = 300
    positive: ClassVar[bool] = False

    def __init__(self, subject: Subject, features: Features, real: NDArray[np.floating]) -> None:
        self.subject, self.features, self.real = subject, features, check_features(real, "features of real images")
        self._within = Within(self.real)

    @classmethod
    def open(cls, subject: Subject, settings: Mapping[str, str | int | None]) -> Self:
        if not settings.get("real") or not settings.get("features"):
            raise UsageError(
                "the objective kid needs real images and features",
                "--data photos/ --features inception, or --objective trajectory",
            )
        size = settings.get("features_size")
        features = load_features(
            str(settings["features"]),
            name=None if settings.get("features_name") is None else str(settings["features_name"]),
            size=None if size is None else int(size),
        )
        return cls(subject, features, load_real(Path(str(settings["real"])), features)[1])

    def score(self, plan: Plan, *, seed: int, count: int) -> Score:
        if count < 3:
            raise UsageError(f"{count} samples are too few for a kernel distance and its error", "give -n 3 or more")
        images = self.subject.decode(self.subject.draw(plan, seed, range(count)))
        rows = check_features(extract(self.features, rgb_pixels(images)), "features of samples", 3)
        if rows.shape[1] != self.real.shape[1]:
            raise EdgeSDError(
                f"the features {self.features.name} of real images are {self.real.shape[1]} wide, of samples {rows.shape[1]}",
                "return rows of one width",
            )
        return mmd(self._within, Within(rows))


class Within:
    """One set of features (n, D), n ≥ 3, and what its own kernel k(x, y) = (x·y/D + 1)³ sums to off the diagonal.

    Attributes:
        of_each: (n,) Σ k(x_i, x_j) over j ≠ i.
    """

    def __init__(self, rows: Float64) -> None:
        self.rows = rows
        kernel = _kernel(rows, rows)
        np.fill_diagonal(kernel, 0.0)
        self.of_each: Float64 = kernel.sum(1)

    def mean(self) -> float:
        """Over pairs of different items."""
        n = len(self.rows)
        return float(self.of_each.sum() / (n * (n - 1)))

    def means_without_one(self) -> Float64:
        """(n,) the same, each item left out in turn."""
        n = len(self.rows)
        means: Float64 = (self.of_each.sum() - 2 * self.of_each) / ((n - 1) * (n - 2))
        return means


def mmd(real: Within, generated: Within) -> Score:
    """Unbiased MMD² (Gretton et al. 2012, equation 3), its error by a jackknife over every item of both sets."""
    cross = _kernel(real.rows, generated.rows)
    n, m = cross.shape
    total = cross.sum()
    value = real.mean() + generated.mean() - 2 * float(total) / (n * m)
    without_real = real.means_without_one() + generated.mean() - 2 * (total - cross.sum(1)) / ((n - 1) * m)
    without_generated = real.mean() + generated.means_without_one() - 2 * (total - cross.sum(0)) / (n * (m - 1))
    return Score.jackknife(value, without_generated, without_real)


def _kernel(x: Float64, y: Float64) -> Float64:
    kernel: Float64 = (x @ y.T / x.shape[1] + 1) ** 3
    return kernel


def save_real(path: Path, rows: NDArray[np.float32], features: Features, about: str, data_digest: str) -> None:
    """Write real images' features (n, D), so that other processes find them and a resumed search need not take them again."""
    tensors = {"features": rows}
    header = RealHeader(
        features=features.name,
        features_digest=features.digest,
        about=about,
        data_digest=data_digest,
        digest=tensors_digest(tensors),
    )
    write_tensors(path, tensors, header)


def load_real(path: Path, features: Features) -> tuple[RealHeader, NDArray[np.float32]]:
    """Read what `save_real` wrote.

    Raises:
        EdgeSDError: missing, damaged, or of other features.
    """
    header, tensors = read_tensors(RealHeader, path)
    if tensors.keys() != {"features"} or tensors_digest(tensors) != header.digest:
        raise EdgeSDError(f"{path} has changed since it was written", "remove it and give the same command again")
    if header.features_digest != features.digest:
        raise EdgeSDError(
            f"{path} holds features of {header.features} {header.features_digest[:12]}, not of {features.digest[:12]}",
            "another -o, or --overwrite",
        )
    return header, tensors["features"]
