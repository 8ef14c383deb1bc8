"""report.json: all figures that the page and the card show, and nothing that they do not."""

from typing import Any, Literal

from edge_sd.devices import BenchResult
from edge_sd.runtimes.parity import ParityResult
from edge_sd.validation import Record


class ModelRow(Record):
    """One model of the run; MACs without and with attention's matrix products, of one call at batch 1."""

    role: str
    parameters: int
    macs: int
    macs_with_attention: int
    gating: bool
    trained_steps: int
    images_seen: int
    data: str
    weights_digest: str


class Curve(Record):
    """The loss's terms over the steps, smoothed over equal stretches."""

    steps: list[int]
    terms: dict[str, list[float]]


class Spectrum(Record):
    """Mean power of a role's samples at each frequency (cycles a pixel).

    Attributes:
        slope: of log power against log frequency.
        gap_db: mean distance in dB to the real images' spectrum.
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


class RunReport(Record):
    """See the parts."""

    schema_version: Literal[3] = 3
    kind: Literal["report"] = "report"
    name: str
    config: dict[str, Any]
    versions: dict[str, str]
    models: list[ModelRow]
    curves: dict[str, Curve]
    samples: dict[str, str]  # role → PNG, relative to report.json
    sample_count: int
    spectra: list[Spectrum]
    timesteps: list[float]
    gates: list[Gates]
    exported_psnr_db: float  # exported student's samples against the student's, same noise
    bundle: str
    bundle_bytes: dict[str, int]
    parity: list[ParityResult]
    parity_pictures: dict[str, str]  # runtime → PNG, relative to report.json
    bench: list[BenchResult]
    seconds: dict[str, float]  # of each stage
