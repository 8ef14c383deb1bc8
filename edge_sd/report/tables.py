"""The report's tables and sentences, as text: subjects side by side, bits of layers, what came out."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edge_sd.bundle.bits import LayerBits, effective_bits
from edge_sd.bundle.manifest import Program
from edge_sd.report.data import ModelRow, Report, Subject
from edge_sd.report.front import exported_targets, interleaved, speedup, target_bytes, where
from edge_sd.report.page import in_bytes

NONE = "–"


@dataclass(frozen=True)
class Line:
    """A row of the table of subjects: one cell each."""

    label: str
    cells: tuple[str, ...]


def side_by_side(report: Report) -> list[Line]:
    """All that subjects can be compared by; rows in which nobody has anything are left out."""
    subjects, first = report.subjects, report.subjects[0]
    lines = [
        _line("parameters", subjects, lambda one: f"{_exported(one).parameters / 1e6:.2f} M"),
        _line("MACs a call", subjects, lambda one: f"{_exported(one).macs / 1e9:.3f} G"),
        _line("plan", subjects, lambda one: f"{one.bundle.contract().plan.solver}, {one.nfe} calls"),
    ]
    for target in dict.fromkeys(name for one in subjects for name in exported_targets(one)):
        lines.append(_line(f"programs for {target}", subjects, lambda one, target=target: _size(one, target)))  # type: ignore[misc]
        lines.append(_line(f"bits a weight, {target}", subjects, lambda one, target=target: _bits(one, target)))  # type: ignore[misc]
    for title in dict.fromkeys(result.title for one in subjects for result in one.parity):
        lines.append(_line(f"parity, {title}", subjects, lambda one, title=title: _parity(one, title)))  # type: ignore[misc]
    for place in dict.fromkeys(where(result) for one in subjects for result in one.bench):
        lines.append(_line(f"p50 (95 %), {place}", subjects, lambda one, place=place: _time(one, place)))  # type: ignore[misc]
        lines.append(_line(f"faster than {first.name}, {place}", subjects, lambda one, place=place: _ratio(report, one, place)))  # type: ignore[misc]
        lines.append(_line(f"memory of the program (forecast), {place}", subjects, lambda one, place=place: _memory(one, place)))  # type: ignore[misc]
    names = [(figure.name, figure.n) for one in subjects for evaluation in one.evaluations for figure in evaluation.figures]
    for name, n in dict.fromkeys(names):
        if not name.startswith("wavelet"):
            lines.append(_line(f"{name}, n {n}", subjects, lambda one, name=name, n=n: _figure(one, name, n)))  # type: ignore[misc]
    if report.gallery is not None:
        drawn = {each.title: each for each in report.gallery.drawn}
        lines.append(_line(f"PSNR of {report.gallery.count} images against {first.name}", subjects,
                           lambda one: NONE if (psnr := drawn[one.name].psnr_db) is None else f"{psnr:.1f} dB"))  # fmt: skip
    return [line for line in lines if any(cell != NONE for cell in line.cells)]


def _line(label: str, subjects: Sequence[Subject], cell: Callable[[Subject], str]) -> Line:
    return Line(label, tuple(cell(subject) for subject in subjects))


def _exported(subject: Subject) -> ModelRow:
    """The model that the bundle holds."""
    return next((row for row in subject.models if row.weights_digest == subject.bundle.weights_digest), subject.models[-1])


def _size(subject: Subject, target: str) -> str:
    return in_bytes(target_bytes(subject.bundle, target)) if target in exported_targets(subject) else NONE


def _bits(subject: Subject, target: str) -> str:
    layers = next((one.layers for one in subject.bundle.programs if one.target == target and one.layers), ())
    return f"{effective_bits(layers):.2f}" if layers else NONE


def _parity(subject: Subject, title: str) -> str:
    found = next((one for one in subject.parity if one.title == title), None)
    if found is None:
        return NONE
    step = found.worst_step.forced
    gate = "" if step.gate_db is None else f" ({'budget' if found.quantized else 'gate'} {step.gate_db:.1f})"
    return f"{found.outcome}, {step.value_db:.1f} dB{gate}"


def _time(subject: Subject, place: str) -> str:
    found = next((one for one in subject.bench if where(one) == place), None)
    if found is None or found.latency is None:
        return NONE
    latency = found.latency
    marked = "" if found.times == "real" else f", {found.times}"
    return f"{latency.p50_ms:.2f} ms ({latency.low_ms:.2f}–{latency.high_ms:.2f}){marked}"


def _ratio(report: Report, subject: Subject, place: str) -> str:
    first = report.subjects[0]
    if subject is first:
        return NONE
    in_turn = interleaved(report.comparisons, first, subject, place)
    if in_turn is not None:
        return f"{in_turn}, interleaved"
    a, b = (next((result for result in one.bench if where(result) == place), None) for one in (first, subject))
    return NONE if a is None or b is None else speedup(a, b)


def _memory(subject: Subject, place: str) -> str:
    found = next((one for one in subject.bench if where(one) == place), None)
    measured = None if found is None else found.measurement
    if measured is None or found is None or not measured.peak_memory_bytes or not measured.base_memory_bytes:
        return NONE
    return f"{in_bytes(measured.peak_memory_bytes - measured.base_memory_bytes)} ({in_bytes(found.forecast_memory_bytes)})"


def _figure(subject: Subject, name: str, n: int) -> str:
    figures = (one for evaluation in subject.evaluations for one in evaluation.figures)
    found = next((one for one in figures if (one.name, one.n) == (name, n)), None)
    if found is None:
        return NONE
    return f"{found.value:.3f}" + ("" if found.standard_error is None else f" ± {found.standard_error:.3f}")


# Bits of layers


@dataclass(frozen=True)
class Bits:
    """Layers that were asked for, stored and computed alike."""

    layers: int
    asked: str
    stored: str
    computed: str
    fell_back: bool
    why: str


def bits_of(layers: Sequence[LayerBits]) -> list[Bits]:
    """A program's layers in groups, the largest first."""
    groups = Counter(
        (one.requested, one.requested_activations, one.stored, one.computed, one.why, one.fell_back) for one in layers
    )
    return [
        Bits(number, f"w{weights or ' float'} a{activations or ' float'}", f"{stored:g}", computed, fell_back, why)
        for (weights, activations, stored, computed, why, fell_back), number in groups.most_common()
    ]


def with_bits(subject: Subject) -> list[Program]:
    """Programs with a table of bits; of several denoisers of one target, which are alike, the first."""
    return [one for one in subject.bundle.programs if one.layers and one.name in ("denoiser", "temporal", "decoder")]


# Sentences


def summary(report: Report) -> list[str]:
    """What came out, a sentence each."""
    lines: list[str] = []
    for subject in report.subjects:
        lead = f"{subject.name}: " if report.several else ""
        lines += [lead + line for line in _said_of(subject)]
    for found in report.comparisons:
        pair = f"{found.a.bundle} (A) and {found.b.bundle} (B), {found.a.runtime}"
        how = "Interleaved" if found.interleaved else "Of two occasions"
        lines.append(f"{how} on {found.device.processor}, {pair}: {found.verdict}.")
    return lines


def _said_of(subject: Subject) -> list[str]:
    rows = {row.role: row for row in subject.models}
    lines = []
    if {"teacher", "student"} <= rows.keys():
        teacher, student = rows["teacher"], rows["student"]
        lines.append(
            f"The student has {student.parameters / 1e6:.2f} M parameters and {student.macs / 1e9:.3f} GMAC a call, "
            f"{teacher.parameters / student.parameters:.1f}× and {teacher.macs / student.macs:.1f}× fewer than its teacher."
        )
    else:
        row = _exported(subject)
        sizes = ", ".join(f"{in_bytes(target_bytes(subject.bundle, name))} for {name}" for name in exported_targets(subject))
        lines.append(
            f"{row.parameters / 1e6:.2f} M parameters and {row.macs / 1e9:.3f} GMAC a call, {subject.nfe} calls an image"
            + (f"; programs of {sizes}." if sizes else ".")
        )
    gaps = {one.role: one.gap_db for one in subject.gallery.spectra} if subject.gallery is not None else {}
    if {"real", "teacher", "student"} <= gaps.keys() and subject.gallery is not None:
        lines.append(
            f"The student's spectrum is {gaps['student']:.2f} dB off the real images', the teacher's {gaps['teacher']:.2f} dB "
            f"(mean over radii, {subject.gallery.count} samples each)."
        )
    if subject.quantization is not None:
        record = subject.quantization
        quality = record.quality
        lines.append(
            f"Quantized, {record.effective_bits:.2f} bits a weight, {record.weights_bytes / record.float_bytes:.3f} of float32: "
            f"the prediction's SNR against full precision is {quality.mean_db:.1f} dB on average over the steps, "
            f"PSNR of the images {quality.final_psnr_db:.1f} dB ({quality.images} images, simulated in torch)."
        )
    for program in with_bits(subject):
        fallen = [layer for layer in program.layers if layer.fell_back]
        if fallen:
            lines.append(
                f"{program.target}: {len(fallen)} of {len(program.layers)} layers of the {program.name} FELL BACK to more bits."
            )
    lines += [f"Parity of {result.verdict}." for result in subject.parity]
    if subject.exported_psnr_db is not None:
        lines.append(f"The exported student's samples against the student's, same noise: PSNR {subject.exported_psnr_db:.1f} dB.")
    for result in subject.bench:
        if result.latency is None:
            continue
        p50, p90 = result.latency.p50_ms, result.latency.p90_ms
        marked = "" if result.times == "real" else f" ({result.times}: says nothing of a real one)"
        lines.append(
            f"{where(result)}, {result.device.processor}{marked}: {p50:.2f} ms a step "
            f"(p50; p90 {p90:.2f}), {p50 * result.steps:.0f} ms an image of {result.steps} steps."
        )
    return lines
