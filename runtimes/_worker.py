"""The other end of `_child.py` for runtimes in Python: loads a bundle's programs and answers calls until they end.

python -m edge_sd.runtimes._worker BUNDLE RUNTIME PROGRAM… [--threads N]
"""

import argparse
import ctypes
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from edge_sd.bundle import open_bundle
from edge_sd.errors import EdgeSDError, ExitCode
from edge_sd.runnable import Session
from edge_sd.runtimes._child import signature_of
from edge_sd.runtimes._frames import Fault, Ready, encode_answer, encode_fault, encode_ready, read_request
from edge_sd.runtimes._runtime import find_runtime

_PR_SET_PDEATHSIG = 1


def main(arguments: Sequence[str]) -> int:
    """Serve, and return the exit code."""
    end_with_parent()
    parser = argparse.ArgumentParser(prog="edge_sd.runtimes._worker")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("runtime")
    parser.add_argument("programs", nargs="+")
    parser.add_argument("--threads", type=int)
    given = parser.parse_args(arguments)
    with take_output() as out:
        try:
            sessions, ready = _load(given.bundle, given.runtime, given.programs, given.threads)
        except Exception as error:  # whatever it is, the parent is to raise it
            _send(out, encode_fault(fault_of(error)))
            return int(ExitCode.FAILURE)
        _send(out, encode_ready(ready))
        serve(sessions, sys.stdin.buffer, out)
    return int(ExitCode.OK)


def serve(sessions: Sequence[Session], requests: BinaryIO, out: BinaryIO) -> None:
    """Answer every request with what a session says, or with why it does not."""
    while (request := read_request(requests)) is not None:
        program, inputs = request
        try:
            if program >= len(sessions):
                raise EdgeSDError(f"there is no program number {program}, only {len(sessions)}", "load the bundle again")
            frame = encode_answer(np.asarray(sessions[program](*inputs)))
        except Exception as error:
            frame = encode_fault(fault_of(error))
        _send(out, frame)


def fault_of(error: Exception) -> Fault:
    """An exception as the parent will raise it."""
    if isinstance(error, EdgeSDError):
        return Fault(message=error.message, hint=error.hint, code=error.code)
    if isinstance(error, MemoryError):
        return Fault(message="out of memory", hint="free some memory, or take a smaller model", code=ExitCode.FAILURE)
    return Fault(message=f"{type(error).__name__}: {error}", hint="export the bundle again", code=ExitCode.FAILURE)


def _load(path: Path, runtime_name: str, programs: Sequence[str], threads: int | None) -> tuple[list[Session], Ready]:
    bundle, runtime = open_bundle(path), find_runtime(runtime_name)
    sessions = [runtime.load(bundle, threads, name) for name in programs]
    return sessions, Ready(programs=tuple(signature_of(bundle.manifest.contract(name)) for name in programs))


def _send(out: BinaryIO, frame: bytes) -> None:
    out.write(frame)
    out.flush()


def take_output() -> BinaryIO:
    """Standard output, kept for frames: what libraries print there goes to standard error instead."""
    sys.stdout.flush()
    kept = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return kept


def end_with_parent() -> None:
    """On Linux, end when the parent process does. (The end of requests tells too, but not in the middle of a call.)"""
    if sys.platform != "linux":
        return
    parent = os.getppid()

    def look(*_: object) -> None:  # Linux sends it when the parent's thread ends that started us, too
        if os.getppid() != parent:
            os._exit(int(ExitCode.FAILURE))

    signal.signal(signal.SIGUSR1, look)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGUSR1))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
