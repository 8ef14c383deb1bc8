"""Several devices at once: what breaks does not stop the others, and results come as they are done."""

import threading
import time
from collections.abc import Iterator

import psutil
import pytest

from edge_sd.bundle import Bundle
from edge_sd.devices import BenchResult, Connection, Device, DeviceInfo, Job, Outcome, _device
from edge_sd.devices._device import Observe, unobserved
from edge_sd.devices._pool import Task, run_tasks
from edge_sd.devices.host import HostConnection
from edge_sd.errors import DeviceError, EdgeSDError, ExitCode, UsageError
from edge_sd.runnable import Availability

QUICK = Job(runtime="executorch-runner", prove=False, least_warmup=1, most_warmup=2, iterations=3, images=0)


class Board(HostConnection):
    """This machine under another name: what it measures is real, when it breaks is scripted."""

    def __init__(self, address: str, log: list[tuple[str, str]]) -> None:
        super().__init__()
        self._address, self._log = address, log

    def info(self) -> DeviceInfo:
        return super().info().model_copy(update={"device": "board", "address": self._address})

    def push(self, bundle: Bundle, job: Job, observe: Observe = unobserved) -> None:
        self._log.append((self._address, "begins"))
        if self._address == "slow":
            time.sleep(1.0)
        if self._address == "broken":
            raise DeviceError("board:broken went away", "plug it in")
        super().push(bundle, job, observe)

    def pull(self) -> Outcome:
        self._log.append((self._address, "ends"))
        return super().pull()

    def close(self) -> None:
        self._log.append((self._address, "closed"))
        super().close()


class Boards(Device):
    name, about, address = "board", "a board of the tests", "NAME"

    def __init__(self) -> None:
        self.log: list[tuple[str, str]] = []

    def available(self) -> Availability:
        return Availability(True, "always")

    def open(self, address: str) -> Connection:
        if address == "absent":
            raise DeviceError("board:absent does not answer", "switch it on")
        return Board(address, self.log)


@pytest.fixture
def boards(monkeypatch: pytest.MonkeyPatch) -> Iterator[Boards]:
    device = Boards()
    known = {**_device.devices(), "board": device}
    monkeypatch.setattr(_device, "devices", lambda: known)
    yield device
    opened = [event for _, event in device.log if event == "begins"]
    assert [event for _, event in device.log].count("closed") == len(opened)


def test_what_breaks_does_not_stop_the_others(bundle: Bundle, boards: Boards) -> None:
    tasks = [Task(place, QUICK) for place in ("board:broken", "board:absent", "host", "board:whole")]
    tasks.append(Task("board:whole", QUICK.model_copy(update={"runtime": "onnxruntime"})))
    results, failures = run_tasks(tasks, bundle)
    assert [(result.device.title, result.job.runtime) for result in results] == [
        ("host", "executorch-runner"), ("board:whole", "executorch-runner"), ("board:whole", "onnxruntime"),
    ]  # fmt: skip
    assert [(failure.task.place, failure.error.code) for failure in failures] == [
        ("board:broken", ExitCode.DEVICE), ("board:absent", ExitCode.DEVICE),
    ]  # fmt: skip


def test_devices_work_side_by_side_and_results_come_as_they_are_done(bundle: Bundle, boards: Boards) -> None:
    told: list[str] = []
    results, _ = run_tasks(
        [Task("board:slow", QUICK), Task("board:quick", QUICK)], bundle, on_result=lambda result: told.append(result.device.title)
    )
    assert told == ["board:quick", "board:slow"]
    assert [result.device.title for result in results] == ["board:slow", "board:quick"]
    assert boards.log.index(("quick", "ends")) < boards.log.index(("slow", "ends"))


def test_devices_that_share_this_machine_take_turns(bundle: Bundle, boards: Boards, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Boards, "shares_host", True)
    run_tasks([Task("board:slow", QUICK), Task("board:quick", QUICK)], bundle)
    begun = [name for name, event in boards.log if event == "begins"]
    ended = [name for name, event in boards.log if event == "closed"]
    assert begun == ended


def test_the_device_chooses_a_runtime_where_none_is_named(bundle: Bundle) -> None:
    results, failures = run_tasks([Task("host", QUICK.model_copy(update={"runtime": ""}))], bundle)
    assert failures == []
    assert results[0].job.runtime in ("executorch", "onnxruntime")


def test_threads_are_the_devices_where_none_are_asked_for(bundle: Bundle) -> None:
    results, _ = run_tasks([Task("host", QUICK, own_threads=True), Task("host", QUICK)], bundle)
    assert [result.job.threads for result in results] == [min(psutil.cpu_count() or 1, 4), 1]


def test_nothing_begins_with_a_device_that_does_not_exist(bundle: Bundle) -> None:
    began: list[str] = []
    with pytest.raises(UsageError, match="unknown device"):
        run_tasks([Task("host", QUICK), Task("toaster", QUICK)], bundle, observe=lambda *words: began.append("x"))
    assert began == []


def test_an_interruption_ends_all_jobs_and_closes_all_connections(bundle: Bundle, boards: Boards) -> None:
    """Ctrl-C while two devices work for minutes."""
    long = QUICK.model_copy(update={"minutes": 10.0})

    def on_progress(task: Task, done: int, total: int, note: str) -> None:
        if done >= QUICK.iterations and threading.current_thread() is not threading.main_thread():
            raise KeyboardInterrupt

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_tasks([Task("board:one", long), Task("board:two", long)], bundle, observe=on_progress)
    assert time.monotonic() - began < 30


def test_after_an_interruption_no_other_job_begins(bundle: Bundle, boards: Boards) -> None:
    """Nor of the same device, whose job was killed in the middle."""
    long = QUICK.model_copy(update={"minutes": 10.0})

    def on_result(result: BenchResult) -> None:
        raise KeyboardInterrupt

    tasks = [Task("board:one", QUICK), Task("board:two", long), *[Task("board:two", QUICK)] * 3]
    with pytest.raises(KeyboardInterrupt):
        run_tasks(tasks, bundle, on_result=on_result)
    assert boards.log.count(("two", "begins")) == 1


def test_a_failure_in_words_is_kept_too(bundle: Bundle, boards: Boards) -> None:
    wrong = QUICK.model_copy(update={"runtime": "coreml-reference"})
    results, failures = run_tasks([Task("host", wrong), Task("board:fine", QUICK)], bundle)
    assert len(results) == 1
    assert isinstance(failures[0].error, EdgeSDError)
    assert "coreml" in failures[0].error.message
