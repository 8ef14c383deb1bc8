"""report.json: all that the page and its Markdown show, but for the pictures, which lie beside it as PNG files."""

from typing import Any, Literal

from pydantic import Field

from edge_sd.bundle import Manifest
from edge_sd.checkpoint import Provenance
from edge_sd.devices import BenchResult
from edge_sd.devices._compare import Comparison
from edge_sd.evaluation.record import Evaluation
from edge_sd.report.quantization import QuantizationReport
from edge_sd.runtimes.parity import ParityResult
from edge_sd.validation import Record


class SampleHeader(Record):
    """The metadata of a file of samples, or of gates."""

    schema_version: Literal[1] = 1
    kind: Literal["samples"] = "samples"
    role: str
    seed: int
    runtime: str


class ModelRow(Record):
    """One model; MACs without and with attention's matrix products, of one call at batch 1."""

    role: str
    parameters: int
    macs: int
    macs_with_attention: int
    gating: bool
    weights_digest: str
    provenance: Provenance


class Curve(Record):
    """The loss's terms over the steps, smoothed over equal stretches."""

    steps: list[int]
    terms: dict[str, list[float]]


class Spectrum(Record):
    """Mean power of a role's samples at each frequency (cycles a pixel).

    Attributes:
        slope: of log power against log frequency.
        gap_db: mean distance in dB to the first spectrum beside it.
    """

    role: str
    frequencies: list[float]
    power: list[float]
    slope: float
    gap_db: float


class Gates(Record):
    """Mean gate of LL, LH, HL, HH at each step of one gated resampling."""

    name: str
    values: list[list[float]]


class Drawn(Record):
    """Pictures of one origin, and what sets them apart from those they are compared with.

    Attributes:
        about: what drew them.
        images, difference, log_spectrum: PNG files, relative to report.json: the pictures; 8 × the difference to the reference's,
            around grey; mean logarithm of the power of all of them, the mean brightness in the middle.
        reference: title of those that they are compared with; empty where there is nothing to compare.
        psnr_db, rmse: of all pixels against the reference's; the latter as a share of the range of values.
    """

    title: str
    about: str
    images: str
    difference: str | None = None
    log_spectrum: str
    reference: str = ""
    psnr_db: float | None = None
    rmse: float | None = None


class Gallery(Record):
    """Pictures side by side.

    Attributes:
        count: pictures of each origin; the first `shown` of them are in the files.
        same_noise: those of models start from the same noise, so that pictures in the same place belong together.
    """

    drawn: list[Drawn]
    spectra: list[Spectrum]
    count: int
    shown: int
    same_noise: bool


class Sheet(Record):
    """A PNG that was drawn before: the reference's images, a runtime's, and 8 × their difference."""

    title: str
    file: str


class Subject(Record):
    """What a report is of: a run or a bundle, with the results that belong to it. What is missing is empty.

    Attributes:
        name: of no other subject of the report.
        config, seconds: of a run, and of each of its stages.
        models: of a run teacher and student; of a bundle the model that it was exported from.
        timesteps: of the plan, one a row.
        exported_psnr_db: of a run: the exported student's samples against the student's, same noise.
        bundle: its manifest.
        nfe: rows of its plan.
        stochastic: whether the plan adds noise.
    """

    name: str
    source: Literal["run", "bundle"]
    config: dict[str, Any] = Field(default_factory=dict)
    seconds: dict[str, float] = Field(default_factory=dict)
    models: list[ModelRow]
    curves: dict[str, Curve] = Field(default_factory=dict)
    gates: list[Gates] = Field(default_factory=list)
    timesteps: list[float]
    gallery: Gallery | None = None
    exported_psnr_db: float | None = None
    bundle: Manifest
    nfe: int
    stochastic: bool
    parity: list[ParityResult] = Field(default_factory=list)
    sheets: list[Sheet] = Field(default_factory=list)
    bench: list[BenchResult] = Field(default_factory=list)
    evaluations: list[Evaluation] = Field(default_factory=list)
    quantization: QuantizationReport | None = None


class Report(Record):
    """report.json.

    Attributes:
        versions: of the packages that put it together.
        subjects: one: a report of it; several: a comparison, in which the others are compared with the first.
        gallery: of a comparison: pictures of all subjects.
        comparisons: of latencies, interleaved, between subjects.
        chosen: name of the subject that is marked among several.
        left_out: results that were found and are not shown, and why.
    """

    schema_version: Literal[4] = 4
    kind: Literal["report"] = "report"
    name: str
    versions: dict[str, str]
    subjects: list[Subject] = Field(min_length=1)
    gallery: Gallery | None = None
    comparisons: list[Comparison] = Field(default_factory=list)
    chosen: str = ""
    left_out: list[str] = Field(default_factory=list)

    @property
    def several(self) -> bool:
        """Whether it is a comparison."""
        return len(self.subjects) > 1
