"""`edge-sd …` in the test's own process, and what it left behind."""

import contextlib
import io
import re
import sys
from typing import NamedTuple

import pytest

from edge_sd.cli.main import main


class Outcome(NamedTuple):
    """What a command left behind in the terminal."""

    code: int
    out: str
    err: str

    def failed_with(self, code: int, *said: str) -> bool:
        """Whether it ended with `code` and two lines, error and what to try, that hold everything `said`."""
        lines = [line for line in self.err.splitlines() if not re.match(r"[\w' -]+: (\d+/\d+|running)|exporting: |timing ", line)]
        assert self.code == code, self
        assert len(lines) == 2, lines
        assert lines[0].startswith("error: "), lines
        assert lines[1].startswith("try: "), lines
        for one in said:
            assert one in " ".join(lines)
        return True

    @property
    def error(self) -> str:
        """What it said of an error, in two lines: what is wrong, and what to try."""
        lines = [line for line in self.err.splitlines() if not re.match(r"[\w -]+: \d+/\d+|wrote ", line)]
        assert [line.split(":")[0] for line in lines] == ["error", "try"], self
        return " ".join(lines)


def call(*arguments: object) -> Outcome:
    """`edge-sd …` in this process; an exception that is no exit goes through, as the traceback that a user would see."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr(sys, "argv", ["edge-sd", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
    return Outcome(int(ended.value.code or 0), out.getvalue(), err.getvalue())


def succeeded(*arguments: object) -> Outcome:
    """The same of a command that has to succeed."""
    done = call(*arguments)
    assert done.code == 0, done
    return done


def refused(done: Outcome, code: int, *said: str) -> None:
    """It ended with `code`, and its last two lines, error and what to try, hold everything `said`."""
    assert done.code == code, done
    error, remedy = done.err.splitlines()[-2:]
    assert (error.startswith("error: "), remedy.startswith("try: ")) == (True, True), done.err
    assert not [text for text in said if text not in error + remedy], done.err
