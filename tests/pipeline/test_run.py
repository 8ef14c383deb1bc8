"""A whole run: every stage once, what changed again, the same result after any kill, and a report of it all."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml

from edge_sd.bundle import open_bundle
from edge_sd.checkpoint import load_checkpoint
from edge_sd.cli.main import main
from edge_sd.errors import EdgeSDError, ParityError, UsageError
from edge_sd.files import read_model
from edge_sd.pipeline.config import BUILT_IN, RunConfig, load_config
from edge_sd.pipeline.run import Run
from edge_sd.report.data import Report
from edge_sd.report.render import render

Walk = Callable[..., dict[str, str]]
MakeConfig = Callable[..., dict[str, Any]]

STAGES = ["teacher", "student", "export", "samples", "parity-onnxruntime", "parity-torch", "bench-onnxruntime"]
# Stage → what reads its outputs.
READERS = {
    "teacher": {"student", "export", "samples", "parity-onnxruntime", "parity-torch", "bench-onnxruntime"},
    "student": {"export", "samples", "parity-onnxruntime", "parity-torch", "bench-onnxruntime"},
    "export": {"samples", "parity-onnxruntime", "parity-torch", "bench-onnxruntime"},
}
# The panels of a run's report, by their names.
PANELS = {
    "s0-loss-teacher", "s0-loss-student", "s0-spectrum", "s0-gap", "s0-gates-down-16-8", "s0-gates-up-8-16", "s0-0-parity",
    "s0-0-bands", "s0-1-parity", "s0-1-bands", "latency-distribution", "latency-order", "memory",
}  # fmt: skip


def running(said: dict[str, str]) -> set[str]:
    return {stage for stage, state in said.items() if state == "running"}


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


class BegunError(Exception):
    """A stage has begun."""


def begin(config: RunConfig, out: Path) -> None:
    """Walk up to the first stage, and raise `BegunError` there."""

    def stop(stage: str, state: str) -> None:
        raise BegunError(f"{stage}: {state}")

    Run(config, out, observe=stop).walk()


# Once


def test_a_run_leaves_everything_behind(finished: Path) -> None:
    student = load_checkpoint(finished / "student" / "checkpoint.safetensors").header
    teacher = load_checkpoint(finished / "teacher" / "checkpoint.safetensors").header
    assert student.provenance.parents == {"teacher": teacher.digest}
    assert (student.provenance.made_by, student.provenance.steps, student.model.gating) == ("distill", 10, True)
    bundle = open_bundle(finished / "small.edgesd")
    assert bundle.manifest.weights_digest == student.digest
    assert (finished / "teacher" / "samples" / "step_000010.png").is_file()
    assert not list(finished.rglob("*.part"))
    assert not list(finished.rglob("state.safetensors"))


def test_a_second_walk_does_nothing(copied: Path, walk: Walk) -> None:
    before = {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()}
    assert walk(copied) == dict.fromkeys(STAGES, "done before")
    assert {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("output", "stage"),
    [
        ("teacher/checkpoint.safetensors", "teacher"),
        ("student/checkpoint.safetensors", "student"),
        ("small.edgesd", "export"),
        ("small.edgesd/denoiser.onnx", "export"),
        ("samples/teacher.safetensors", "samples"),
        ("samples/real.png", "samples"),
        ("parity/onnxruntime.json", "parity-onnxruntime"),
        ("parity/torch.png", "parity-torch"),
        ("bench/onnxruntime.json", "bench-onnxruntime"),
        ("stages/parity-torch.json", "parity-torch"),
    ],
)
def test_what_was_deleted_is_made_again_and_at_most_what_depends_on_it(output: str, stage: str, copied: Path, walk: Walk) -> None:
    remove(copied / output)
    again = running(walk(copied))
    assert stage in again
    assert again <= {stage} | READERS.get(stage, set())
    assert (copied / output).exists()


def test_another_gate_is_proved_again_and_nothing_else(copied: Path, walk: Walk) -> None:
    assert running(walk(copied, parity={"gate": {"margin_db": 21}})) == {"parity-onnxruntime", "parity-torch"}
    assert json.loads((copied / "parity" / "torch.json").read_text())["gate"]["margin_db"] == 21


def test_other_training_is_refused_by_name_unless_it_is_meant(copied: Path, walk: Walk) -> None:
    changes = {"student": {"train": {"learning_rate": 5e-4}}}
    before = load_checkpoint(copied / "student" / "checkpoint.safetensors").header.digest
    with pytest.raises(EdgeSDError, match=r"train\.learning_rate was 0\.001, now 0\.0005 .try: .*--overwrite"):
        walk(copied, **changes)
    assert load_checkpoint(copied / "student" / "checkpoint.safetensors").header.digest == before
    assert running(walk(copied, overwrite=True, **changes)) == {"student", *READERS["student"]}
    assert load_checkpoint(copied / "student" / "checkpoint.safetensors").header.digest != before


def test_a_refused_run_is_still_the_run_that_it_was(copied: Path, walk: Walk) -> None:
    before = (copied / "run.yaml").read_bytes()
    with pytest.raises(EdgeSDError, match="other settings"):
        walk(copied, student={"train": {"learning_rate": 5e-4}})
    assert (copied / "run.yaml").read_bytes() == before


def test_a_teacher_that_exists_is_followed_where_it_is(copied: Path, walk: Walk, tmp_path: Path) -> None:
    """The same weights from elsewhere: nothing is left to do, and the report has no curve of a training that it did not see."""
    (tmp_path / "elsewhere").mkdir()
    teacher = (copied / "teacher" / "checkpoint.safetensors").rename(tmp_path / "elsewhere" / "t.safetensors")
    remove(copied / "teacher")
    said = walk(copied, teacher={"checkpoint": str(teacher), "preset": None})
    assert said == dict.fromkeys(STAGES[1:], "done before")
    assert read_model(Report, copied / "report.json").subjects[0].curves.keys() == {"student"}


def test_saving_more_often_trains_nothing_again(copied: Path, walk: Walk) -> None:
    before = load_checkpoint(copied / "student" / "checkpoint.safetensors").header.digest
    walk(copied, student={"train": {"save_every": 5}})
    assert load_checkpoint(copied / "student" / "checkpoint.safetensors").header.digest == before


def test_a_damaged_checkpoint_is_named(copied: Path, walk: Walk) -> None:
    file = copied / "student" / "checkpoint.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(EdgeSDError, match=r"student.checkpoint\.safetensors"):
        walk(copied)


# Killed


def appeared(process: subprocess.Popen[bytes], folder: Path, pattern: str) -> None:
    """Wait for a file and kill the process there and then."""
    deadline = time.monotonic() + 120
    while not list(folder.glob(pattern)):
        assert process.poll() is None, "it ended before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def test_a_run_that_is_killed_again_and_again_ends_as_one_that_was_not(
    finished: Path, make_config: MakeConfig, tmp_path: Path
) -> None:
    """While the student learns, and while the bundle is being written."""
    config, out = tmp_path / "small.yaml", tmp_path / "out"
    config.write_text(yaml.safe_dump(make_config()))
    command = [sys.executable, "-m", "edge_sd", "run", str(config), "-o", str(out)]
    for pattern in ("student/state.safetensors", ".small.edgesd.*.part/golden.safetensors"):
        with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            appeared(process, out, pattern)
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "teacher: done before" in done.stderr
    for name in ("teacher", "student"):
        ours, unbroken = (load_checkpoint(folder / name / "checkpoint.safetensors").header for folder in (out, finished))
        assert ours.digest == unbroken.digest
        lines = [(folder / name / "metrics.jsonl").read_text().splitlines() for folder in (out, finished)]
        assert [json.loads(line)["loss"] for line in lines[0]] == [json.loads(line)["loss"] for line in lines[1]]
    assert open_bundle(out / "small.edgesd").manifest.files == open_bundle(finished / "small.edgesd").manifest.files


def test_a_run_that_was_killed_while_it_wrote_its_first_file_can_begin(make_config: MakeConfig, tmp_path: Path) -> None:
    """What the kill leaves of the file must not be taken for somebody else's."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".run.yaml.k3j2.part").write_text("name: sm")
    with pytest.raises(BegunError, match="teacher: running"):
        begin(RunConfig.model_validate(make_config()), tmp_path / "out")


# Proof


def call(*arguments: str) -> int:
    """The command line in this process: its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["edge-sd", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
    return int(ended.value.code or 0)


def test_a_gate_out_of_reach_is_exit_code_3_and_a_report(
    copied: Path, make_config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "strict.yaml"
    config.write_text(yaml.safe_dump(make_config(parity={"gate": {"fixed_db": 300}})))
    remove(copied / "report.html")
    assert call("run", str(config), "-o", str(copied)) == 3
    out, err = capsys.readouterr()
    assert "onnxruntime: inconclusive: step" in out.lower()
    assert "gate 300.0 dB" in out
    assert re.search(r"^error: onnxruntime: INCONCLUSIVE.*\ntry: .*report\.html shows where$", err, re.MULTILINE)
    assert 'class="failed"' in (copied / "report.html").read_text()
    assert not any(result.passed for result in read_model(Report, copied / "report.json").subjects[0].parity)


def test_a_failed_gate_fails_every_time(copied: Path, walk: Walk) -> None:
    """A stage that is "done before" with a bad result is no pass."""
    for _ in range(2):
        with pytest.raises(ParityError, match="INCONCLUSIVE"):
            walk(copied, parity={"gate": {"fixed_db": 300}})


# Refused before anything long


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"teacher": {"preset": "huge"}}, "teacher: unknown preset 'huge'; one of ffhq-ldm"),
        ({"student": {"preset": "latent61"}}, "student: unknown preset 'latent61'; latent16\\? one of"),
        ({"student": {"model": {"image_size": 15}}}, "image_size 15 cannot be halved 1 times"),
        ({"student": {"model": {"image_size": 32}}}, r"the teacher denoises \(3, 16, 16\), the student \(3, 32, 32\)"),
        ({"student": {"model": {"depth": 3}}}, "depth"),
        ({"student": {"train": {"steps": 0}}}, r"student\.train\.steps"),
        ({"teacher": {"train": {"learning_rate": "fast"}}}, r"teacher\.train\.learning_rate"),
        ({"teacher": {"checkpoint": "t.safetensors"}}, "either as a checkpoint or as a preset"),
        ({"teacher": {"checkpoint": "missing.safetensors", "preset": None}}, r"missing\.safetensors does not exist"),
        (
            {"sample": {"solver": "euler"}},
            "unknown solver 'euler' .try: one of ddim, ddpm, dpmpp, dpmpp-3m, fastdpm-step, fastdpm-var, unipc, unipc-3",
        ),
        ({"sample": {"spacing": "wide"}}, "unknown spacing 'wide'"),
        ({"sample": {"steps": 0}}, r"sample\.steps"),
        ({"sample": {"steps": 1001}}, "1001 steps"),
        ({"export": {"targets": ["tflite"]}}, "unknown target 'tflite' .try: one of coreml, executorch, onnx, or all"),
        ({"export": {"targets": []}}, "runtime onnxruntime runs the target onnx, which is not exported"),
        ({"parity": {"runtimes": ["gpu"]}}, "unknown runtime 'gpu' .try: one of .*executorch, .*onnxruntime, torch"),
        ({"bench": {"runtimes": ["gpu"]}}, "unknown runtime 'gpu'"),
        ({"bench": {"iterations": 0}}, r"bench\.iterations"),
        ({"bench": {"repeats": 3}}, r"bench\.repeats: Extra inputs are not permitted"),
        ({"benhc": {}}, "benhc: Extra inputs are not permitted"),
        ({"name": "../up"}, "name"),
        ({"data": {"source": "/nowhere"}}, "/nowhere is not a folder"),
        ({"data": {"count": 0}}, r"data\.count"),
    ],
)
def test_a_configuration_that_cannot_be_meant_is_refused_before_training(
    changes: dict[str, Any], complaint: str, make_config: MakeConfig, tmp_path: Path
) -> None:
    config = tmp_path / "bad.yaml"
    config.write_text(yaml.safe_dump(make_config(**changes)))
    with pytest.raises(EdgeSDError, match=complaint):
        begin(load_config(config), tmp_path / "out")
    assert not (tmp_path / "out" / "teacher").exists()


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[2] / "docs").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_configurations_of_the_documentation_are_some(path: Path) -> None:
    assert load_config(path).name == path.stem


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("name: [small", "is not YAML"),
        ("\tname: small", "is not YAML"),
        ("- a\n- b\n", "holds no settings"),
        ("just words", "holds no settings"),
        ("", "holds no settings"),
        ("name: small\n", "teacher: Field required"),
        ("1: 2\n", "name: Field required"),
    ],
)
def test_a_file_that_is_no_configuration(text: str, complaint: str, tmp_path: Path) -> None:
    config = tmp_path / "bad.yaml"
    config.write_text(text)
    with pytest.raises(EdgeSDError, match=complaint) as caught:
        load_config(config)
    assert "bad.yaml" in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.hint


def test_a_file_that_is_not_there_names_the_built_in_ones(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot read .*none\.yaml.*built-in one: demo"):
        load_config(tmp_path / "none.yaml")


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_an_output_that_is_no_run_is_left_alone(kind: str, walk: Walk, tmp_path: Path) -> None:
    out = tmp_path / "out"
    if kind == "folder":
        out.mkdir()
    mine = out if kind == "file" else out / "thesis.tex"
    mine.write_text("mine")
    with pytest.raises(UsageError, match=r"out exists and is no run .try: choose another -o"):
        walk(out)
    assert mine.read_text() == "mine"


@pytest.mark.parametrize("name", list(BUILT_IN))
def test_a_built_in_configuration_can_be_walked(name: str, tmp_path: Path) -> None:
    with pytest.raises(BegunError, match="teacher: running"):
        begin(load_config(name), tmp_path / "out")


# The report


class _References(HTMLParser):
    """Everything that a page points to, and the headings and alternative texts that it shows."""

    def __init__(self) -> None:
        super().__init__()
        self.references: list[str] = []
        self.alternatives: list[str] = []
        self.tags: set[str] = set()
        self.panels: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            if name in ("src", "href", "srcset", "action", "data", "poster"):
                self.references.append(value or "")
            if name == "alt":
                self.alternatives.append(value or "")
            if name == "id" and (value or "").endswith("-figure_1"):
                self.panels.add((value or "").removesuffix("-figure_1"))


def test_the_page_needs_nothing_but_itself(finished: Path) -> None:
    text = (finished / "report.html").read_text()
    page = _References()
    page.feed(text)
    assert page.references
    assert all(reference.startswith(("data:image/png;base64,", "#")) for reference in page.references)
    assert not page.tags & {"script", "link", "iframe", "object"}
    assert not re.search(r"https?://|@import|url\((?!#)", text)


def test_the_page_shows_every_figure_and_every_role(finished: Path) -> None:
    page = _References()
    page.feed((finished / "report.html").read_text())
    files = {path.stem for path in (finished / "report-figures").iterdir()}
    assert files > PANELS
    assert page.panels == PANELS
    # Roles with their log-spectra, the exported student's difference, and the differences of two runtimes.
    pictures = [reference for reference in page.references if reference.startswith("data:image/png;base64,")]
    assert len(pictures) == 2 * 4 + 1 + 2 + 2 * 2, "the last: two heat maps, each with its scale"
    for role in ("real", "teacher", "student", "exported"):
        assert any(f"pictures: {role}," in alternative for alternative in page.alternatives)


def test_the_markdown_shows_pictures_that_are_there(finished: Path) -> None:
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", (finished / "report.md").read_text())
    assert len(pictures) == len(PANELS) + 2 * 4 + 1
    for picture in pictures:
        assert (finished / picture).read_bytes().startswith(b"\x89PNG"), picture


def test_the_data_say_what_happened(finished: Path, make_config: MakeConfig) -> None:
    (report,) = read_model(Report, finished / "report.json").subjects
    assert (report.name, report.source) == ("small", "run")
    assert [row.role for row in report.models] == ["teacher", "student"]
    assert [row.provenance.steps for row in report.models] == [10, 10]
    assert report.curves["student"].steps == list(range(1, 11))
    assert {"denoise", "spatial", "frequency", "loss"} == report.curves["student"].terms.keys()
    assert report.gallery is not None
    assert [spectrum.role for spectrum in report.gallery.spectra] == ["real", "teacher", "student", "exported"]
    assert report.gallery.spectra[0].gap_db == 0
    assert (report.gallery.count, len(report.timesteps), report.nfe) == (4, 3, 3)
    assert report.exported_psnr_db is not None
    assert report.exported_psnr_db > 80
    assert [result.runtime for result in report.parity] == ["onnxruntime", "torch"]
    assert {result.bundle_digest for result in report.parity} == {report.bundle.digest}
    assert [len(result.measurement.samples_ms) for result in report.bench if result.measurement] == [5]
    assert list(report.seconds) == STAGES
    assert report.config["student"]["train"]["steps"] == make_config()["student"]["train"]["steps"]


def test_rendering_again_gives_the_same_page(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ("report.html", "report.md", "report.json")
    before = [(copied / name).read_bytes() for name in names]
    for name in ("report.html", "report.md"):
        remove(copied / name)
    assert call("report", str(copied)) == 0
    assert [(copied / name).read_bytes() for name in names] == before
    assert "The student has" in capsys.readouterr().out


def test_a_report_s_json_and_its_pictures_are_enough_to_render_it(finished: Path, tmp_path: Path) -> None:
    shutil.copy(finished / "report.json", tmp_path)
    shutil.copytree(finished / "report-figures", tmp_path / "report-figures")
    assert call("report", str(tmp_path / "report.json")) == 0
    for name in ("report.html", "report.md"):
        assert (tmp_path / name).read_bytes() == (finished / name).read_bytes()


def test_a_report_whose_pictures_are_gone(copied: Path) -> None:
    remove(copied / "report-figures" / "0-images.png")
    with pytest.raises(EdgeSDError, match=r"cannot read .*0-images\.png.*edge-sd report draws it again"):
        render(copied / "report.json")


def test_a_report_of_before_is_refused_by_its_version(copied: Path) -> None:
    values = json.loads((copied / "report.json").read_text())
    (copied / "report.json").write_text(json.dumps({**values, "schema_version": 3}))
    with pytest.raises(EdgeSDError, match="schema version 3, this edge-sd reads version 4"):
        render(copied / "report.json")
