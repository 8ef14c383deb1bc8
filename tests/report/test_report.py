"""From a run, a bundle or several to one JSON: what belongs to it is found, what does not is left out, and nothing is made up."""

import json
import math
import os
import re
import shutil
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edge_sd.bundle import open_bundle
from edge_sd.bundle.manifest import WEIGHTS, FileEntry
from edge_sd.devices import BenchResult
from edge_sd.devices._compare import Comparison, Side
from edge_sd.files import read_model, write_model
from edge_sd.quantize.checkpoint import load_quantized
from edge_sd.report.assemble import Choice, assemble
from edge_sd.report.card import card_path
from edge_sd.report.data import Report
from edge_sd.report.front import Point, _best, points, quality_of, target_bytes
from edge_sd.report.page import BLUE, RED, Panel, panel
from edge_sd.report.parity import ParityReport
from edge_sd.report.pictures import Files, Images, gallery
from edge_sd.report.quantization import QuantizationReport
from edge_sd.report.records import read_records
from edge_sd.report.tables import NONE, bits_of, side_by_side, summary
from verbs import call, refused, succeeded


@pytest.fixture
def copied(exact: Path, tmp_path: Path) -> Path:
    """The folder of the bundle in full precision, to be changed."""
    return Path(shutil.copytree(exact.parent, tmp_path / "copied"))


# What is found


def test_results_beside_a_bundle_are_its_own(single: tuple[Report, Files]) -> None:
    report, files = single
    (subject,) = report.subjects
    assert (report.name, subject.source, report.several, report.chosen) == ("tiny", "bundle", False, "")
    assert [result.runtime for result in subject.parity] == ["onnxruntime", "torch"]
    assert [result.job.runtime for result in subject.bench] == ["onnxruntime"]
    assert [one.figure("some-KID").value for one in subject.evaluations] == [1.5]
    assert subject.quantization is None
    assert report.left_out == []
    assert {sheet.title for sheet in subject.sheets} == {"onnxruntime", "torch"}
    shown = [sheet.file for sheet in subject.sheets]
    assert subject.gallery is not None
    shown += [name for one in subject.gallery.drawn for name in (one.images, one.log_spectrum)]
    assert sorted(shown) == sorted(files)
    assert all(png.startswith(b"\x89PNG") for png in files.values())


def test_results_of_another_bundle_are_not(copied: Path) -> None:
    result = read_model(BenchResult, copied / "bench.json")
    write_model(copied / "bench.json", result.model_copy(update={"bundle_digest": "0" * 64}))
    parity = read_model(ParityReport, copied / "parity" / "parity.json")
    others = [one.model_copy(update={"bundle_digest": "0" * 64}) for one in parity.results]
    write_model(copied / "parity" / "parity.json", parity.model_copy(update={"results": others}))
    (subject,) = assemble([copied / "tiny.edgesd"], "f")[0].subjects
    assert (subject.bench, subject.parity, subject.sheets) == ([], [], [])
    assert len(subject.evaluations) == 1


def test_results_of_before_digests_were_kept_are_told_by_name(copied: Path) -> None:
    path = copied / "parity" / "parity.json"
    values = json.loads(path.read_text())
    for result in values["results"]:
        del result["bundle_digest"]
    path.write_text(json.dumps(values))
    assert len(assemble([copied / "tiny.edgesd"], "f")[0].subjects[0].parity) == 2
    (copied / "tiny.edgesd").rename(copied / "renamed.edgesd")
    assert assemble([copied / "renamed.edgesd"], "f")[0].subjects[0].parity == []


def test_of_two_results_the_newer_one_counts(copied: Path) -> None:
    older = read_model(BenchResult, copied / "bench.json")
    assert older.latency is not None
    newer = older.model_copy(update={"latency": older.latency.model_copy(update={"p50_ms": 123.0})})
    write_model(copied / "again.json", newer)
    os.utime(copied / "bench.json", (1, 1))
    (result,) = assemble([copied / "tiny.edgesd"], "f")[0].subjects[0].bench
    assert result.latency is not None
    assert result.latency.p50_ms == 123.0


def test_a_damaged_result_is_named_and_a_stranger_is_passed_over(copied: Path) -> None:
    (copied / "bench.json").write_text('{"kind": "bench", "schema_version": 1}')
    (copied / "evaluation.json").write_text('{"kind": "evaluation", "schema_version": 1, "n": "many"}')
    for name, text in {"a.json": "{", "b.json": '{"kind": 3}', "c.json": "[1]", "d.json": "\x00"}.items():
        (copied / name).write_text(text)
    report, _ = assemble([copied / "tiny.edgesd"], "f")
    assert (report.subjects[0].bench, report.subjects[0].evaluations) == ([], [])
    assert len(report.left_out) == 2
    assert any("bench.json has schema version 1, this edge-sd reads version 2" in line for line in report.left_out)
    assert any("evaluation.json is not a valid Evaluation" in line for line in report.left_out)


def test_a_picture_that_leads_elsewhere_is_none(copied: Path) -> None:
    path = copied / "parity" / "parity.json"
    values = json.loads(path.read_text())
    values["pictures"] = dict.fromkeys(values["pictures"], "../../secret.png")
    path.write_text(json.dumps(values))
    (copied.parent / "secret.png").write_bytes(b"x")
    assert [each.picture for each in read_records([copied]).parity] == [None, None]


# Several


def test_a_comparison_is_with_the_first(compared: tuple[Report, Files], exact: Path, quantized: Path) -> None:
    report, files = compared
    assert ([one.name for one in report.subjects], report.chosen) == (["tiny", "w8a8"], "w8a8")
    assert report.subjects[1].quantization is not None
    assert report.gallery is not None
    first, second = report.gallery.drawn
    assert (first.difference, first.psnr_db, second.reference) == (None, None, "tiny")
    ours, theirs = (
        np.stack([one.final for one in open_bundle(path).golden.trajectories]) for path in (exact, quantized / "w8a8.edgesd")
    )
    rmse = np.sqrt(np.mean((ours[: len(theirs)] - theirs[: len(ours)]) ** 2)) / 2
    assert second.rmse == pytest.approx(rmse, rel=1e-5)
    assert sorted(files) == sorted(
        [name for one in report.gallery.drawn for name in (one.images, one.difference, one.log_spectrum) if name]
        + [sheet.file for subject in report.subjects for sheet in subject.sheets]
    )


def test_the_table_says_what_is_known_of_each(compared: tuple[Report, Files]) -> None:
    report, _ = compared
    lines = {line.label: line.cells for line in side_by_side(report)}
    assert lines["some-KID, n 64"] == ("1.500 ± 0.050", "1.800 ± 0.050")
    assert lines["bits a weight, onnx"][0] == NONE
    assert float(lines["bits a weight, onnx"][1]) == pytest.approx(8, abs=0.5)
    assert lines["parity, torch"][1] == NONE
    assert re.fullmatch(r"\d+\.\d\d× \(.*\).*", lines["faster than tiny, onnxruntime, 1 thread"][1])
    assert all(any(cell != NONE for cell in cells) for cells in lines.values())


def test_quality_is_a_shared_distance_or_that_to_the_first(compared: tuple[Report, Files]) -> None:
    report, _ = compared
    shared = quality_of(report)
    assert shared is not None
    assert shared.of == {"tiny": (1.5, 0.05), "w8a8": (1.8, 0.05)}
    alone = [report.subjects[0].model_copy(update={"evaluations": []}), report.subjects[1]]
    other = quality_of(report.model_copy(update={"subjects": alone}))
    assert other is not None
    assert "RMS difference to tiny" in other.name
    assert other.of["tiny"] == (0.0, 0.0)
    assert other.of["w8a8"][0] > 0
    assert {point.subject for point in points(report)} == {"tiny", "w8a8"}


def test_a_point_is_beaten_by_one_that_is_no_worse_in_anything() -> None:
    def point(size: int, quality: float, p50: float | None, where: str = "here") -> Point:
        return Point("x", where, size, quality, 0.0, p50, p50, p50)

    good, slow, small, unknown = point(2, 1.0, 1.0), point(2, 1.0, 2.0), point(1, 3.0, 3.0), point(9, 9.0, None)
    everyone = [good, slow, small, unknown, point(9, 9.0, 9.0, "elsewhere")]
    assert [_best(one, everyone) for one in everyone] == [True, False, True, None, True]


def test_the_size_of_a_target_is_that_of_its_files_and_shared_weights(single: tuple[Report, Files]) -> None:
    manifest = single[0].subjects[0].bundle
    (program,) = [one for one in manifest.programs if one.target == "onnx"]
    assert target_bytes(manifest, "onnx") == manifest.files[program.file].bytes
    shared = {**manifest.files, WEIGHTS: FileEntry(sha256="0" * 64, bytes=1000)}
    more = manifest.model_copy(update={"files": shared})
    assert target_bytes(more, "onnx") == manifest.files[program.file].bytes + 1000
    assert target_bytes(more, "torch") == manifest.files["reference.safetensors"].bytes


def test_layers_in_groups_are_all_layers(compared: tuple[Report, Files]) -> None:
    (program,) = [one for one in compared[0].subjects[1].bundle.programs if one.layers]
    groups = bits_of(program.layers)
    assert sum(group.layers for group in groups) == len(program.layers)
    assert {group.asked for group in groups} >= {"w8 a8"}


def test_times_that_took_turns_come_before_those_of_two_occasions(compared: tuple[Report, Files]) -> None:
    report = compared[0]
    (result,) = report.subjects[0].bench
    first, second = (
        Side(bundle=one.name, bundle_digest=one.bundle.digest, runtime=result.job.runtime, runtime_version="", blocks_ms=(1.0,))
        for one in report.subjects
    )

    def ratio(a: Side, b: Side, *, interleaved: bool = True, threads: int = result.job.threads) -> str:
        found = Comparison(
            device=result.device, times=result.times, threads=threads, a=a, b=b, interleaved=interleaved,
            speedup=2.0, low=1.6, high=2.5,
        )  # fmt: skip
        lines = side_by_side(report.model_copy(update={"comparisons": [found]}))
        (cells,) = [line.cells for line in lines if line.label.startswith("faster than")]
        assert cells[0] == NONE
        return cells[1]

    assert ratio(first, second) == "2.00× (1.60–2.50), interleaved"
    assert ratio(second, first) == "0.50× (0.40–0.62), interleaved"
    apart = ratio(first, second, interleaved=False)
    assert apart == ratio(first, second, threads=result.job.threads + 1)
    assert "interleaved" not in apart


def test_of_two_quantizations_by_one_calibration_each_has_its_own_record(quantized: Path, tmp_path: Path) -> None:
    record = read_model(QuantizationReport, quantized / "quantize.json")
    assert record.digest == load_quantized(quantized / "model.safetensors").header.digest
    other = record.model_copy(update={"digest": "f" * 64, "effective_bits": 2.5})
    write_model(tmp_path / "newer.json", other)
    report, _ = assemble([quantized], "f", Choice(results=(tmp_path,)))
    assert report.subjects[0].quantization == record
    write_model(tmp_path / "newer.json", other.model_copy(update={"digest": ""}))  # as they were before they held one
    report, _ = assemble([quantized], "f", Choice(results=(tmp_path,)))
    assert report.subjects[0].quantization is not None
    assert report.subjects[0].quantization.effective_bits == 2.5


def test_two_of_one_name_are_told_apart(exact: Path, copied: Path, tmp_path: Path) -> None:
    succeeded("plan", "swap", copied / "tiny.edgesd", "--steps", 2)
    report, _ = assemble([exact, copied / "tiny.edgesd"], "f")
    assert [one.name for one in report.subjects] == [f"{exact.parent.name}/tiny", "copied/tiny"]


# Pictures


def test_differences_are_eight_times_as_large_and_gaps_are_to_the_first() -> None:
    rng = np.random.default_rng(0)
    first = (rng.random((4, 3, 16, 16)) - 0.5).astype(np.float32)
    second = first + np.float32(0.06)
    found, files = gallery([Images("a", "x", first), Images("b", "x", second, "a")], "f", "p-", same_noise=True)
    assert found.drawn[1].psnr_db == pytest.approx(10 * math.log10(4 / 0.06**2), abs=1e-3)
    with Image.open(BytesIO(files[found.drawn[1].difference or ""])) as image:
        centre = np.asarray(image)[5, 5]
    assert centre.tolist() == [round((8 * 0.06 + 1) * 127.5)] * 3
    assert [one.gap_db for one in found.spectra] == pytest.approx([0, 0], abs=1e-4)


def test_a_wave_is_two_points_of_the_log_spectrum() -> None:
    wave = np.cos(2 * np.pi * 8 * np.arange(32) / 32).astype(np.float32)
    values = np.broadcast_to(wave, (2, 3, 32, 32)).copy()
    found, files = gallery([Images("a", "x", values)], "f", "", same_noise=True)
    with Image.open(BytesIO(files[found.drawn[0].log_spectrum])) as image:
        pixels = np.asarray(image.resize((32, 32), Image.Resampling.NEAREST)).astype(int)
    brightest = np.argwhere(pixels[..., 1] == pixels[..., 1].max())  # viridis' green rises all the way
    assert sorted(map(tuple, brightest.tolist())) == [(16, 8), (16, 24)]


def test_a_panel_follows_the_page_and_keeps_its_names_to_itself() -> None:
    figure, ax = panel()
    ax.plot([1, 2], color=BLUE)
    ax.plot([2, 1], color=RED)
    svg = Panel("one", "title", 'says "<this>"', figure).svg()
    assert 'aria-label="says &#34;&lt;this&gt;&#34;"' in svg
    assert "var(--s0)" in svg
    assert "var(--s1)" in svg
    assert "currentColor" in svg
    assert not re.search(r"#(1f6fb4|c0311e|000000)|https?:|<style|font-family", svg)
    assert all(name.startswith("one-") for name in re.findall(r'\bid="([^"]+)"', svg))
    assert all(name.startswith("#one-") for name in re.findall(r'href="([^"]+)"', svg))
    with pytest.raises(ValueError, match="no plain name"):
        Panel("a/b", "", "", figure)


# The verb


def test_the_verb_writes_page_markdown_json_and_cards(copied: Path, tmp_path: Path) -> None:
    done = succeeded("report", copied / "tiny.edgesd", "-o", tmp_path / "out" / "mine.html", "--cards")
    report = read_model(Report, tmp_path / "out" / "mine.json")
    assert done.out.splitlines() == summary(report)
    for picture in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", (tmp_path / "out" / "mine.md").read_text()):
        assert (tmp_path / "out" / picture).read_bytes().startswith(b"\x89PNG")
    card = card_path(copied / "tiny.edgesd").read_text()
    assert card.index("## Figures") < card.index("## How to run it")
    for said in ("some-KID 1.5 ± 0.05", "Parity of onnxruntime: passed", "95 % ", "n = 64"):
        assert said in card
    assert open_bundle(copied / "tiny.edgesd").manifest.digest == report.subjects[0].bundle.digest


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("EMPTY",), ("is no run, and holds no bundle",)),
        (("BUNDLE", "BUNDLE"), ("the same bundle was given twice",)),
        (("BUNDLE", "-o", "report.pdf"), ("ends in .html", "report.pdf.html")),
        (("BUNDLE", "--chosen", "none"), ("--chosen none", "one of tiny")),
    ],
)
def test_what_cannot_be_meant_is_refused(
    arguments: tuple[str, ...], said: tuple[str, ...], exact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "EMPTY").mkdir()
    refused(call("report", *(str(exact) if one == "BUNDLE" else one for one in arguments)), 2, *said)
    assert not list(tmp_path.glob("report*"))


@pytest.mark.parametrize("arguments", [("MISSING",), ("BUNDLE", "--results", "MISSING")])
def test_what_is_not_there_is_named(
    arguments: tuple[str, ...], exact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refused(call("report", *(str(exact) if one == "BUNDLE" else one for one in arguments)), 1, "MISSING does not exist")
