"""A headless browser of the Chromium family: found, started on one page, and ended with all that it started."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Final

import psutil
from typing_extensions import Self

from edge_sd.devices._process import end
from edge_sd.errors import InstallationError
from edge_sd.runtimes._child import last_lines

VARIABLE: Final = "EDGE_SD_BROWSER"
_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "microsoft-edge", "brave-browser")
_MAC = (
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
)
# It asks nobody for anything but the page, and keeps nothing.
_FLAGS = (
    "--headless",
    "--remote-debugging-pipe",
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--disable-breakpad",
    "--disable-features=SpareRendererForSitePerProcess,Translate,OptimizationHints,MediaRouter",
    "--no-proxy-server",
)
# Its debugging pipe is our end of its standard input. The browser ends when that does, whatever becomes of this process.
_PIPE = 'exec "$@" 3<&0 4>/dev/null'
_SECONDS_TO_END = 10.0
# It makes a socket in a folder of its own in $TMPDIR, and paths of sockets end at some 100 characters.
_LONGEST_FOLDER = 55


def find() -> str | None:
    """The browser that EDGE_SD_BROWSER names, or the first of the known ones; None where there is none."""
    if asked := os.environ.get(VARIABLE):
        return shutil.which(asked)
    return next(filter(None, map(shutil.which, (*_NAMES, *_MAC))), None)


class Chromium:
    """A browser on one page, in a process group and with a profile of its own.

    Args:
        before: what stands before the program: taskset and its like.

    Raises:
        InstallationError: there is no browser, or it cannot be started.
    """

    def __init__(self, url: str, flags: Sequence[str], before: Sequence[str] = ()) -> None:
        program = find()
        if program is None:
            raise InstallationError(
                "there is no browser of the Chromium family here", f"apt-get install -y chromium; or set {VARIABLE}"
            )
        self._folder = Path(tempfile.mkdtemp(prefix="edge-sd-browser-"))
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (open as long as it runs)
        as_root = ("--no-sandbox",) if sys.platform == "linux" and os.geteuid() == 0 else ()
        arguments = [program, *_FLAGS, *as_root, *flags, f"--user-data-dir={self._folder / 'profile'}", url]
        # What it would put into the user's folders, or leave behind in /tmp when it is killed.
        names = ["HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME"]
        if len(str(self._folder)) <= _LONGEST_FOLDER:
            names.append("TMPDIR")
        places = dict.fromkeys(names, str(self._folder))
        try:
            self._process = subprocess.Popen(  # noqa: S603 (a list of arguments; the script is a constant)
                [*before, "/bin/sh", "-c", _PIPE, "sh", *arguments],
                stdin=subprocess.PIPE,
                stdout=self._log,
                stderr=self._log,
                env={**os.environ, **places},
                start_new_session=True,
            )
        except OSError as error:
            self._remove()
            raise InstallationError(f"cannot start {program}: {error.strerror or error}", f"set {VARIABLE}") from error
        self._renderers: set[psutil.Process] = set()

    def ended(self) -> str:
        """How it ended; empty while it runs. The page has a process of its own, which can end alone."""
        status = self._process.poll()
        if status is not None:
            return f"ended with {f'exit code {status}' if status >= 0 else f'signal {-status}'}"
        found = {process for process in self._children() if _is_renderer(process)}
        gone = self._renderers - found
        self._renderers |= found
        return "lost the page's process" if gone and not found else ""

    def said(self) -> str:
        """The last lines that it printed, most of them chatter."""
        return last_lines(self._log)

    def close(self) -> None:
        """Kill it and all that it started, and remove its profile; may be called twice."""
        if self._log.closed:
            return
        children = self._children()
        end(self._process)
        for child in children:
            try:
                child.kill()
            except psutil.Error:
                continue
        psutil.wait_procs(children, timeout=_SECONDS_TO_END)
        self._remove()

    def _children(self) -> list[psutil.Process]:
        try:
            return psutil.Process(self._process.pid).children(recursive=True)  # type: ignore[no-any-return]
        except psutil.Error:
            return []

    def _remove(self) -> None:
        self._log.close()
        for _ in range(20):
            shutil.rmtree(self._folder, ignore_errors=True)
            if not self._folder.exists():
                return
            time.sleep(0.1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _is_renderer(process: psutil.Process) -> bool:
    try:
        return "--type=renderer" in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
