"""What every device promises, whichever there are: the same job, the same result, and nothing left behind."""

import platform
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
import pytest

from adbd import Phone
from adbd.server import private_server
from damage import reseal
from edge_sd.bundle import Bundle, open_bundle
from edge_sd.devices import BenchResult, Job, bench, devices, find_device
from edge_sd.errors import EdgeSDError, ExitCode, UsageError
from edge_sd.files import read_model
from edge_sd.report.parity import ParityReport
from edge_sd.runnable import Availability
from edge_sd.runtimes.floor import Floor, Precision, noise_floor
from loopback_sshd import loopback_sshd
from verbs import call


class Subject(NamedTuple):
    """A device, a runtime that it has, and whether its processor is imitated."""

    device: str
    runtime: str
    emulated: bool = False


# Apple's hardware is not to be had on Linux; every other device is here, none is passed over.
SUBJECTS = [
    Subject("host", "onnxruntime"),
    Subject("host", "executorch-runner"),
    Subject("host", "executorch-runner-aarch64", emulated=True),
    Subject("ssh", "executorch-runner"),
    Subject("ssh", "onnxruntime"),
    Subject("adb", "executorch-runner"),
    Subject("emulator", "executorch-runner", emulated=True),
    Subject("emulator", "onnxruntime", emulated=True),
    Subject("browser", "onnxruntime-web"),
]
# Where a second job takes no minute.
REAL = [subject for subject in SUBJECTS if not subject.emulated]
# Little enough for a browser and for an imitated processor.
QUICK = Job(runtime="", least_warmup=2, most_warmup=4, iterations=5, images=1, most_seconds=20.0)


@pytest.fixture(scope="module", params=SUBJECTS, ids=lambda subject: f"{subject.device}-{subject.runtime}")
def subject(request: pytest.FixtureRequest) -> Subject:
    found: Subject = request.param
    return found


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[dict[str, str]]:
    """Each device, there to be connected to, as `--device` names it."""
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        python = {"SetEnv": f"EDGE_SD_PYTHON={sys.executable}"}  # one that has ONNX Runtime
        server = stack.enter_context(loopback_sshd(tmp_path_factory.mktemp("sshd"), **python))
        patch.setenv("EDGE_SD_SSH_CONFIG", str(server.config))
        stack.enter_context(private_server(tmp_path_factory.mktemp("adb")))
        phone = stack.enter_context(Phone())
        patch.setenv("XDG_CACHE_HOME", str(request.getfixturevalue("board_cache")))
        yield {
            "host": "host",
            "ssh": "ssh:board",
            "adb": f"adb:{phone.serial}",
            "emulator": "emulator",
            "browser": "browser:wasm",
        }
        assert phone.left() == []


@pytest.fixture(scope="module")
def result(subject: Subject, places: dict[str, str], bundle: Bundle, floors: dict[Precision, Floor]) -> BenchResult:
    """One job on each device; when it is done, no process of it is left here."""
    before = set(psutil.Process().children(recursive=True))
    done = bench(places[subject.device], bundle, QUICK.model_copy(update={"runtime": subject.runtime}), floors=floors)
    assert not {process for process in psutil.Process().children(recursive=True) if process.name() != "adb"} - before
    return done


@pytest.fixture(scope="module")
def floors(bundle: Bundle) -> dict[Precision, Floor]:
    return {"fp32": noise_floor(bundle, "fp32")}


def test_every_device_is_under_this_contract() -> None:
    elsewhere = set() if platform.system() == "Darwin" else {"apple"}
    assert {subject.device for subject in SUBJECTS} | elsewhere == set(devices())


@pytest.mark.parametrize("name", list(devices()))
def test_it_says_what_it_is_and_whether_it_can_be_reached(name: str) -> None:
    found = devices()[name]
    assert (found.name, bool(found.about)) == (name, True)
    available = found.available()
    assert isinstance(available, Availability)
    assert available.detail
    assert available.ok or available.remedy


def test_its_fingerprint_is_sane(result: BenchResult, subject: Subject) -> None:
    info = result.device
    assert info.device == subject.device
    assert info.machine
    assert info.processor
    assert info.model
    assert info.system
    assert info.cores >= 1
    assert info.memory_bytes > 2**28 or subject.device == "browser"
    assert result.times == ("emulated" if subject.emulated else "real")


def test_it_proves_what_the_reference_drew(result: BenchResult, subject: Subject) -> None:
    assert result.parity is not None
    assert result.parity.passed, result.parity.verdict
    assert result.parity.worst_step.forced.value_db > 80
    assert result.parity.final.psnr_db > 80
    assert result.parity.temporal is not None
    assert result.parity.decoder is not None
    assert result.parity.runtime_version
    assert result.parity.emulated == subject.emulated


def test_it_makes_the_calls_that_were_asked_for(result: BenchResult, bundle: Bundle) -> None:
    measured = result.measurement
    assert measured is not None
    assert len(measured.samples_ms) == 5
    assert 2 <= len(measured.warmup_ms) <= 4
    assert (len(measured.image_ms), len(measured.decoder_ms)) == (1, 1)
    assert measured.runtime_version
    assert measured.load_ms > 0
    assert np.median(measured.image_ms) > 0
    assert result.steps == len(bundle.plan)
    assert result.bundle_digest == bundle.manifest.digest


def test_its_memory_is_the_jobs_own(result: BenchResult, subject: Subject) -> None:
    measured = result.measurement
    assert measured is not None
    if subject.device != "browser":
        assert measured.base_memory_bytes is not None
        assert measured.peak_memory_bytes is not None
        assert 2**20 < measured.base_memory_bytes <= measured.peak_memory_bytes < 2**30


def test_its_result_comes_back_from_json(result: BenchResult) -> None:
    assert BenchResult.model_validate_json(result.model_dump_json()) == result


@pytest.mark.parametrize("subject", REAL, indirect=True)
def test_a_program_that_does_not_load_is_an_error_in_words(
    subject: Subject, places: dict[str, str], bundle: Bundle, tmp_path: Path
) -> None:
    """The manifest's hashes are right and the program is not one: what the runtime says comes back."""
    copy = Path(shutil.copytree(bundle.path, tmp_path / "broken.edgesd"))
    target = "executorch" if "executorch" in subject.runtime else "onnx"
    (copy / bundle.program(target).file).write_bytes(b"no program at all" * 100)
    reseal(copy)
    with pytest.raises(EdgeSDError) as caught:
        bench(places[subject.device], open_bundle(copy), QUICK.model_copy(update={"runtime": subject.runtime}))
    assert caught.value.hint
    assert int(caught.value.code) in (1, 4)


def test_an_unknown_device_is_named_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"unknown device 'phone' .try: one of .*host"):
        find_device("phone")


# By the command line


def test_parity_on_devices_in_one_table(places: dict[str, str], bundle: Bundle, tmp_path: Path) -> None:
    there = [word for device in ("host", "ssh", "adb") for word in ("--device", places[device])]
    done = call("parity", bundle.path, *there, "--runtime", "executorch-runner", "-o", tmp_path / "parity")
    assert done.code == 0, done.err
    assert all(f"executorch-runner on {places[device]}" in done.out for device in ("ssh", "adb"))
    report = read_model(ParityReport, tmp_path / "parity" / "parity.json")
    assert [result.device for result in report.results] == ["host", places["ssh"], places["adb"]]
    assert len({result.worst_step.forced.value_db for result in report.results}) == 1  # the same program, to the bit
    assert all((tmp_path / "parity" / picture).is_file() for picture in report.pictures.values())


def test_a_device_that_is_not_there_takes_nothing_from_the_others(places: dict[str, str], bundle: Bundle, tmp_path: Path) -> None:
    there = ("--device", "adb:; reboot", "--device", places["ssh"], "--device", places["adb"])
    quick = ("--runtime", "executorch-runner", "--iterations", 3, "--warmup", 1, "--threads", 1)
    done = call("bench", bundle.path, *there, *quick, "-o", tmp_path / "results")
    assert done.code == ExitCode.DEVICE == 4
    assert "adb:; reboot is not there" in done.err
    kept = [read_model(BenchResult, path) for path in sorted((tmp_path / "results").iterdir())]
    assert {result.device.title for result in kept} == {places["ssh"], places["adb"]}
    assert all(result.parity is not None and result.parity.passed for result in kept)
