"""A job's folder: what travels, what is started there, and that both kinds of worker do the whole job with nothing else."""

import json
import os
import platform
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from edge_sd.bundle import Bundle, open_bundle
from edge_sd.devices import Job, Measurement
from edge_sd.devices._agent import read_tensors, write_tensors
from edge_sd.devices._staging import EVIDENCE, RESULT, Command, stage
from edge_sd.errors import EdgeSDError, InstallationError, UsageError
from edge_sd.evaluation.metrics import snr_db
from edge_sd.files import read_model
from edge_sd.runtimes.evidence import load_evidence

WORKERS = ("executorch-runner", "onnxruntime")
QUICK = Job(runtime="", least_warmup=2, most_warmup=6, iterations=5, images=1, minutes=0.002)


def job(runtime: str, **changes: object) -> Job:
    return QUICK.model_copy(update={"runtime": runtime, **changes})


def start(command: Command, folder: Path) -> "subprocess.Popen[bytes]":
    """As a device's shell starts it."""
    return subprocess.Popen(
        ["/bin/sh", "-c", f"exec {command.script}"],
        env={**os.environ, "EDGE_SD_PYTHON": sys.executable},
        cwd=folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.mark.parametrize("runtime", WORKERS)
def test_the_whole_job_is_done_in_the_folder(runtime: str, bundle: Bundle, tmp_path: Path) -> None:
    folder = tmp_path / "job"
    for command in stage(bundle, job(runtime), platform.machine(), folder):
        process = start(command, folder)
        out, err = b"", b""
        try:
            assert process.stdin is not None
            out, err = process.stdout.read(), process.stderr.read()  # type: ignore[union-attr]
            assert process.wait(60) == 0, err.decode()
        finally:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                stream.close()  # type: ignore[union-attr]
        assert out == b""
        assert b"step " in err
    header, evidence = load_evidence(folder / EVIDENCE, bundle)
    assert header.runtime == runtime
    assert header.runtime_version
    for golden, found in zip(bundle.golden.trajectories, evidence, strict=True):
        assert found.features is not None
        assert found.image is not None
        assert found.drawn is not None
        assert golden.image is not None
        pairs = [(golden.predictions, found.forced), (golden.samples, found.free), (golden.final, found.last)]
        pairs += [(golden.features, found.features), (golden.image, found.image), (golden.image, found.drawn)]
        assert min(snr_db(*pair) for pair in pairs) > 80
    measured = read_model(Measurement, folder / RESULT)
    assert (len(measured.samples_ms), len(measured.image_ms), len(measured.decoder_ms)) == (5, 1, 1)
    assert measured.sustained
    assert measured.ceiling_gflops is not None
    assert measured.ceiling_gflops > 0.1
    assert measured.base_memory_bytes is not None
    assert measured.peak_memory_bytes is not None
    assert 2**20 < measured.base_memory_bytes < measured.peak_memory_bytes < 2**30


@pytest.mark.parametrize("runtime", WORKERS)
def test_a_worker_ends_when_nobody_waits(runtime: str, bundle: Bundle, tmp_path: Path) -> None:
    """A cable that is pulled leaves nothing running: the end of its input is the end of the job."""
    folder = tmp_path / "job"
    (command,) = stage(bundle, job(runtime, prove=False, minutes=10.0), platform.machine(), folder)
    process = start(command, folder)
    try:
        time.sleep(2)
        assert process.poll() is None
        process.stdin.close()  # type: ignore[union-attr]
        assert process.wait(5) == 1
    finally:
        process.kill()
        process.wait()
        process.stdout.close()  # type: ignore[union-attr]
        process.stderr.close()  # type: ignore[union-attr]


@pytest.mark.parametrize("runtime", WORKERS)
def test_what_is_not_asked_for_is_not_started(runtime: str, bundle: Bundle, tmp_path: Path) -> None:
    proof = stage(bundle, job(runtime, iterations=0), platform.machine(), tmp_path / "proof")
    times = stage(bundle, job(runtime, prove=False), platform.machine(), tmp_path / "times")
    assert ["prove" in command.words for command in proof] == [True]
    assert ["measure" in command.words for command in times] == [True]


@pytest.mark.parametrize("runtime", WORKERS)
def test_a_bundles_names_do_not_travel(runtime: str, bundle: Bundle, tmp_path: Path) -> None:
    odd = "; reboot\n'$(touch x)`.edgesd"
    copy = open_bundle(Path(shutil.copytree(bundle.path, tmp_path / odd)))
    folder = tmp_path / "job"
    commands = stage(copy, job(runtime), platform.machine(), folder)
    assert all("reboot" not in path.name for path in folder.rglob("*"))
    assert all("reboot" not in command.script for command in commands)


@pytest.mark.parametrize("word", ["a b", "a;b", "$(x)", "`x`", "a'b", 'a"b', "a\nb", "a>b", "", "a*"])
def test_a_word_that_a_shell_would_read_is_refused(word: str) -> None:
    with pytest.raises(EdgeSDError, match="is no word for a device's shell"):
        _ = Command(("./edgesd-runner", word)).script


def test_the_agent_needs_numpy_and_onnx_runtime_alone(bundle: Bundle, tmp_path: Path) -> None:
    stage(bundle, job("onnxruntime"), platform.machine(), tmp_path / "job")
    with zipfile.ZipFile(tmp_path / "job" / "agent.pyz") as archive:
        assert archive.testzip() is None
        archive.extractall(tmp_path / "agent")
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import edge_sd.devices._measuring, edge_sd.diffusion.execute, runpy\n"
        "runpy.run_path(sys.argv[1] + '/__main__.py', run_name='agent')\n"
        "print(sorted({name.partition('.')[0] for name in sys.modules} & {'torch', 'pydantic', 'safetensors', 'psutil', 'yaml'}))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", code, tmp_path / "agent"], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stdout.strip() == "[]"


def test_the_agents_tensors_are_safetensors(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    random = np.random.default_rng(0)
    values = {"a": random.standard_normal((2, 3), dtype=np.float32), "b.c": random.standard_normal(5, dtype=np.float32)}
    write_tensors(str(tmp_path / "ours"), values, {"edge_sd": json.dumps({"x": 1})})
    for name, value in load_file(tmp_path / "ours").items():
        np.testing.assert_array_equal(value, values[name])
    more = {**values, "i": np.arange(4), "d": random.standard_normal(3)}
    save_file(more, tmp_path / "theirs", metadata={"some": "thing"})
    read = read_tensors(str(tmp_path / "theirs"))
    assert read.keys() == more.keys()
    for name, value in read.items():
        np.testing.assert_array_equal(value, more[name])
        assert value.dtype == more[name].dtype


def test_what_cannot_run_there_is_said(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="runtime 'torch' does not run on a device that is reached by a shell"):
        stage(bundle, job("torch"), platform.machine(), tmp_path / "a")
    with pytest.raises(InstallationError, match="not built for riscv64, only for"):
        stage(bundle, job("executorch-runner"), "riscv64", tmp_path / "b")
