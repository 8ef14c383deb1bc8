"""The functions are the verbs: the same arguments and defaults, results in place of tables, and nothing on the terminal."""

import inspect
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import edge_sd
from edge_sd.api.observer import Update
from edge_sd.bundle import Bundle
from edge_sd.checkpoint import Checkpoint, load_checkpoint
from edge_sd.errors import EdgeSDError, UsageError
from edge_sd.quantize.checkpoint import QuantizedCheckpoint
from edge_sd.report.parity import ParityReport

VERBS = ("distill", "quantize", "export", "parity", "bench")
# Of the terminal alone, or of another form there.
TERMINAL = {"form", "locate", "dry_run", "source", "processors"}


def function(verb: str) -> Callable[..., Any]:
    return getattr(import_module("edge_sd.api"), verb)  # type: ignore[no-any-return]


def plain(default: object) -> object:
    return str(default) if isinstance(default, Path) else default


@pytest.mark.parametrize("verb", VERBS)
def test_arguments_and_defaults_are_those_of_the_command_line(verb: str) -> None:
    told = inspect.signature(getattr(import_module(f"edge_sd.cli.{verb}"), verb)).parameters
    ours = inspect.signature(function(verb)).parameters
    assert set(told) - TERMINAL == set(ours) - TERMINAL - {"observer"}
    for name in set(ours) & set(told) - TERMINAL:
        assert plain(ours[name].default) == plain(told[name].default), name


@pytest.mark.parametrize("verb", VERBS)
def test_each_has_a_docstring_that_names_its_verb(verb: str) -> None:
    assert f"edge-sd {verb}" in str(function(verb).__doc__)


def test_importing_the_package_costs_nothing() -> None:
    heavy = "{'torch', 'numpy', 'pydantic', 'typer', 'onnx'}"
    light = f"assert not {heavy} & set(sys.modules)"
    code = f"import sys, edge_sd; {light}; assert callable(edge_sd.load); {light}"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_names_are_there_and_no_others() -> None:
    assert {*VERBS, "load", "Observer", "EdgeSDError"} <= set(dir(edge_sd))
    assert edge_sd.EdgeSDError is EdgeSDError
    for verb in (*VERBS, "load"):
        assert callable(getattr(edge_sd, verb))
    with pytest.raises(AttributeError, match="no attribute 'distil'"):
        _ = edge_sd.distil  # type: ignore[attr-defined]


def test_two_packages_are_functions_too(tmp_path: Path) -> None:
    """However they were imported."""
    code = (
        "import edge_sd.export, edge_sd.quantize.recipe, edge_sd\n"
        "from edge_sd.export import ExportRequest\n"
        "try: edge_sd.export('nothing.safetensors', target=['onnx'], output='x.edgesd')\n"
        "except edge_sd.EdgeSDError as error: print(error.message)\n"
        "try: edge_sd.quantize('nothing.safetensors')\n"
        "except edge_sd.EdgeSDError as error: print(error.message)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.splitlines() == ["nothing.safetensors does not exist"] * 2


class Recorder(edge_sd.Observer):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.labels: list[str] = []
        self.lines: list[str] = []
        self.updates: Counter[str] = Counter()

    @contextmanager
    def progress(self, label: str) -> Iterator[Update]:
        self.labels.append(label)

        def update(done: int, total: int, note: str) -> None:
            self.updates[label] += 1

        yield update

    def say(self, message: str) -> None:
        self.lines.append(message)


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Checkpoint) -> Path:
    folder = tmp_path_factory.mktemp("distilled")
    tiny_checkpoint.save(folder / "teacher.safetensors")
    recorder = Recorder()
    found = edge_sd.distill(
        folder / "teacher.safetensors", folder / "student", steps=2, batch_size=4, count=8, sample_every=0, observer=recorder
    )
    assert recorder.labels == ["reading images", "distilling tiny16"]
    assert recorder.updates["distilling tiny16"] == 2  # images that were read before are not read again
    assert found.header == load_checkpoint(folder / "student" / "checkpoint.safetensors").header
    return folder / "student" / "checkpoint.safetensors"


def test_the_whole_way(student: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    done = edge_sd.quantize(
        student, bits=8, iterations=0, steps=3, trajectories=2, groups=1, target=["none"], output=tmp_path / "small"
    )
    assert done.bundle is None
    assert isinstance(edge_sd.load(done.folder / "model.safetensors").checkpoint, QuantizedCheckpoint)  # type: ignore[union-attr]
    recorder = Recorder()
    bundle = edge_sd.export(student, target=["onnx"], steps=3, output=tmp_path / "s.edgesd", observer=recorder)
    assert recorder.lines[0].startswith("exporting: ")
    again = edge_sd.load(tmp_path / "s.edgesd")
    assert isinstance(again, Bundle)
    assert again.manifest == bundle.manifest
    proofs = edge_sd.parity(tmp_path / "s.edgesd", runtime=["onnxruntime"], output=tmp_path / "parity")
    assert proofs.passed
    written = ParityReport.model_validate_json((tmp_path / "parity" / "parity.json").read_text())
    assert tuple(written.results) == proofs.results
    measured = edge_sd.bench(bundle, runtime=["onnxruntime"], warmup=2, iterations=5, output=tmp_path / "bench.json")
    assert measured.passed
    assert measured.results[0].latency is not None
    assert (tmp_path / "bench.json").is_file()
    assert capfd.readouterr().out == ""


def test_what_breaks_is_an_error_or_in_the_result(student: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"unknown target 'onxx' .try: onnx"):
        edge_sd.export(student, target=["onxx"], output=tmp_path / "s.edgesd")
    bundle = edge_sd.export(student, target=["onnx"], steps=2, output=tmp_path / "s.edgesd")
    with pytest.raises(UsageError, match=r"s.edgesd exists"):
        edge_sd.export(student, target=["onnx"], output=tmp_path / "s.edgesd")
    proofs = edge_sd.parity(bundle, runtime=["executorch"])
    assert (proofs.passed, proofs.results) == (False, ())
    assert "executorch" in proofs.errors[0].message
    with pytest.raises(UsageError, match="unknown device 'phone'"):
        edge_sd.bench(bundle, device=["phone"])


def test_a_model_does_not_print_its_weights(student: Path) -> None:
    assert len(repr(edge_sd.load(student))) < 10_000
