"""This machine: pinned processors, a limit of memory, and jobs that end badly."""

import shutil
from pathlib import Path

import psutil
import pytest

from edge_sd.bundle import Bundle, open_bundle
from edge_sd.devices import BenchResult, Job, bench
from edge_sd.devices._cgroup import ROOT, memory_limit
from edge_sd.devices._process import listen
from edge_sd.devices.host import HostConnection, describe_host
from edge_sd.errors import DeviceError, EdgeSDError, UsageError
from edge_sd.runtimes.floor import Floor, Precision, noise_floor

QUICK = Job(runtime="onnxruntime", least_warmup=2, most_warmup=6, iterations=5, images=1)


@pytest.fixture(scope="module")
def floors(bundle: Bundle) -> dict[Precision, Floor]:
    return {"fp32": noise_floor(bundle, "fp32")}


def quick(bundle: Bundle, floors: dict[Precision, Floor], **changes: object) -> BenchResult:
    return bench("host", bundle, QUICK.model_copy(update=changes), floors=floors)


def test_a_result_holds_all_that_was_asked_for(bundle: Bundle, floors: dict[Precision, Floor]) -> None:
    result = quick(bundle, floors)
    assert result.device == describe_host().model_copy(update={"celsius": result.device.celsius})
    assert (result.bundle, result.bundle_digest) == ("tiny.edgesd", bundle.manifest.digest)
    assert (result.times, result.steps) == ("real", 4)
    assert result.parity is not None
    assert result.parity.passed, result.parity.verdict
    assert result.parity.temporal is not None
    assert result.parity.decoder is not None
    measured = result.measurement
    assert measured is not None
    assert (len(measured.samples_ms), len(measured.image_ms)) == (5, 1)
    assert 2 <= len(measured.warmup_ms) <= 6
    assert measured.ceiling_gflops is not None
    assert 0 < (result.ceiling_share or 0) < 1.5
    assert BenchResult.model_validate_json(result.model_dump_json()) == result


def test_a_job_is_pinned(bundle: Bundle, tmp_path: Path) -> None:
    """Seen from outside, by the runner's own words: Linux lists what it may run on."""
    with HostConnection() as connection, pytest.raises(DeviceError, match=r"pinned to processors \(4096,\) here"):
        connection.push(bundle, QUICK.model_copy(update={"processors": (4096,)}))
    done = listen(["taskset", "-c", "1", "grep", "Cpus_allowed_list", "/proc/self/status"], patience=20)
    assert done.text.split() == ["Cpus_allowed_list:", "1"]


def test_a_limit_of_memory_is_kept(bundle: Bundle, floors: dict[Precision, Floor]) -> None:
    """Needs the right to make control groups: CI has it."""
    result = quick(bundle, floors, runtime="executorch-runner", memory_mib=256, processors=(0,))
    assert result.parity is not None
    assert result.parity.passed
    with pytest.raises(DeviceError, match=r"in onnxruntime died: it was killed by SIGKILL.*its limit was 24 MiB"):
        quick(bundle, floors, memory_mib=24)
    assert not list(ROOT.rglob("edge-sd-*"))


def test_where_no_group_can_be_made_it_is_said(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="memory cannot be limited here"), memory_limit(64, tmp_path):
        pass
    with memory_limit(None, tmp_path) as prefix:
        assert prefix == []


def test_a_file_that_was_damaged_after_it_was_opened_is_named(bundle: Bundle, tmp_path: Path) -> None:
    copy = open_bundle(Path(shutil.copytree(bundle.path, tmp_path / "copy; touch x.edgesd")))
    program = copy.path / copy.program("onnx").file
    program.write_bytes(program.read_bytes()[:-1])
    with pytest.raises(EdgeSDError, match="has changed since it was exported"):
        bench("host", copy, QUICK)
    assert [path.name for path in tmp_path.iterdir()] == ["copy; touch x.edgesd"]


def test_unknown_names_are_told_apart(bundle: Bundle) -> None:
    with pytest.raises(UsageError, match=r"unknown device 'phone'.*one of .*adb:SERIAL.*host"):
        bench("phone", bundle, QUICK)
    with pytest.raises(UsageError, match=r"unknown runtime 'gpu'"):
        bench("host", bundle, QUICK.model_copy(update={"runtime": "gpu"}))
    with pytest.raises(UsageError, match="device host takes no address"):
        bench("host:there", bundle, QUICK)
    with pytest.raises(EdgeSDError, match="holds no denoiser for coreml"):
        bench("host", bundle, QUICK.model_copy(update={"runtime": "coreml-reference"}))


def test_nothing_is_left_of_a_job(
    bundle: Bundle, floors: dict[Precision, Floor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    quick(bundle, floors, runtime="executorch-runner")
    with pytest.raises(DeviceError, match=r"said nothing for 0\.05 s"):
        quick(bundle, floors, patience=0.05)
    assert list(tmp_path.iterdir()) == []
    assert {process.pid for process in psutil.Process().children(recursive=True)} <= before
