"""A job to do on a device and what comes back: the same two records for every device."""

from typing import Literal

import numpy as np
from pydantic import Field

from edge_sd.validation import Record


class Job(Record):
    """Time a bundle's denoiser in a runtime.

    Attributes:
        bundle: its folder, on the device.
        threads: of one call.
        warmup: calls that are made first and not timed among the rest.
        iterations: calls that are timed.
    """

    schema_version: Literal[1] = 1
    bundle: str
    runtime: str
    threads: int = Field(ge=1)
    warmup: int = Field(default=10, ge=1)
    iterations: int = Field(default=100, ge=1)


class Latency(Record):
    """Percentiles of one call's wall time, in milliseconds."""

    p50_ms: float
    p90_ms: float
    p99_ms: float
    mean_ms: float

    @classmethod
    def of(cls, samples_ms: list[float]) -> "Latency":
        """Summarise raw samples."""
        p50, p90, p99 = (float(v) for v in np.percentile(samples_ms, (50, 90, 99)))
        return cls(p50_ms=p50, p90_ms=p90, p99_ms=p99, mean_ms=float(np.mean(samples_ms)))


class DeviceInfo(Record):
    """What a device is; figures of different devices are never compared."""

    device: str
    machine: str
    processor: str
    cores: int
    memory_bytes: int
    system: str


class BenchResult(Record):
    """bench.json of one runtime on one device.

    Attributes:
        load_ms: from the files on disk to a session.
        first_ms: the first call, which may still plan and pack.
        warmup_ms: the other warm-up calls, one by one.
        samples_ms: the timed calls, one by one, on inputs of the golden trajectories in turn.
        steps: of the bundle's plan; a whole image takes about steps × latency.
        peak_memory_bytes: largest resident set of the process; None where the system does not tell.
        forecast_memory_bytes: what the export foretold for the program alone, to be compared with peak − base.
        base_memory_bytes: resident set before the program was loaded (interpreter and libraries).
    """

    schema_version: Literal[1] = 1
    kind: Literal["bench"] = "bench"
    job: Job
    bundle_digest: str
    device: DeviceInfo
    runtime_version: str
    load_ms: float
    first_ms: float
    warmup_ms: list[float]
    samples_ms: list[float]
    steps: int
    latency: Latency
    base_memory_bytes: int
    peak_memory_bytes: int | None
    forecast_memory_bytes: int | None = None
    versions: dict[str, str]
