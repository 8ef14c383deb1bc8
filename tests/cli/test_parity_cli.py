"""`edge-sd parity` and `selftest`: bundles that are damaged, runtimes that die, and what a person is told of them."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import psutil
import pytest
from onnx import numpy_helper

from damage import reseal
from edge_sd.bundle.manifest import GOLDEN
from edge_sd.checkpoint import Checkpoint
from edge_sd.export import ExportRequest, TargetOptions, export_bundle
from edge_sd.files import read_model
from edge_sd.report.parity import ParityReport
from verbs import call

RUNTIMES = ("coreml-reference", "executorch", "executorch-runner", "executorch-runner-aarch64", "onnxruntime", "torch")


@pytest.fixture(scope="module")
def every(tiny_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For every target: 3 steps, 1 trajectory."""
    path = tmp_path_factory.mktemp("every") / "every.edgesd"
    export_bundle(tiny_checkpoint, path, ExportRequest(("all",), steps=3, goldens=1))
    return path


@pytest.fixture
def copied(every: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(every, tmp_path / "copied.edgesd"))


def test_all_runtimes_from_one_command_in_one_table(every: Path, tmp_path: Path) -> None:
    done = call("parity", every, "--runtime", "all", "-o", tmp_path / "out")
    assert done.code == 0, done.err
    results = read_model(ParityReport, tmp_path / "out" / "parity.json").results
    assert tuple(result.runtime for result in results) == RUNTIMES
    assert all(result.passed for result in results)
    assert [result.runtime for result in results if result.emulated] == ["executorch-runner-aarch64"]
    assert all(f"{name}: passed, nearest to its gate is" in done.out for name in RUNTIMES)
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == {f"{name}.png" for name in RUNTIMES}


def test_left_to_itself_it_takes_all_that_run_here_and_emulates_nothing(every: Path) -> None:
    results = json.loads(call("parity", every, "--format", "json").out)
    assert tuple(result["runtime"] for result in results) == tuple(name for name in RUNTIMES if "aarch64" not in name)


# Damage that hashes do not show, because whoever did it wrote the manifest too


def wrong_input_name(path: Path) -> None:
    model = onnx.load(path / "denoiser.onnx")
    old = model.graph.input[0].name
    model.graph.input[0].name = "image"
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            if name == old:
                node.input[index] = "image"
    onnx.save(model, path / "denoiser.onnx")


def cut_package(path: Path) -> None:
    (weights,) = (path / "denoiser.mlpackage").rglob("weight.bin")
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])


def cut_program(path: Path) -> None:
    file = path / "programs.pte"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def cut_graph(path: Path) -> None:
    file = path / "denoiser.onnx"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def not_a_number(path: Path) -> None:
    file = path / GOLDEN
    data = bytearray(file.read_bytes())
    data[-4:] = np.float32(np.nan).tobytes()
    file.write_bytes(bytes(data))


@pytest.mark.parametrize(
    ("damage", "runtime", "said"),
    [
        (wrong_input_name, "onnxruntime", "contract says"),
        (cut_graph, "onnxruntime", "ONNX Runtime cannot load"),
        (cut_package, "coreml-reference", "denoiser.mlpackage"),
        (cut_program, "executorch", "programs.pte"),
        (cut_program, "executorch-runner", "programs.pte"),
        (not_a_number, "torch", "holds a NaN or an infinity"),
    ],
)
def test_a_damaged_program_is_an_error_that_names_it(
    damage: Callable[[Path], None], runtime: str, said: str, copied: Path
) -> None:
    damage(copied)
    reseal(copied)
    assert call("parity", copied, "--runtime", runtime).failed_with(1, said)


def test_one_broken_runtime_does_not_hide_the_others(copied: Path) -> None:
    cut_graph(copied)
    reseal(copied)
    done = call("parity", copied, "--runtime", "onnxruntime", "--runtime", "torch")
    assert done.code == 1
    assert "torch: passed" in done.out
    assert "ONNX Runtime cannot load" in done.err.splitlines()[-2]


def test_a_runtime_that_is_killed_is_an_error_and_not_the_end(every: Path) -> None:
    """The worker alone; the command lives, says what happened, and leaves nobody behind."""
    command = [sys.executable, "-c", "from edge_sd.cli.main import main; main()", "parity", every, "--runtime", "onnxruntime"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=every.parent) as process:
        until, parent = time.monotonic() + 60, psutil.Process(process.pid)
        children: list[psutil.Process] = []
        while not children and time.monotonic() < until:
            children = [child for child in parent.children(recursive=True) if "_worker" in " ".join(child.cmdline())]
        assert children, "no worker was started"
        for child in children:
            child.send_signal(signal.SIGKILL)
        _, err = process.communicate(timeout=60)
    error, remedy = err.splitlines()[-2:]
    assert process.returncode == 1
    assert error.startswith("error: onnxruntime: the process that ran ")
    assert "denoiser.onnx" in error
    assert "was killed by SIGKILL, most likely out of memory" in error
    assert remedy.startswith("try: ")
    assert not any(child.is_running() for child in children)


# Locating


def test_a_fault_is_located_by_name(copied: Path) -> None:
    """One output channel of one convolution is zero in the ONNX file."""
    model = onnx.load(copied / "denoiser.onnx")
    weights = next(value for value in model.graph.initializer if value.name.endswith("middle.1.block.conv2.weight"))
    changed = numpy_helper.to_array(weights).copy()
    changed[1] = 0
    weights.CopyFrom(numpy_helper.from_array(changed, weights.name))
    onnx.save(model, copied / "denoiser.onnx")
    reseal(copied)
    done = call("parity", copied, "--runtime", "onnxruntime", "--locate")
    assert done.code == 3
    assert "onnxruntime: diverges first in middle.1.block.conv2 (Conv2d)" in done.err
    right = call("parity", copied, "--runtime", "torch", "--locate")
    assert right.code == 0
    assert "nothing to locate" in right.err


# Selftest


def test_selftest_checks_measures_and_runtimes() -> None:
    done = call("selftest", "--format", "json")
    assert done.code == 0, done.err
    checks = {check["what"]: check for check in json.loads(done.out)}
    for shape in ("(7,)", "(3, 8, 8)", "(1, 4, 16, 16)", "(2, 3, 5, 7)"):
        assert checks[f"SNR of a pair 72 dB apart, shape {shape}"]["found"] == "72.0000"
    assert {name: checks[f"runtime {name}"]["holds"] for name in RUNTIMES} == dict.fromkeys(RUNTIMES, "yes")
    assert {check["holds"] for check in checks.values()} <= {"yes", "missing"}


def test_selftest_fails_where_a_measure_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_sd.evaluation.closed_forms.snr_db", lambda reference, other: 72.1)
    monkeypatch.setattr("edge_sd.cli.selftest._runtimes", lambda folder, update: [])
    done = call("selftest")
    assert done.failed_with(1, "do not hold", "SNR of a pair 72 dB apart, shape (7,): 72.1000, expected 72.0000")


def test_options_of_coreml_s_precision_reach_the_gate(tiny_checkpoint: Checkpoint, tmp_path: Path) -> None:
    """A program in half precision is held to the reference in half precision, one in single precision to that."""
    floors = {}
    for precision in ("fp16", "fp32"):
        path = tmp_path / f"{precision}.edgesd"
        options = TargetOptions(coreml_precision=precision)  # type: ignore[arg-type]
        export_bundle(tiny_checkpoint, path, ExportRequest(("coreml",), options, steps=2, goldens=1))
        (result,) = json.loads(call("parity", path, "--runtime", "coreml-reference", "--format", "json").out)
        assert result["precision"] == precision
        floors[precision] = result["steps"][0]["forced"]["floor_db"]
    assert floors["fp16"] < 90 < floors["fp32"]
