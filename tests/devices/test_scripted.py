"""Everything that goes wrong with a phone in use, by script: a clear error with its exit code, and nothing left at either end.

The cable, the disk, the link, the heat and the system's own hand are the phone's (tests/helpers/adbd); adb, the runner and the
job are the real ones.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from adbd import CutFile, CutOutput, Kill, Locked, Phone, Silent, Slow, Stall, Step, Throttle, Unplug
from adbd.server import private_server
from edge_sd.bundle import Bundle
from edge_sd.devices import Job
from edge_sd.devices._job import Outcome
from edge_sd.devices._remote import RemoteConnection
from edge_sd.devices.adb import AdbTransport, list_serials
from edge_sd.errors import DeviceError, EdgeSDError, ExitCode

KB, MB = 1000, 1_000_000
PUSHED = 3 * MB  # bytes after which a push is interrupted: in one of the runner's libraries, with files before and behind it
BACK = 2.0  # seconds until a phone is plugged in again


@pytest.fixture(scope="module", autouse=True)
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with private_server(tmp_path_factory.mktemp("adb")):
        yield


@pytest.fixture(autouse=True)
def tidy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No process of ours runs on, and no file stays in the folder for temporary ones."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    yield
    assert [child.cmdline() for child in psutil.Process().children(recursive=True) if child.name() in ("adb", "unshare")] == []
    assert [path.name for path in tmp_path.iterdir()] == []


def job(**changes: object) -> Job:
    """A proof and a few calls; `changes` are the job's own fields."""
    short = {"runtime": "executorch-runner", "least_warmup": 2, "most_warmup": 6, "iterations": 12, "images": 1, "patience": 5.0}
    return Job.model_validate({**short, **changes})


@contextmanager
def phone_that(*steps: Step, disk_bytes: int = 1 << 30) -> Iterator[Phone]:
    """A phone to which this happens, and which is found clean afterwards, whatever happened."""
    with Phone(*steps, disk_bytes=disk_bytes) as phone:
        yield phone
        deadline = time.monotonic() + 5
        while phone.processes() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert phone.processes() == []
        assert not phone.log()


def work(phone: Phone, bundle: Bundle, doing: Job, patience: float = 60.0) -> Outcome:
    """All of a connection's life."""
    with RemoteConnection(AdbTransport(phone.serial, patience=patience)) as connection:
        connection.push(bundle, doing)
        connection.run()
        return connection.pull()


def refused(action: Callable[[], object], code: ExitCode, *said: str) -> float:
    """It ends in an error of this exit code that holds everything `said`; the seconds it took."""
    began = time.monotonic()
    with pytest.raises(EdgeSDError) as caught:
        action()
    assert caught.value.code == code, caught.value
    assert caught.value.hint
    for words in said:
        assert words in str(caught.value)
    return time.monotonic() - began


def fill(path: Path) -> None:
    """Write a file until there is no more room."""
    with path.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(64 * KB))


# The cable


@pytest.mark.parametrize(
    "step", [Unplug(sent=PUSHED, back=BACK), Unplug(command=" prove ", after=0.02, back=BACK)], ids=["push", "run"]
)
def test_unplugged_and_plugged_in_again(bundle: Bundle, step: Step) -> None:
    with phone_that(step) as phone:
        refused(lambda: work(phone, bundle, job(iterations=100_000, images=0)), ExitCode.DEVICE, phone.serial)
        assert phone.left() == []  # it came back in time to be cleaned


def test_unplugged_in_the_middle_of_the_timed_calls(bundle: Bundle) -> None:
    with phone_that(Unplug(command=" measure ", after=1.0, back=BACK)) as phone:
        refused(lambda: work(phone, bundle, job(prove=False, minutes=5.0)), ExitCode.DEVICE, "broke off")
        assert phone.left() == []


def test_unplugged_for_good(bundle: Bundle) -> None:
    """What was pushed stays on the phone then, and goes with the sweep of a later job; we wait for it for a while only."""
    with phone_that(Unplug(sent=PUSHED)) as phone:
        took = refused(lambda: work(phone, bundle, job()), ExitCode.DEVICE, "did not take")
        assert took < 60
        (left,) = phone.left()
        assert left.startswith("edge-sd-")


def test_unplugged_for_good_while_it_ran(bundle: Bundle) -> None:
    """Nobody can clean up there, but the job itself sees that nobody waits, and ends."""
    with phone_that(Unplug(command=" measure ", after=1.0)) as phone:
        refused(lambda: work(phone, bundle, job(prove=False, minutes=5.0)), ExitCode.DEVICE, "broke off")


# The disk and the link


def test_a_full_disk(bundle: Bundle) -> None:
    with phone_that(disk_bytes=2 * MB) as phone:
        refused(lambda: work(phone, bundle, job()), ExitCode.DEVICE, "has no room for", "No space left", "free some space")
        assert phone.left() == []


def test_a_disk_that_is_full_when_the_job_writes(bundle: Bundle) -> None:
    """There is room for the push, and none for the answers."""
    with phone_that(disk_bytes=64 * MB) as phone, RemoteConnection(AdbTransport(phone.serial)) as connection:
        connection.push(bundle, job())
        fill(phone.files / "film")
        refused(lambda: (connection.run(), connection.pull()), ExitCode.FAILURE)
        connection.close()
        assert phone.left() == ["film"]


def test_a_slow_link_is_only_slow(bundle: Bundle) -> None:
    """A file may take longer than the patience lasts, as long as the link is not slower than any in use."""
    with phone_that(Slow(MB)) as phone:
        outcome = work(phone, bundle, job(), patience=2.0)
        assert outcome.measurement is not None
        assert outcome.evidence is not None
        assert phone.left() == []


# Silence


def test_a_push_that_stalls(bundle: Bundle) -> None:
    with phone_that(Stall(sent=PUSHED)) as phone:
        assert refused(lambda: work(phone, bundle, job(), patience=1.0), ExitCode.DEVICE, "said nothing for", "--patience") < 60
        assert phone.left() == []


@pytest.mark.parametrize("command", [" prove ", " measure "])
def test_a_job_that_says_nothing_more(bundle: Bundle, command: str) -> None:
    with phone_that(Stall(command=command, after=0.0)) as phone:
        refused(lambda: work(phone, bundle, job(patience=1.0)), ExitCode.DEVICE, "said nothing for 1 s")
        assert phone.left() == []


# What comes back


@pytest.mark.parametrize(
    ("step", "said"),
    [
        (CutFile("evidence.safetensors", 5000), "evidence.safetensors"),
        (CutFile("evidence.safetensors", 0), "evidence.safetensors"),
        (CutFile("result.json", 100), "result.json"),
        (CutFile("result.json", 0), "result.json"),
    ],
    ids=lambda value: f"{value.name}-{value.keep}" if isinstance(value, CutFile) else "",
)
def test_answers_that_are_cut_short(bundle: Bundle, step: Step, said: str) -> None:
    with phone_that(step) as phone:
        refused(lambda: work(phone, bundle, job()), ExitCode.FAILURE, said)
        assert phone.left() == []


@pytest.mark.parametrize(
    ("command", "keep"),
    [("uname -m", 1), ("uname -m", 40), ("mkdir -m", 1), ("mkdir -m", 20), ("sha256sum", 1), ("sha256sum", 40)],
)
def test_output_that_is_cut_short(bundle: Bundle, command: str, keep: int) -> None:
    """adb takes it for a command that ended well; we do not."""
    with phone_that(CutOutput(command, keep)) as phone:
        refused(lambda: work(phone, bundle, job()), ExitCode.DEVICE, "broke off")


# The phone's own hand


@pytest.mark.parametrize("command", [" prove ", " measure "])
def test_killed_for_its_memory(bundle: Bundle, command: str) -> None:
    with phone_that(Kill(command=command, after=0.01 if "prove" in command else 1.0)) as phone:
        asked = job(minutes=5.0, patience=30.0)
        refused(lambda: work(phone, bundle, asked), ExitCode.DEVICE, "killed (SIGKILL)", "out of memory")
        assert phone.left() == []


def test_it_throttles(bundle: Bundle) -> None:
    """No error: the curve shows it, in degrees, in megahertz and in milliseconds."""
    with phone_that(Throttle(" measure ", celsius_per_second=4.0, limit=60.0)) as phone:
        outcome = work(phone, bundle, job(prove=False, iterations=2, images=0, minutes=0.2, patience=30.0))
        assert outcome.measurement is not None
        curve = outcome.measurement.sustained
        assert curve[-1].celsius["cpu-0-0-usr"] > curve[0].celsius["cpu-0-0-usr"] + 20
        assert curve[0].mhz[0] == 2400
        assert curve[-1].mhz[0] == 800
        assert curve[-1].calls < curve[0].calls


# This machine's hand

_ALL_OF_IT = """
import sys
from pathlib import Path
from edge_sd.bundle import open_bundle
from edge_sd.devices import Job, find_device

device, serial = find_device("adb:" + sys.argv[1])
with device.open(serial) as connection:
    connection.push(open_bundle(Path(sys.argv[2])), Job.model_validate_json(sys.argv[3]))
    connection.run()
"""


@pytest.mark.parametrize(("steps", "sign"), [((Slow(200 * KB),), "*/*.so"), ((), "*/result.json")], ids=["push", "run"])
def test_interrupted_here(bundle: Bundle, tmp_path: Path, steps: tuple[Step, ...], sign: str) -> None:
    """Ctrl-C, in the push and in the run: the process ends, when it has cleaned up behind itself."""
    with phone_that(*steps) as phone:
        arguments = [phone.serial, str(bundle.path), job(prove=False, minutes=5.0, patience=60.0).model_dump_json()]
        environment = {**os.environ, "TMPDIR": str(tmp_path)}
        command = [sys.executable, "-c", _ALL_OF_IT, *arguments]
        with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, cwd="/") as process:
            deadline = time.monotonic() + 60
            while not list(phone.files.glob(sign)) and time.monotonic() < deadline:
                time.sleep(0.05)
            assert list(phone.files.glob(sign)), phone.left()
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=60)
        assert process.returncode == -signal.SIGINT, said
        assert b"KeyboardInterrupt" in said
        assert phone.left() == []
        assert phone.serial not in [listed.serial for listed in list_serials()]


# The door


def test_nobody_accepted_the_key() -> None:
    with phone_that(Locked()) as phone:
        took = refused(lambda: AdbTransport(phone.serial), ExitCode.DEVICE, "unauthorized", "accept its prompt")
        assert took < 15


def test_somebody_accepts_it_in_time() -> None:
    with phone_that(Locked(accepted=1.0)) as phone:
        adb = AdbTransport(phone.serial)
        assert adb.shell("id -un").text == "shell"
        adb.close()


def test_a_phone_that_never_greets() -> None:
    with phone_that(Silent()) as phone:
        took = refused(lambda: AdbTransport(phone.serial), ExitCode.DEVICE, "is not", phone.serial)
        assert took < 30


def test_a_machine_so_busy_that_connecting_takes_longer_than_looking(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy = tmp_path_factory.mktemp("busy") / "adb"
    busy.write_text(f'#!/bin/sh\n[ "$1" != connect ] || sleep 1.5\nexec {shutil.which("adb")} "$@"\n')
    busy.chmod(0o755)
    monkeypatch.setenv("PATH", f"{busy.parent}:{os.environ['PATH']}")
    with phone_that() as phone:
        adb = AdbTransport(phone.serial)
        assert adb.shell("id -un").text == "shell"
        adb.close()


def test_a_phone_that_went_away_is_no_device(bundle: Bundle) -> None:
    with phone_that(Unplug(command="uname -m", after=0.0)) as phone:
        adb = AdbTransport(phone.serial)
        with RemoteConnection(adb) as connection:
            refused(connection.info, ExitCode.DEVICE, "broke off")
            with pytest.raises(DeviceError):
                connection.push(bundle, job())
