"""The page and the card, both from report.json and the pictures beside it."""

from pathlib import Path

from edge_sd.errors import EdgeSDError
from edge_sd.files import read_model, write_bytes, write_model, write_text
from edge_sd.report.data import RunReport
from edge_sd.report.figures import figures
from edge_sd.report.page import data_url, template

JSON, HTML, MARKDOWN = "report.json", "report.html", "report.md"


def write_report(report: RunReport, folder: Path) -> None:
    """Write report.json, report.html (self-contained) and report.md with its figures."""
    drawn = figures(report)
    for name, png in drawn.items():
        write_bytes(folder / "figures" / f"{name}.png", png)
    pictures = {role: _read_png(folder / path) for role, path in report.samples.items()}
    context = {"report": report, "summary": summary(report)}
    write_text(
        folder / HTML,
        template("report.html.j2").render(
            **context,
            figures={name: data_url(png) for name, png in drawn.items()},
            samples={role: data_url(png) for role, png in pictures.items()},
            differences={name: data_url(_read_png(folder / path)) for name, path in report.parity_pictures.items()},
        ),
    )
    write_text(
        folder / MARKDOWN,
        template("report.md.j2").render(
            **context, figures={name: f"figures/{name}.png" for name in drawn}, samples=report.samples
        ),
    )
    write_model(folder / JSON, report)


def render(folder: Path) -> RunReport:
    """Render a run's report again from its report.json."""
    report = read_model(RunReport, folder / JSON)
    write_report(report, folder)
    return report


def summary(report: RunReport) -> list[str]:
    """What came out, a sentence each."""
    lines = []
    rows = {row.role: row for row in report.models}
    teacher, student = rows["teacher"], rows["student"]
    lines.append(
        f"The student has {student.parameters / 1e6:.2f} M parameters and {student.macs / 1e9:.3f} GMAC a call, "
        f"{teacher.parameters / student.parameters:.1f}× and {teacher.macs / student.macs:.1f}× fewer than its teacher."
    )
    gaps = {spectrum.role: spectrum.gap_db for spectrum in report.spectra}
    lines.append(
        f"The student's spectrum is {gaps['student']:.2f} dB off the real images', the teacher's {gaps['teacher']:.2f} dB "
        f"(mean over radii, {report.sample_count} samples each)."
    )
    lines += [f"Parity of {result.verdict}." for result in report.parity]
    lines.append(f"The exported student's samples against the student's, same noise: PSNR {report.exported_psnr_db:.1f} dB.")
    for result in report.bench:
        if result.latency is None:
            continue
        p50, p90 = result.latency.p50_ms, result.latency.p90_ms
        lines.append(
            f"{result.job.runtime} on {result.device.processor}, {result.job.threads} threads: {p50:.2f} ms a step "
            f"(p50; p90 {p90:.2f}), {p50 * result.steps:.0f} ms an image of {result.steps} steps."
        )
    return lines


def _read_png(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise EdgeSDError(f"cannot read {path}: {error.strerror}", "edge-sd run draws it again") from error
