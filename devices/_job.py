"""A job to do on a device and what comes back: the same records for every device."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator
from typing_extensions import Self

from edge_sd.devices._fingerprint import DeviceInfo
from edge_sd.runtimes.evidence import Evidence
from edge_sd.runtimes.parity import ParityResult
from edge_sd.validation import Record

Milliseconds = tuple[float, ...]


class Job(Record):
    """What to do with a bundle: prove it, time it, or both.

    Attributes:
        runtime: what runs its programs on the device.
        threads: of one call.
        prove: follow the golden trajectories and bring back what came out.
        least_warmup: calls before the timed ones; and the window, two of which must agree before timing begins.
        most_warmup: calls after which timing begins all the same.
        iterations: timed calls of the denoiser; 0: nothing is timed.
        images: whole images that are timed: noise, every step, decoder.
        ceiling: measure the machine's own ceiling beside.
        minutes: of calls one after the other, after all else, for a curve of time and temperature.
        most_seconds: after which warm-up ends, and after which the timed calls do, however few there were.
        patience: seconds without a word after which the device counts as gone; five times that where it is imitated.
        memory_mib: limit of the job's memory, where the device can set one.
        processors: numbers of the processors that the job is pinned to, where the device can; empty: any.
    """

    schema_version: Literal[2] = 2
    kind: Literal["job"] = "job"
    runtime: str
    threads: int = Field(default=1, ge=1)
    prove: bool = True
    least_warmup: int = Field(default=10, ge=1)
    most_warmup: int = Field(default=200, ge=1)
    iterations: int = Field(default=100, ge=0)
    images: int = Field(default=2, ge=0)
    ceiling: bool = True
    minutes: float = Field(default=0.0, ge=0, le=24 * 60)
    most_seconds: float = Field(default=120.0, gt=0)
    patience: float = Field(default=120.0, gt=0)
    memory_mib: int | None = Field(default=None, ge=1)
    processors: tuple[int, ...] = ()


class Moment(Record):
    """A few seconds of the sustained curve.

    Attributes:
        seconds: since the curve began, at the end of these calls.
        celsius: of each thermal zone that the device shows, by its type.
        mhz: of each processor, where the device tells.
    """

    seconds: float = Field(ge=0)
    calls: int = Field(ge=1)
    p50_ms: float = Field(ge=0)
    p90_ms: float = Field(ge=0)
    celsius: dict[str, float] = Field(default_factory=dict)
    mhz: tuple[float, ...] = ()


class Measurement(Record):
    """What a device says of the times and the memory; all of it raw.

    Attributes:
        load_ms: from the files on the device to programs that can be called.
        first_ms: the first call, which may still plan and pack.
        warmup_ms: the other calls before the timed ones, one by one.
        stable: whether the warm-up ended because two windows agreed.
        samples_ms: the timed calls, one by one, on inputs of the golden trajectories in turn.
        decoder_ms: calls of the decoder, the first left out.
        image_ms: whole images.
        base_memory_bytes: resident set before the programs were loaded; None where the device does not tell.
        peak_memory_bytes: largest resident set.
        ceiling_gflops: most float32 operations a second (a multiply-add is two), measured beside with as many threads.
        ceiling: how that was measured.
    """

    schema_version: Literal[1] = 1
    kind: Literal["measurement"] = "measurement"
    runtime_version: str
    load_ms: float = Field(ge=0)
    first_ms: float = Field(ge=0)
    warmup_ms: Milliseconds
    stable: bool
    samples_ms: Milliseconds = Field(min_length=1)
    decoder_ms: Milliseconds = ()
    image_ms: Milliseconds = ()
    sustained: tuple[Moment, ...] = ()
    base_memory_bytes: int | None = None
    peak_memory_bytes: int | None = None
    ceiling_gflops: float | None = None
    ceiling: str = ""

    @model_validator(mode="after")
    def _finite(self) -> Self:
        for values in (self.warmup_ms, self.samples_ms, self.decoder_ms, self.image_ms):
            if not np.isfinite(values).all() or min(values, default=0) < 0:
                raise ValueError("a time that is not finite, or below zero")
        return self


@dataclass(frozen=True)
class Outcome:
    """What a connection pulls: each is None where the job did not ask for it.

    Attributes:
        runtime_version: of what made the evidence.
    """

    measurement: Measurement | None
    evidence: tuple[Evidence, ...] | None
    runtime_version: str = ""


class Latency(Record):
    """Percentiles of one call's wall time, in milliseconds.

    Attributes:
        low_ms, high_ms: 95 % interval of the median, from the bootstrap over blocks of neighbouring calls.
    """

    p50_ms: float
    p90_ms: float
    p99_ms: float
    mean_ms: float
    low_ms: float
    high_ms: float

    @classmethod
    def of(cls, samples_ms: Milliseconds | list[float]) -> "Latency":
        """Summarise raw samples."""
        p50, p90, p99 = (float(value) for value in np.percentile(samples_ms, (50, 90, 99)))
        low, high = np.percentile(resampled_medians(np.asarray(samples_ms, dtype=np.float64)), (2.5, 97.5))
        return cls(p50_ms=p50, p90_ms=p90, p99_ms=p99, mean_ms=float(np.mean(samples_ms)), low_ms=float(low), high_ms=float(high))


_BLOCKS, _RESAMPLES = 10, 1000


def resampled_medians(samples: NDArray[np.float64], seed: int = 0) -> NDArray[np.float64]:
    """Medians of 1000 resamples of samples in the order of time.

    Neighbours share what else the machine was doing, so blocks of them are drawn, not single ones (Künsch 1989, moving blocks).
    """
    length = max(1, len(samples) // _BLOCKS)
    starts = np.random.default_rng(seed).integers(0, len(samples) - length + 1, (_RESAMPLES, -(-len(samples) // length)))
    medians: NDArray[np.float64] = np.median(samples[starts[..., None] + np.arange(length)].reshape(_RESAMPLES, -1), axis=1)
    return medians


class BenchResult(Record):
    """bench.json: one bundle in one runtime on one device.

    Attributes:
        times: what the times are: of a real processor, of an imitated one, or of an evaluator that stands for the runtime. Only
            real ones say how fast the runtime is.
        bundle_digest: the manifest's own.
        macs: multiply-adds of one call of the denoiser, attention's products included.
        forecast_memory_bytes: what the export foretold for the program alone, to be compared with peak − base.
        warnings: what makes the figures less than they seem.
        versions: of the packages that drove it.
    """

    schema_version: Literal[2] = 2
    kind: Literal["bench"] = "bench"
    job: Job
    bundle: str
    bundle_digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    device: DeviceInfo
    times: Literal["real", "emulated", "evaluated"] = "real"
    steps: int
    macs: int
    measurement: Measurement | None
    latency: Latency | None
    parity: ParityResult | None
    forecast_memory_bytes: int | None = None
    warnings: tuple[str, ...] = ()
    versions: dict[str, str]

    @property
    def sustained(self) -> str | None:
        """What the sustained curve shows, in words; None where there is none."""
        if self.measurement is None or len(self.measurement.sustained) < 2:
            return None
        return sustained_words(self.measurement.sustained)

    @property
    def ceiling_share(self) -> float | None:
        """Share of the device's measured ceiling that a call reaches; None where no ceiling was measured."""
        if self.measurement is None or self.latency is None or self.measurement.ceiling_gflops is None:
            return None
        return 2 * self.macs / (self.latency.p50_ms * 1e6) / self.measurement.ceiling_gflops


_SLOWER = 0.10


def sustained_words(curve: tuple[Moment, ...]) -> str:
    """First minute against last minute, and when throttling set in: from when on calls stayed 10 % slower than at first."""
    end = curve[-1].seconds
    first = [moment for moment in curve if moment.seconds <= min(60, end / 2)] or [curve[0]]
    last = [moment for moment in curve if moment.seconds > max(end - 60, end / 2)]
    begin, finish = (float(np.median([moment.p50_ms for moment in part])) for part in (first, last))
    words = f"{begin:.2f} ms at first, {finish:.2f} ms after {end / 60:.1f} minutes ({finish / begin - 1:+.0%})"
    zones = [zone for zone in curve[0].celsius if zone in curve[-1].celsius]
    if zones:
        hottest = max(zones, key=lambda zone: curve[-1].celsius[zone])
        words += f"; {hottest} {curve[0].celsius[hottest]:.0f} → {curve[-1].celsius[hottest]:.0f} °C"
    if curve[0].mhz and curve[-1].mhz:
        words += f"; fastest clock {max(curve[0].mhz):.0f} → {max(curve[-1].mhz):.0f} MHz"
    slow = [moment.p50_ms > (1 + _SLOWER) * begin for moment in curve]
    onset = next((index for index in range(len(slow)) if all(slow[index:])), None)
    return words + ("; no throttling seen" if onset is None else f"; throttled from {curve[onset].seconds:.0f} s on")
