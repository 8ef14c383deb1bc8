"""Does an exported program draw what the reference draws?"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edge_sd.api.observer import SILENT, Observer

if TYPE_CHECKING:
    from edge_sd.bundle import Bundle
    from edge_sd.errors import EdgeSDError
    from edge_sd.runtimes.evidence import Evidence
    from edge_sd.runtimes.floor import Floor, Precision
    from edge_sd.runtimes.parity import Gate, ParityResult

ALL = "all"  # for every runtime that there is


@dataclass(frozen=True)
class Proofs:
    """What `parity` found.

    Attributes:
        results: of each device and runtime that could be tried.
        evidence: of each result, its samples along the trajectories.
        errors: of those that broke before there was a result.
    """

    bundle: "Bundle"
    results: "tuple[ParityResult, ...]"
    evidence: "tuple[tuple[Evidence, ...], ...]"
    errors: "tuple[EdgeSDError, ...]"

    @property
    def passed(self) -> bool:
        """Whether all were tried, and all draw what the reference draws."""
        return not self.errors and all(result.passed for result in self.results)


def parity(
    bundle: "str | Path | Bundle",
    *,
    runtime: Sequence[str] | None = None,
    device: Sequence[str] | None = None,
    gate: float | None = None,
    margin: float = 20.0,
    budget: float = 10.0,
    threads: int | None = None,
    patience: float = 120.0,
    output: str | Path | None = None,
    overwrite: bool = False,
    observer: Observer = SILENT,
) -> Proofs:
    """Compare runtimes with the golden trajectories, step by step and band by band; what `edge-sd parity` does.

    Args:
        runtime: names, or ["all"]; all that run the bundle here and are not emulated, if left out.
        device: NAME or NAME:ADDRESS of each; this machine if left out.
        gate: lowest decibels at any teacher-forced step, in place of margin and budget.
        margin: how far below the measured noise floor a lossless program may be, in dB.
        budget: lowest decibels of a quantized program at any step.
        output: folder for parity.json, parity.html and the pictures.

    Raises:
        UsageError: an unknown runtime or device, or `output` exists.
        EdgeSDError: the bundle is damaged. What breaks one runtime is in `errors`.
    """
    from edge_sd.bundle import Bundle, open_bundle
    from edge_sd.errors import UsageError
    from edge_sd.report.parity import difference_sheet, write_parity
    from edge_sd.runtimes.parity import Gate

    folder = None if output is None else Path(output)
    if folder is not None and folder.exists() and not overwrite:
        raise UsageError(f"{folder} exists", "give --overwrite to write into it, or another -o")
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(Path(bundle))
    asked = Gate(margin_db=margin, budget_db=budget, fixed_db=gate)
    found, broken = _results(opened, _places(opened, device, runtime), asked, threads, patience, observer)
    if folder is not None and found:
        sheets = {result.title: difference_sheet(opened.golden, evidence) for result, evidence in found}
        write_parity(folder, [result for result, _ in found], sheets)
    results, evidence = tuple(result for result, _ in found), tuple(each for _, each in found)
    return Proofs(opened, results, evidence, tuple(broken))


def _places(bundle: "Bundle", devices: Sequence[str] | None, asked: Sequence[str] | None) -> list[tuple[str, str]]:
    """(device, runtime) of all that is to be proved; an empty runtime is the device's choice."""
    pairs = []
    for place in dict.fromkeys(devices or ["host"]):
        names = _names(bundle, asked) if place == "host" else _names_on(place, bundle, asked)
        pairs += [(place, name) for name in names]
    return pairs


def _names(bundle: "Bundle", asked: Sequence[str] | None) -> list[str]:
    """Names of runtimes: those that were asked for, or those that run the bundle's programs on this machine."""
    from edge_sd.runtimes import runtimes

    if asked and ALL not in asked:
        return list(dict.fromkeys(asked))
    targets = {program.target for program in bundle.manifest.programs}
    fitting = [runtime for runtime in runtimes().values() if runtime.target in targets and runtime.available().ok]
    return [runtime.name for runtime in fitting if asked or not runtime.emulated]


def _names_on(place: str, bundle: "Bundle", asked: Sequence[str] | None) -> list[str]:
    from edge_sd.devices import find_device

    if asked and ALL not in asked:
        return list(dict.fromkeys(asked))
    if not asked:
        return [""]
    device, address = find_device(place)
    with device.open(address) as connection:
        return list(connection.runtimes(bundle))


def _results(
    bundle: "Bundle",
    pairs: list[tuple[str, str]],
    gate: "Gate",
    threads: int | None,
    patience: float,
    observer: Observer,
) -> "tuple[list[tuple[ParityResult, tuple[Evidence, ...]]], list[EdgeSDError]]":
    """Every result and its evidence, and the errors of those that broke: one does not stop the others."""
    from edge_sd.devices import Job, prove
    from edge_sd.errors import EdgeSDError
    from edge_sd.runtimes import find_runtime
    from edge_sd.runtimes.parity import check_parity

    floors: dict[Precision, Floor] = {}
    found, broken = [], []
    for place, name in pairs:
        try:
            if place == "host":
                floor = measured_floor(bundle, find_runtime(name).target, floors, observer)
                with observer.progress(f"parity of {name}") as update:
                    found.append(
                        check_parity(
                            bundle, name, gate=gate, floor=floor, threads=threads,
                            observe=lambda done, total: update(done, total, ""),
                        )
                    )  # fmt: skip
                continue
            for target in {program.target for program in bundle.manifest.programs} & {"onnx", "executorch"}:
                measured_floor(bundle, target, floors, observer)
            with observer.progress(f"parity on {place}") as update:
                job = Job(runtime=name, threads=threads or 1, patience=patience)
                found.append(prove(place, bundle, job, gate=gate, floors=floors, observe=update))
        except EdgeSDError as error:
            broken.append(error)
            if len(pairs) > 1:
                observer.say(f"{place} {name}: {error.message}")
    return found, broken


def measured_floor(bundle: "Bundle", target: str, floors: "dict[Precision, Floor]", observer: Observer) -> "Floor":
    """The noise floor of a target's precision, taken from `floors` or measured into it."""
    from edge_sd.runtimes.floor import noise_floor
    from edge_sd.runtimes.parity import precision_of

    precision = precision_of(bundle, target)
    if precision not in floors:
        with observer.progress(f"noise floor of {precision}") as update:
            floors[precision] = noise_floor(bundle, precision, lambda done, total: update(done, total, ""))
    return floors[precision]
