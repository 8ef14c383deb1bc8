"""The services shell and exec: a command in the phone's own shell, with or without the protocol that keeps its streams apart."""

import asyncio
import contextlib
import os
import shutil
import signal
import struct
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import IO, Any

from adbd.system import ENVIRONMENT, SHELL_USER
from adbd.wire import HangUpError, Stream

_STDIN, _STDOUT, _STDERR, _EXIT, _CLOSE_STDIN = range(5)
# Given a path: the child's PATH is the phone's.
_CHROOT = shutil.which("chroot", path="/usr/sbin:/usr/bin:/sbin:/bin") or "chroot"
_HEADER = struct.Struct("<BI")


class Running:
    """A command that runs, hung up on when its stream ends.

    Attributes:
        keep: bytes of standard output after which the stream ends; None: all.
    """

    def __init__(self, root: Path, command: str, *, separate: bool) -> None:
        self._separate = separate
        self.keep: int | None = None
        self.process = subprocess.Popen(
            [_CHROOT, f"--userspec={SHELL_USER}:{SHELL_USER}", "--groups=", root, "/system/bin/sh", "-c", command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if separate else subprocess.STDOUT,
            env=ENVIRONMENT,
            start_new_session=True,
            bufsize=0,
        )

    async def serve(self, stream: Stream) -> None:
        """Carry its bytes until it has ended, or the host is gone."""
        gone: asyncio.Future[Any] = asyncio.ensure_future(stream.closed.wait())
        pumps = [asyncio.ensure_future(self._pump(stream, self.process.stdout, _STDOUT))]
        if self._separate:
            pumps.append(asyncio.ensure_future(self._pump(stream, self.process.stderr, _STDERR)))
        tasks: list[asyncio.Future[Any]] = [gone, *pumps, asyncio.ensure_future(self._feed(stream))]
        output: asyncio.Future[Any] = asyncio.gather(*pumps)
        try:
            await asyncio.wait([output, gone], return_when=asyncio.FIRST_COMPLETED)
            if not output.done():
                raise HangUpError
            output.result()
            while self.process.poll() is None:
                await asyncio.sleep(0.005)
            if self._separate:
                status = self.process.returncode
                await stream.write(_HEADER.pack(_EXIT, 1) + bytes([status if status >= 0 else 128 - status]))
        finally:
            for task in tasks:  # none may hold on to a pipe that is closed
                task.cancel()
            await asyncio.gather(output, *tasks, return_exceptions=True)
            self._hang_up()

    def _hang_up(self) -> None:
        """As adbd does when its host is gone: SIGHUP for the shell, and the ends of all pipes."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGHUP)
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    async def _pump(self, stream: Stream, pipe: IO[bytes] | None, kind: int) -> None:
        async for block in _blocks(pipe):
            if self.keep is not None and kind == _STDOUT:
                block, self.keep = block[: self.keep], max(0, self.keep - len(block))
            await stream.write(_HEADER.pack(kind, len(block)) + block if self._separate else block)
            if self.keep == 0 and kind == _STDOUT:
                raise HangUpError

    async def _feed(self, stream: Stream) -> None:
        """Carry what the host sends to the command's standard input."""
        pipe = self.process.stdin
        assert pipe is not None
        with contextlib.suppress(HangUpError, BrokenPipeError):
            while True:
                kind, length = _HEADER.unpack(await stream.read(_HEADER.size)) if self._separate else (_STDIN, 1)
                data = await stream.read(length)
                if kind == _STDIN:
                    await _write(pipe, data)
                elif kind == _CLOSE_STDIN:
                    pipe.close()
                    return


async def _blocks(pipe: IO[bytes] | None) -> AsyncIterator[bytes]:
    """What a pipe carries, until its last writer closes it."""
    assert pipe is not None
    os.set_blocking(pipe.fileno(), False)
    while True:
        try:
            block = os.read(pipe.fileno(), 1 << 16)
        except BlockingIOError:
            await _ready(pipe, reading=True)
            continue
        if not block:
            return
        yield block


async def _write(pipe: IO[bytes], data: bytes) -> None:
    os.set_blocking(pipe.fileno(), False)
    while data:
        try:
            data = data[os.write(pipe.fileno(), data) :]
        except BlockingIOError:
            await _ready(pipe, reading=False)


async def _ready(pipe: IO[bytes], *, reading: bool) -> None:
    """Wait until a pipe can be read from, or written to."""
    loop, happened = asyncio.get_running_loop(), asyncio.Event()
    add, remove = (loop.add_reader, loop.remove_reader) if reading else (loop.add_writer, loop.remove_writer)
    add(pipe.fileno(), happened.set)
    try:
        await happened.wait()
    finally:
        remove(pipe.fileno())
