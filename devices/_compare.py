"""Which of two is faster, and how sure that is: interleaved blocks, a bootstrap interval of the ratio, a verdict in words.

A block is a job of its own: a fresh process that loads, warms up and is timed; its median is one figure. Blocks go
A B B A A B B A, so that a device that gets warmer, or busier, does so for both. Neighbours make a pair, and pairs are what is
drawn from: calls inside of one process share its layout in memory, which alone moves a time by a per cent or two.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from edge_sd.bundle import Bundle
from edge_sd.devices._bench import times_of
from edge_sd.devices._device import Observe, find_device, unobserved
from edge_sd.devices._fingerprint import DeviceInfo
from edge_sd.devices._job import BenchResult, Job, resampled_medians
from edge_sd.errors import EdgeSDError
from edge_sd.validation import Record

PAIRS = 10
CONFIDENCE = 0.95
# A difference below this is not named, however narrow the interval: where in memory a program happens to lie makes as much.
LEAST = 0.01
_RESAMPLES = 10_000


class Side(Record):
    """One of the two.

    Attributes:
        blocks_ms: the median call of each block, in the order of time.
    """

    bundle: str
    bundle_digest: str
    runtime: str
    runtime_version: str
    blocks_ms: tuple[float, ...] = Field(min_length=1)


class Comparison(Record):
    """compare.json.

    Attributes:
        interleaved: the blocks alternated on one device; otherwise they are two results of two occasions.
        speedup: A's time over B's: above 1, B is faster.
        low, high: its interval.
        notes: what the figures lack.
    """

    schema_version: Literal[1] = 1
    kind: Literal["comparison"] = "comparison"
    device: DeviceInfo
    times: Literal["real", "emulated", "evaluated"]
    threads: int
    a: Side
    b: Side
    interleaved: bool
    speedup: float
    low: float
    high: float
    confidence: float = CONFIDENCE
    notes: tuple[str, ...] = ()

    @property
    def faster(self) -> Literal["A", "B"] | None:
        """Which one is, where that can be told."""
        if self.low > 1 + LEAST:
            return "B"
        return "A" if self.high < 1 / (1 + LEAST) else None

    @property
    def turned(self) -> "Comparison":
        """The same, with A and B exchanged."""
        ratio, low, high = 1 / self.speedup, 1 / self.high, 1 / self.low
        return self.model_copy(update={"a": self.b, "b": self.a, "speedup": ratio, "low": low, "high": high})

    @property
    def verdict(self) -> str:
        """One sentence."""
        percent = f"{self.confidence:.0%}".replace("%", " %")
        turned = self.turned
        if self.faster is None:
            return f"cannot tell: B takes {turned.speedup:.3f} of A's time ({percent} {turned.low:.3f}–{turned.high:.3f})"
        told = self if self.faster == "B" else turned
        return f"{self.faster} is {told.speedup:.2f}× faster ({percent} {told.low:.2f}–{told.high:.2f})"


def order_of(pairs: int) -> str:
    """A B B A A B B A …: each pair begins with the other one."""
    return "".join("AB" if pair % 2 == 0 else "BA" for pair in range(pairs))


def ratio_interval(logs: NDArray[np.float64], seed: int = 0) -> tuple[float, float, float]:
    """Mean of log ratios and its interval, as ratios: (ratio, low, high).

    The bootstrap-t (Efron and Tibshirani 1993, chapter 12.5), which stays honest for the few pairs that people have time for,
    where percentiles of plain resamples are too narrow.
    """
    count = len(logs)
    mean = float(logs.mean())
    error = float(logs.std(ddof=1)) / np.sqrt(count) if count > 1 else 0.0
    if error == 0:
        return float(np.exp(mean)), (float(np.exp(mean)) if count > 1 else 0.0), (float(np.exp(mean)) if count > 1 else np.inf)
    drawn = logs[np.random.default_rng(seed).integers(0, count, (_RESAMPLES, count))]
    errors = drawn.std(axis=1, ddof=1) / np.sqrt(count)
    usable = errors > 1e-3 * error  # a resample of one pair alone has no spread
    t = (drawn.mean(axis=1)[usable] - mean) / errors[usable]
    tail = (1 - CONFIDENCE) / 2
    low, high = np.percentile(t, (100 * tail, 100 * (1 - tail)))
    return tuple(float(np.exp(value)) for value in (mean, mean - high * error, mean - low * error))  # type: ignore[return-value]


def compare(
    place: str,
    first: tuple[Bundle, Job],
    second: tuple[Bundle, Job],
    *,
    pairs: int = PAIRS,
    observe: Observe = unobserved,
) -> Comparison:
    """Time two bundles, or one in two runtimes, in turn on one device.

    Args:
        pairs: of blocks; more make the interval narrower.

    Raises:
        UsageError, InstallationError, DeviceError, EdgeSDError: as `bench` raises them.
    """
    device, address = find_device(place)
    medians: dict[str, list[float]] = {"A": [], "B": []}
    versions: dict[str, str] = {}
    order = "AB" + order_of(pairs)  # the first two fill the device's caches of files, and are dropped
    with device.open(address) as left, device.open(address) as right:
        info = left.info()
        kinds = {times_of(job.runtime, info) for _, job in (first, second)}
        if len(kinds) > 1:
            raise EdgeSDError(
                "a real processor's times and an imitation's are never compared", "compare two runtimes of one kind"
            )
        connections = {"A": left, "B": right}
        for name, (bundle, job) in (("A", first), ("B", second)):
            connections[name].push(bundle, job.model_copy(update={"prove": False, "images": 0, "ceiling": False, "minutes": 0.0}))
        for number, name in enumerate(order):
            observe(number, len(order), f"block {number + 1}: {name}")
            connections[name].run()
            measurement = connections[name].pull().measurement
            assert measurement is not None  # noqa: S101 (asked for)
            versions[name] = measurement.runtime_version
            if number >= 2:
                medians[name].append(float(np.median(measurement.samples_ms)))
        observe(len(order), len(order), "done")
    a, b = (
        Side(
            bundle=bundle.path.name,
            bundle_digest=bundle.manifest.digest,
            runtime=job.runtime,
            runtime_version=versions[name],
            blocks_ms=tuple(medians[name]),
        )
        for name, (bundle, job) in (("A", first), ("B", second))
    )
    ratio, low, high = ratio_interval(np.log(np.array(a.blocks_ms) / np.array(b.blocks_ms)))
    return Comparison(
        device=info, times=kinds.pop(), threads=first[1].threads, a=a, b=b, interleaved=True, speedup=ratio, low=low, high=high
    )


# Results of two occasions


def differences(a: BenchResult, b: BenchResult) -> list[str]:
    """What keeps two results from being compared, in words: another device, another state of it, another way of measuring."""
    alike = a.job.runtime == b.job.runtime
    fields: dict[str, Callable[[BenchResult], object]] = {
        "times": lambda result: result.times,
        "model": lambda result: result.device.model,
        "processor": lambda result: result.device.processor,
        "machine": lambda result: result.device.machine,
        "cores": lambda result: result.device.cores,
        "system": lambda result: result.device.system,
        "governor": lambda result: result.device.governor or "unknown",
        "power": lambda result: result.device.power or "unknown",
        "threads": lambda result: result.job.threads,
        # Of one runtime; two runtimes are two things that may be compared.
        "runtime version": lambda result: result.measurement and result.measurement.runtime_version if alike else "",
        "processors": lambda result: result.job.processors or "any",
    }
    return [f"{name}: {read(a)} against {read(b)}" for name, read in fields.items() if read(a) != read(b)]


def compare_results(a: BenchResult, b: BenchResult, *, anyway: bool = False) -> Comparison:
    """Compare two saved results.

    Args:
        anyway: even where the devices differ; emulated times and real ones never are.

    Raises:
        EdgeSDError: they were not measured alike, or not timed at all.
    """
    if a.measurement is None or b.measurement is None:
        raise EdgeSDError("a result without times cannot be compared", "bench it with --iterations above 0")
    found = differences(a, b)
    if found and (a.times != b.times or not anyway):
        raise EdgeSDError(
            f"the two were not measured alike: {'; '.join(found)}",
            "measure both on one device in one state: edge-sd compare BUNDLE BUNDLE --device …"
            + ("" if a.times != b.times else ", or --anyway"),
        )
    ratio, low, high = _unpaired(a.measurement.samples_ms, b.measurement.samples_ms)
    notes = ["measured on two occasions: what changed on the device between them is not in the interval", *found]
    return Comparison(
        device=a.device, times=a.times, threads=a.job.threads, a=_side(a), b=_side(b), interleaved=False,
        speedup=ratio, low=low, high=high, notes=tuple(notes),
    )  # fmt: skip


def _side(result: BenchResult) -> Side:
    assert result.measurement is not None  # noqa: S101 (checked)
    assert result.latency is not None  # noqa: S101
    return Side(
        bundle=result.bundle,
        bundle_digest=result.bundle_digest,
        runtime=result.job.runtime,
        runtime_version=result.measurement.runtime_version,
        blocks_ms=(result.latency.p50_ms,),
    )


def _unpaired(a: Sequence[float], b: Sequence[float]) -> tuple[float, float, float]:
    """Ratio of medians, and its interval from resampled blocks of neighbouring calls of each."""
    drawn = resampled_medians(np.asarray(a), seed=1) / resampled_medians(np.asarray(b), seed=2)
    low, high = np.percentile(drawn, (100 * (1 - CONFIDENCE) / 2, 100 * (1 + CONFIDENCE) / 2))
    return float(np.median(a) / np.median(b)), float(low), float(high)
