"""The log holds what libraries say; the terminal does not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from edge_sd.cli._log import log_file

_SAID = """
import logging, sys, warnings
from edge_sd.cli._log import log_to_file
from edge_sd.quiet import quiet
log_to_file(); log_to_file()
logging.getLogger("somebody").warning("a notice")
warnings.warn("deprecated thing")
with quiet():
    print("printed by a library")
"""


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, check=True, capture_output=True, text=True
    )


def test_libraries_talk_to_the_log(tmp_path: Path) -> None:
    log = tmp_path / "deep" / "log.txt"
    done = run(_SAID, EDGE_SD_LOG=str(log))
    assert (done.stdout, done.stderr) == ("", "")
    text = log.read_text()
    for said in ("WARNING somebody: a notice", "deprecated thing", "printed by a library"):
        assert text.count(said) == 1


def test_a_home_that_cannot_be_written_to_is_no_reason_to_stop(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = run(_SAID, EDGE_SD_LOG=str(tmp_path / "file" / "log.txt"))
    assert (done.stdout, done.stderr) == ("", "")


def test_an_error_is_in_the_log_with_its_cause(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    (tmp_path / "broken.yaml").write_text("a: [")
    done = subprocess.run(
        [sys.executable, "-m", "edge_sd", "run", "broken.yaml"],
        cwd=tmp_path, env={**os.environ, "EDGE_SD_LOG": str(log)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 2
    assert "yaml.parser.ParserError" in log.read_text()


def test_where_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("EDGE_SD_LOG", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert log_file() == tmp_path / "edge-sd" / "edge-sd.log"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert log_file() == Path.home() / ".cache" / "edge-sd" / "edge-sd.log"
