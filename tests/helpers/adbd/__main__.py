"""The phone itself: a process in namespaces of its own (see phone.py). It says its port, and serves until it is killed."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil

from adbd.script import CutFile, CutOutput, During, Kill, Locked, Script, Silent, Slow, Stall, Throttle, Unplug
from adbd.shell import Running
from adbd.sync import Sync
from adbd.system import Sensors, build
from adbd.wire import Link, Stream

_TICK = 0.1  # seconds between two looks at what runs


class Phone:
    """What the script says happens to what the hosts want."""

    def __init__(self, root: Path, banner: str, script: Script, port: int) -> None:
        self._root, self._banner, self._script, self._port = root, banner, script, port
        self._links: set[Link] = set()
        self._running: dict[Running, str] = {}
        self._later: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._sent = 0
        self._sensors = Sensors(root)

    async def plug_in(self) -> None:
        """Take connections."""
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", self._port, reuse_port=True)

    async def live(self) -> None:
        """Watch over what runs: the dead are buried, and processors that work grow hot."""
        loop = asyncio.get_running_loop()
        before = loop.time()
        while True:
            await asyncio.sleep(_TICK)
            _bury(running.process.pid for running in self._running)
            now = loop.time()
            await self._heat(now - before)
            before = now

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._script.first(Silent) is not None:
            await reader.read(-1)
            writer.close()
            return
        link = Link(reader, writer, banner=self._banner, serve=self._serve, locked=self._locked, pause=self._pause)
        self._links.add(link)
        try:
            await link.run()
        finally:
            self._links.discard(link)

    def _locked(self) -> float | None:
        step = self._script.first(Locked)
        return None if step is None else float("inf") if step.accepted is None else step.accepted

    async def _pause(self, count: int) -> None:
        step = self._script.first(Slow)
        if step is not None and count:
            await asyncio.sleep(count / step.bytes_per_second)

    async def _serve(self, stream: Stream, service: str) -> None:
        name, _, argument = service.partition(":")
        kind, *options = name.split(",")
        if kind == "sync":
            await stream.accept()
            await Sync(self._root, stream, self._sending, self._kept).serve()
        elif kind in ("shell", "exec") and argument:  # no terminals here
            await stream.accept()
            await self._run(stream, argument, separate="v2" in options)

    async def _run(self, stream: Stream, command: str, *, separate: bool) -> None:
        running = Running(self._root, command, separate=separate)
        self._running[running] = command
        for cut in self._script.all(CutOutput):
            if cut.command in command:
                running.keep = cut.keep
                self._script.done(cut)
        for step in self._script.due(command=command):
            self._do_later(step, stream, running)
        try:
            await running.serve(stream)
        finally:
            del self._running[running]

    def _sending(self, stream: Stream, count: int) -> None:
        self._sent += count
        for step in self._script.due(sent=self._sent):
            if isinstance(step, Stall):
                stream.stalled = True
            else:
                self._do_later(step, stream, None, at_once=True)

    def _kept(self, path: str) -> int | None:
        return next((step.keep for step in self._script.all(CutFile) if path.endswith(step.name)), None)

    def _do_later(self, step: During, stream: Stream, running: Running | None, *, at_once: bool = False) -> None:
        task = asyncio.ensure_future(self._do(step, stream, running, 0.0 if at_once else step.after))
        self._later.add(task)
        task.add_done_callback(self._later.discard)

    async def _do(self, step: During, stream: Stream, running: Running | None, after: float) -> None:
        await asyncio.sleep(after)
        if isinstance(step, Stall):
            stream.stalled = True
        elif isinstance(step, Kill) and running is not None:
            largest = max(_processes(running), key=lambda process: process.memory_info().rss, default=None)
            if largest is not None:
                largest.kill()
        elif isinstance(step, Unplug):
            assert self._server is not None
            self._server.close()
            for link in list(self._links):
                link.cut()
            if step.back is not None:
                await asyncio.sleep(step.back)
                await self.plug_in()

    async def _heat(self, seconds: float) -> None:
        step = self._script.first(Throttle)
        if step is None:
            return
        busy = [running for running, command in self._running.items() if step.command in command]
        change = step.celsius_per_second * seconds * (1 if busy else -1)
        self._sensors.celsius = min(95.0, max(30.0, self._sensors.celsius + change))
        slow = self._sensors.celsius > step.limit
        self._sensors.show(slow=slow)
        if slow and busy:  # a third of the time is left
            processes = [process for running in busy for process in _processes(running)]
            for process in processes:
                process.suspend()
            try:
                await asyncio.sleep(2 * _TICK)
            finally:
                for process in processes:
                    try:
                        process.resume()
                    except psutil.NoSuchProcess:
                        continue


def _processes(running: Running) -> list[psutil.Process]:
    """What a command started, its shell left out; the shell itself when it became the command (exec)."""
    try:
        shell = psutil.Process(running.process.pid)
        return shell.children(recursive=True) or [shell]
    except psutil.NoSuchProcess:
        return []


def _bury(ours: Any) -> None:
    """Collect orphans, as the first process of a namespace must."""
    known = set(ours)
    while True:
        try:
            dead = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if dead is None or dead.si_pid in known:
            return
        os.waitpid(dead.si_pid, 0)


async def _main(spec: dict[str, Any]) -> None:
    root = Path(spec["root"])
    build(root, spec["properties"], spec["disk_bytes"])
    # Held, and never listened to: nobody else is given the port while the phone is unplugged, and who connects is refused.
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.bind(("127.0.0.1", 0))
        told = {name: spec["properties"][name] for name in ("ro.product.name", "ro.product.model", "ro.product.device")}
        banner = "device::" + "".join(f"{name}={value};" for name, value in told.items()) + f"features={spec['features']}"
        phone = Phone(root, banner, Script.read(spec["steps"]), held.getsockname()[1])
        await phone.plug_in()
        sys.stdout.write(f"{held.getsockname()[1]}\n")
        sys.stdout.flush()
        await phone.live()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal: the tests end it
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # what is ignored here no shell can trap, and the tests may run under nohup
    try:
        asyncio.run(_main(json.loads(sys.argv[1])))
    except subprocess.CalledProcessError as error:
        sys.exit(f"cannot mount: {error}")
