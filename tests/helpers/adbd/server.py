"""A server of adb's that is the tests' own: its port, its keys, its log."""

import contextlib
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

PORT = "ANDROID_ADB_SERVER_PORT"


@contextlib.contextmanager
def private_server(folder: Path) -> Iterator[None]:
    """Start it, and let this process's adb find it; at the end nothing of it is left, or that is a failure."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = str(found.getsockname()[1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(PORT, port)
        patch.delenv("ADB_SERVER_SOCKET", raising=False)
        own = {**os.environ, "HOME": str(folder), "TMPDIR": str(folder)}
        subprocess.run(["adb", "start-server"], env=own, check=True, capture_output=True, timeout=60)
        server = next(process for process in psutil.process_iter() if _serves(process, port))
        try:
            yield
        finally:
            subprocess.run(["adb", "kill-server"], check=True, capture_output=True, timeout=60)
            server.wait(10)
        assert not [process for process in psutil.process_iter() if _serves(process, port)]


def _serves(process: psutil.Process, port: str) -> bool:
    try:
        return f"tcp:{port}" in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
