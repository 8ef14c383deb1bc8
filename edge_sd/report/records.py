"""The results that lie beside a bundle: found by what they say they are, and kept where they are of that bundle."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from edge_sd.bundle.bundle import is_bundle
from edge_sd.devices import BenchResult
from edge_sd.devices._compare import Comparison
from edge_sd.errors import EdgeSDError, UsageError
from edge_sd.evaluation.record import Evaluation
from edge_sd.files import parse_model
from edge_sd.report.parity import ParityReport
from edge_sd.report.quantization import QuantizationReport
from edge_sd.runtimes.parity import ParityResult
from edge_sd.validation import Record

_KINDS: Mapping[str, type[Record]] = {
    "bench": BenchResult,
    "comparison": Comparison,
    "evaluation": Evaluation,
    "parity": ParityResult,
    "parity-report": ParityReport,
    "quantization": QuantizationReport,
}
# More than any of them has: a file beyond is somebody else's data.
_LARGEST = 1 << 26


@dataclass(frozen=True)
class Parity:
    """A parity result, and the picture of it, where there is one."""

    result: ParityResult
    picture: Path | None


@dataclass
class Records:
    """All results below some folders, oldest first, whatever they are of.

    Attributes:
        bench, evaluations, comparisons, quantizations: as they were read.
        left_out: what could not be read, and why.
    """

    parity: list[Parity] = field(default_factory=list)
    bench: list[BenchResult] = field(default_factory=list)
    evaluations: list[Evaluation] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)
    quantizations: list[QuantizationReport] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


def read_records(places: Iterable[Path]) -> Records:
    """Read what lies in folders, in their folders, and in files that are named.

    A file of another kind is passed over; one that is damaged, or of another version, is named in `left_out`.

    Raises:
        EdgeSDError: a place does not exist.
        UsageError: it is a file that holds no result.
    """
    found = Records()
    seen: set[Path] = set()
    named: list[Path] = []
    for place in places:
        if not place.exists():
            raise EdgeSDError(f"{place} does not exist", "a folder with results of edge-sd, or one of their JSON files")
        if place.is_file() and _kind(place) not in _KINDS:
            raise UsageError(f"{place} holds no result", "the JSON of edge-sd parity, bench, evaluate, quantize or compare")
        named += [place] if place.is_file() else list(_files(place))
    for path in sorted(named, key=lambda path: (path.stat().st_mtime_ns, str(path))):
        if path.resolve() in seen:
            continue
        seen.add(path.resolve())
        kind = _KINDS.get(_kind(path))
        if kind is not None:
            try:
                _add(found, path, parse_model(kind, path.read_bytes(), path))
            except EdgeSDError as error:
                found.left_out.append(error.message)
    return found


def _files(folder: Path) -> Iterator[Path]:
    """JSON files of a folder and of its folders, bundles and what is hidden left out."""
    folders = [each for each in sorted(folder.iterdir()) if each.is_dir() and not each.name.startswith(".")]
    for place in (folder, *(each for each in folders if not is_bundle(each))):
        try:
            yield from (file for file in sorted(place.glob("*.json")) if file.is_file() and file.stat().st_size <= _LARGEST)
        except OSError:  # somebody else's folder
            continue


def _kind(path: Path) -> str:
    """What a file says that it is; empty where it says nothing."""
    try:
        values = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return ""
    kind = values.get("kind") if isinstance(values, dict) else None
    return kind if isinstance(kind, str) else ""


def _add(found: Records, path: Path, record: Record) -> None:
    if isinstance(record, ParityReport):
        for result in record.results:
            picture = record.pictures.get(result.title)
            found.parity.append(Parity(result, _inside(path.parent, picture)))
    elif isinstance(record, ParityResult):
        found.parity.append(Parity(record, _inside(path.parent, f"{path.stem}.png")))
    elif isinstance(record, BenchResult):
        found.bench.append(record)
    elif isinstance(record, Evaluation):
        found.evaluations.append(record)
    elif isinstance(record, Comparison):
        found.comparisons.append(record)
    elif isinstance(record, QuantizationReport):
        found.quantizations.append(record)


def _inside(folder: Path, name: str | None) -> Path | None:
    """A picture that lies in the folder itself, where it is there: a name that leads elsewhere is nobody's picture."""
    if name is None or Path(name).name != name or not (folder / name).is_file():
        return None
    return folder / name
