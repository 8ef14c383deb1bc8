"""A run that measures on other devices: what they say is in the report, and one that is gone costs nothing else."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edge_sd.devices import BenchResult
from edge_sd.errors import DeviceError, UsageError
from edge_sd.files import read_model
from loopback_sshd import loopback_sshd

Walk = Callable[..., dict[str, str]]


def test_a_device_proves_and_times_the_bundle(walk: Walk, copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sshd").mkdir()
    with loopback_sshd(tmp_path / "sshd", SetEnv=f"EDGE_SD_PYTHON={sys.executable}") as server:
        monkeypatch.setenv("EDGE_SD_SSH_CONFIG", str(server.config))
        said = walk(copied, bench={"devices": ["ssh:board"]})
        assert [stage for stage, state in said.items() if state == "running"] == ["bench-ssh-board"]
        assert walk(copied, bench={"devices": ["ssh:board"]})["bench-ssh-board"] == "done before"
    result = read_model(BenchResult, copied / "bench" / "ssh-board.json")
    assert result.parity is not None
    assert result.parity.passed
    assert result.device.title in (copied / "report.html").read_text()


def test_a_device_that_does_not_answer_is_told_at_the_end(
    walk: Walk, copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "ssh_config"
    config.write_text("Host *\n  Port 1\n  ConnectTimeout 2\n")
    monkeypatch.setenv("EDGE_SD_SSH_CONFIG", str(config))
    (copied / "report.html").unlink()
    with pytest.raises(DeviceError, match="board"):
        walk(copied, bench={"devices": ["ssh:board"]})
    assert (copied / "report.html").exists()
    assert not (copied / "bench" / "ssh-board.json").exists()


def test_a_device_that_there_is_not_is_refused_before_anything(walk: Walk, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown device 'abd'"):
        walk(tmp_path / "out", bench={"devices": ["abd:SERIAL"]})
    assert not (tmp_path / "out").exists()
