"""What every device promises, whichever there are; and that a job that dies takes nothing with it."""

import hashlib
import platform
import shutil
from pathlib import Path

import numpy as np
import psutil
import pytest

from edge_sd.bundle import Bundle
from edge_sd.bundle.manifest import MANIFEST
from edge_sd.devices import BenchResult, Device, Job, devices, find_device
from edge_sd.errors import DeviceError, EdgeSDError, ExitCode, UsageError
from edge_sd.runnable import Availability
from edge_sd.runtimes import runtimes

# More than a job of these tests needs: a device that counts its parent's memory shows it.
BALLAST = 1024 * 2**20


@pytest.fixture(scope="module", params=list(devices()))
def device(request: pytest.FixtureRequest) -> Device:
    """Each device: one that cannot be reached fails, it is not passed over."""
    found = devices()[request.param]
    assert found.available().ok, found.available()
    return found


def job_for(bundle: Path, runtime: str = "onnxruntime") -> Job:
    return Job(bundle=str(bundle), runtime=runtime, threads=1, warmup=3, iterations=7)


# The one runtime that exists on another system alone; see test_runtimes.py.
HERE = [name for name in runtimes() if name != "coreml" or platform.system() == "Darwin"]


@pytest.fixture(scope="module", params=HERE)
def result(request: pytest.FixtureRequest, device: Device, bundle: Bundle) -> BenchResult:
    """One job in each runtime, done while this process holds a lot of memory."""
    ballast = np.ones(BALLAST // 8)
    done = device.bench(job_for(bundle.path, request.param))
    assert ballast[-1] == 1
    return done


@pytest.mark.parametrize("name", list(devices()))
def test_it_says_what_it_is_and_whether_it_can_be_reached(name: str) -> None:
    found = find_device(name)
    assert (found.name, bool(found.about)) == (name, True)
    available = found.available()
    assert isinstance(available, Availability)
    assert available.detail
    assert available.ok or available.remedy


def test_its_figures_are_sane(device: Device) -> None:
    info = device.info()
    assert info.device == device.name
    assert info.machine
    assert info.processor
    assert info.system
    assert info.cores >= 1
    assert info.memory_bytes > 2**28


def test_the_host_is_this_machine() -> None:
    info = find_device("host").info()
    assert (info.cores, info.memory_bytes) == (psutil.cpu_count(), psutil.virtual_memory().total)


def test_it_makes_the_calls_that_were_asked_for(result: BenchResult, bundle: Bundle, device: Device) -> None:
    assert result.job == job_for(bundle.path, result.job.runtime)
    assert result.device == device.info()
    assert (len(result.samples_ms), 1 + len(result.warmup_ms)) == (7, 3)
    assert min(result.load_ms, result.first_ms, *result.warmup_ms, *result.samples_ms) > 0
    assert result.steps == len(bundle.plan)


def test_its_percentiles_are_those_of_the_raw_samples(result: BenchResult) -> None:
    latency = result.latency
    np.testing.assert_allclose(
        (latency.p50_ms, latency.p90_ms, latency.p99_ms, latency.mean_ms),
        (*np.percentile(result.samples_ms, (50, 90, 99)), np.mean(result.samples_ms)),
        rtol=1e-12,
    )


def test_its_memory_is_the_jobs_own(result: BenchResult) -> None:
    assert result.base_memory_bytes > 2**20
    if result.peak_memory_bytes is not None:
        assert result.base_memory_bytes <= result.peak_memory_bytes < result.base_memory_bytes + BALLAST


def test_the_forecast_stands_beside_what_was_used(result: BenchResult, bundle: Bundle) -> None:
    """The reference was not exported: nothing was foretold of it."""
    memory = bundle.program(runtimes()[result.job.runtime].target).memory
    assert (memory is None) == (result.job.runtime == "torch")
    assert result.forecast_memory_bytes == (None if memory is None else memory.weights_bytes + memory.activations_bytes)


def test_its_result_says_of_what_it_is_and_comes_back_from_json(result: BenchResult, bundle: Bundle) -> None:
    assert result.bundle_digest == hashlib.sha256((bundle.path / MANIFEST).read_bytes()).hexdigest()
    assert result.runtime_version == runtimes()[result.job.runtime].available().detail
    assert {"python", "edge-sd", "numpy"} <= result.versions.keys()
    assert BenchResult.model_validate_json(result.model_dump_json()) == result


def test_a_bundle_that_has_gone_is_named(device: Device, bundle: Bundle, tmp_path: Path) -> None:
    gone = Path(shutil.copytree(bundle.path, tmp_path / "gone.edgesd"))
    job = job_for(gone)
    shutil.rmtree(gone)
    with pytest.raises(EdgeSDError, match=r"gone\.edgesd is not a bundle"):
        device.bench(job)


def test_a_job_that_dies_is_an_error_of_the_device(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A third party's runtime, found by its entry point in the job's process, that kills it as the system would."""
    (tmp_path / "crashing.py").write_text(
        "import os, signal\n"
        "from edge_sd.runtimes import Runtime\n"
        "from edge_sd.runnable import Availability\n\n"
        "class Crashing(Runtime):\n"
        "    name, about, target = 'crashing', 'dies', 'torch'\n\n"
        "    def available(self):\n"
        "        return Availability(True, 'always')\n\n"
        "    def load(self, bundle, threads=None, program='denoiser'):\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    metadata = tmp_path / "crashing-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: crashing\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[edge_sd.runtimes]\ncrashing = crashing:Crashing\n")
    monkeypatch.syspath_prepend(tmp_path)  # a spawned process gets its parent's path
    with pytest.raises(DeviceError, match=r"the process that ran .*tiny\.edgesd in crashing died") as caught:
        find_device("host").bench(job_for(bundle.path, "crashing"))
    assert caught.value.code == ExitCode.DEVICE == 4
    assert caught.value.hint


def test_an_unknown_device_is_named_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"unknown device 'phone' .try: one of .*host"):
        find_device("phone")
