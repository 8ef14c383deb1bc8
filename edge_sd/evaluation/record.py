"""The result of an evaluation: every figure with what it is of, so that no figure travels without its n, split and features."""

from typing import Literal

from pydantic import Field

from edge_sd.validation import Record


class Origin(Record):
    """Where the samples come from.

    Attributes:
        kind: checkpoint, bundle, or folder of images.
        name: its file or folder.
        digest: SHA-256 of the weights of a checkpoint; of a bundle's manifest; of images, over their pixels.
        runtime, solver, spacing, stochastic, steps, nfe, seed: of the sampling; empty or None for images that were there before.
        labels: what was drawn of a model that knows classes: "class 3", "10 classes in turn".
    """

    kind: Literal["checkpoint", "bundle", "folder"]
    name: str
    digest: str
    runtime: str = ""
    solver: str = ""
    spacing: str = ""
    stochastic: bool = False
    steps: int | None = None
    nfe: int | None = None
    seed: int | None = None
    labels: str = ""


class RealImages(Record):
    """What the samples are compared with: n images out of a data set."""

    about: str
    digest: str  # of the whole set
    split: str
    available: int = Field(ge=1)
    seed: int  # of the choice of n


class FeatureIdentity(Record):
    """Which features: `edge_sd.evaluation.features.Features`."""

    name: str
    digest: str


class Figure(Record):
    """One number.

    Attributes:
        name: "KID", "MobileNetFeatures-KID", "wavelet SWD HH1", …
        standard_error: over another draw of n images; None where there is no estimate.
        spread: standard deviation over smaller subsets, where others print that.
        best: what a perfect model reaches as n grows.
        features: None for what is computed from pixels.
        note: what to know before it is compared with another.
    """

    name: str
    value: float
    standard_error: float | None = None
    spread: float | None = None
    best: float = 0.0
    n: int = Field(ge=1)
    split: str
    features: FeatureIdentity | None = None
    definition: str
    note: str = ""


class Spectra(Record):
    """Radial power spectra of both sets, and the gap between them in decibels; all of one length."""

    frequencies: tuple[float, ...]
    real: tuple[float, ...]
    generated: tuple[float, ...]
    gap_db: tuple[float, ...]


class Evaluation(Record):
    """evaluation.json."""

    schema_version: Literal[1] = 1
    kind: Literal["evaluation"] = "evaluation"
    origin: Origin
    real: RealImages
    size: int
    n: int = Field(ge=1)
    figures: tuple[Figure, ...]
    spectra: Spectra
    settings: dict[str, int | str]
    versions: dict[str, str]
    seconds: dict[str, float]

    def figure(self, name: str) -> Figure:
        """Find a figure.

        Raises:
            KeyError: there is none of that name.
        """
        found: dict[str, Figure] = {figure.name: figure for figure in self.figures}
        return found[name]
