"""Size, quality and latency of a comparison's subjects: the points, which of them no other one beats, and ratios of times."""

from collections.abc import Sequence
from dataclasses import dataclass

from edge_sd.bundle import Manifest
from edge_sd.bundle.manifest import WEIGHTS
from edge_sd.devices import BenchResult
from edge_sd.devices._bench import target_of
from edge_sd.devices._compare import Comparison, compare_results
from edge_sd.errors import EdgeSDError
from edge_sd.report.data import Report, Subject

# Of several figures that all subjects share, the first that is told of quality by one number.
_WANTED = ("-KID", "KID", "FID", "spectrum gap dB")


@dataclass(frozen=True)
class Quality:
    """What quality is here; lower is better.

    Attributes:
        name: as the axis says it.
        of: each subject's value and its standard error, where there is one.
    """

    name: str
    of: dict[str, tuple[float, float]]


@dataclass(frozen=True)
class Point:
    """One subject in one runtime on one device.

    Attributes:
        size: bytes of all that the runtime's target needs.
        quality, error: see `Quality`.
        p50, low, high: milliseconds a step, and the 95 % interval of the median; None without times.
        best: no other point is as small, as good and as fast, and better in one of them; None where something is not known.
    """

    subject: str
    where: str
    size: int
    quality: float
    error: float
    p50: float | None
    low: float | None
    high: float | None
    best: bool | None = None


def quality_of(report: Report) -> Quality | None:
    """A kernel or spectral distance to real images, where all subjects have the same one; else that to the first's images."""
    shared: dict[str, dict[str, tuple[float, float]]] = {}
    for subject in report.subjects:
        for evaluation in subject.evaluations:
            for figure in evaluation.figures:
                if figure.name.endswith(_WANTED) and not figure.best:
                    key = f"{figure.name}, n {figure.n}, {evaluation.real.about} ({evaluation.real.digest[:8]})"
                    shared.setdefault(key, {})[subject.name] = (figure.value, figure.standard_error or 0.0)
    whole = {key: values for key, values in shared.items() if len(values) == len(report.subjects)}
    for wanted in _WANTED:
        for key, values in whole.items():
            if key.partition(",")[0].endswith(wanted):
                return Quality(key.rpartition(" (")[0], values)
    if report.gallery is None:
        return None
    first, *others = report.gallery.drawn
    if any(each.rmse is None for each in others):
        return None
    distances = {first.title: (0.0, 0.0), **{each.title: (100 * (each.rmse or 0.0), 0.0) for each in others}}
    return Quality(f"RMS difference to {first.title}'s images, % of the range", distances)


def points(report: Report) -> list[Point]:
    """Every subject by runtime; one that was not timed is one point without a time. Empty where quality cannot be compared."""
    quality = quality_of(report)
    if quality is None:
        return []
    found = []
    for subject in report.subjects:
        value, error = quality.of[subject.name]
        timed = [result for result in subject.bench if result.latency is not None and result.times == "real"]
        for result in timed:
            latency = result.latency
            assert latency is not None  # noqa: S101 (asked for)
            size = target_bytes(subject.bundle, target_of(result.job.runtime))
            found.append(Point(subject.name, where(result), size, value, error, latency.p50_ms, latency.low_ms, latency.high_ms))
        if not timed:
            for target in exported_targets(subject):
                found.append(Point(subject.name, target, target_bytes(subject.bundle, target), value, error, None, None, None))
    return [Point(**{**point.__dict__, "best": _best(point, found)}) for point in found]


def where(result: BenchResult) -> str:
    """Runtime, device and threads: what two times have to share."""
    return _place(result.job.runtime, result.device.title, result.job.threads)


def _place(runtime: str, device: str, threads: int) -> str:
    return f"{runtime}{'' if device == 'host' else f' on {device}'}, {threads} thread{'s' if threads > 1 else ''}"


def _best(point: Point, others: Sequence[Point]) -> bool | None:
    """Whether none that was measured in the same place beats it."""
    if point.p50 is None:
        return None
    rivals = [other for other in others if other is not point and other.p50 is not None and other.where == point.where]

    def key(one: Point) -> tuple[float, float, float]:
        return one.size, one.quality, one.p50 or 0.0

    return not any(
        all(a <= b for a, b in zip(key(other), key(point), strict=True)) and key(other) != key(point) for other in rivals
    )


def exported_targets(subject: Subject) -> list[str]:
    """Targets of a bundle's programs, but for the reference in torch."""
    return list(dict.fromkeys(program.target for program in subject.bundle.programs if program.target != "torch"))


def target_bytes(manifest: Manifest, target: str) -> int:
    """What a target's programs take in files, weights that they share included."""
    own = {program.file for program in manifest.programs if program.target == target}
    own |= {WEIGHTS} if target == "onnx" else set()
    return sum(entry.bytes for name, entry in manifest.files.items() if name in own or name.partition("/")[0] in own)


def speedup(a: BenchResult, b: BenchResult) -> str:
    """How often b's step fits into a's, with the interval, or why that cannot be said."""
    try:
        found = compare_results(a, b)
    except EdgeSDError as error:
        return error.message
    return _told(found)


def interleaved(comparisons: Sequence[Comparison], a: Subject, b: Subject, place: str) -> str | None:
    """The same of blocks that took turns, by the last of such comparisons; None where these two were not timed so."""
    pair = a.bundle.digest, b.bundle.digest
    for found in (one for comparison in reversed(comparisons) for one in (comparison, comparison.turned)):
        here = found.a.runtime == found.b.runtime and _place(found.a.runtime, found.device.title, found.threads) == place
        if found.interleaved and here and (found.a.bundle_digest, found.b.bundle_digest) == pair:
            return _told(found)
    return None


def _told(found: Comparison) -> str:
    return f"{found.speedup:.2f}× ({found.low:.2f}–{found.high:.2f}){'' if found.faster else ', cannot tell'}"
