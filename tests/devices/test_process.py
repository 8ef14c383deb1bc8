"""Programs that are listened to: what they say, how they end, and that nothing outlives a call."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from edge_sd.devices import _process
from edge_sd.devices._process import listen
from edge_sd.errors import DeviceError, InstallationError


def shell(script: str, patience: float = 20.0, **more: object) -> _process.Done:
    return listen(["/bin/sh", "-c", script], patience=patience, **more)  # type: ignore[arg-type]


def is_gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def wait_gone(pid: int, seconds: float = 5.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end and not is_gone(pid):
        time.sleep(0.02)
    return is_gone(pid)


def test_output_status_and_the_last_words() -> None:
    done = shell("printf 'a\\000b'; echo first >&2; echo last >&2; exit 7")
    assert (done.status, done.out, done.err) == (7, b"a\0b", "first\nlast")


def test_a_signal_is_below_zero() -> None:
    assert shell("kill -9 $$").status == -signal.SIGKILL


def test_lines_are_told_as_they_come(tmp_path: Path) -> None:
    heard: list[tuple[str, float]] = []
    shell("echo one >&2; sleep 0.5; echo two >&2", on_line=lambda line: heard.append((line, time.monotonic())), folder=tmp_path)
    (first, early), (second, late) = heard
    assert (first, second) == ("one", "two")
    assert late - early > 0.3


def test_arguments_reach_no_shell(tmp_path: Path) -> None:
    odd = "a b; touch x\n'\"$(touch y)`touch z`"
    done = listen([sys.executable, "-c", "import sys; sys.stdout.write(sys.argv[1])", odd], patience=20, folder=tmp_path)
    assert done.out.decode() == odd
    assert list(tmp_path.iterdir()) == []


def test_silence_ends_it_and_all_that_it_started(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    began = time.monotonic()
    with pytest.raises(DeviceError, match=r"/bin/sh said nothing for 0\.5 s"):
        shell(f"sleep 100 & echo $! > {note}; wait", patience=0.5)
    assert time.monotonic() - began < 5
    assert wait_gone(int(note.read_text()))


def test_words_are_no_silence() -> None:
    assert shell("for i in 1 2 3 4 5 6; do sleep 0.2; echo $i >&2; done", patience=0.9).status == 0


def test_its_input_stays_open_as_long_as_it_runs() -> None:
    """What runs at the far end takes the end of its input for the end of whoever waits."""
    assert shell("timeout 0.5 cat; exit $?").status == 124


def test_an_exception_in_the_listener_ends_it_too(tmp_path: Path) -> None:
    note = tmp_path / "pid"

    def interrupt(line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        shell(f"echo $$ > {note}; echo word >&2; sleep 100", on_line=interrupt)
    assert wait_gone(int(note.read_text()))


def test_output_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_process, "MOST_BYTES", 1 << 20)
    with pytest.raises(DeviceError, match="prints without end"):
        listen([sys.executable, "-c", "while True: print('x' * 1000)"], patience=20)


def test_a_line_without_end_is_cut() -> None:
    done = listen([sys.executable, "-c", "import sys; sys.stderr.write('x' * 10**6)"], patience=20)
    assert 0 < len(done.err) <= 4096


def test_an_interruption_from_another_thread(tmp_path: Path) -> None:
    timer = threading.Timer(0.5, _process.interrupt)
    timer.start()
    assert shell("sleep 100").status == -signal.SIGKILL
    timer.join()


def test_a_missing_program() -> None:
    with pytest.raises(InstallationError, match="cannot start /no/such/program"):
        listen(["/no/such/program"], patience=1)


def test_its_environment() -> None:
    done = listen(["/usr/bin/env"], patience=20, environment={"ONLY": "this"})
    assert done.text == "ONLY=this"
    assert "ONLY" not in os.environ
