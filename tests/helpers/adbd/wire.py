"""Packets and streams of the ADB protocol, version 0x01000001, as the device speaks it (AOSP: adb/protocol.txt)."""

import asyncio
import contextlib
import struct
from collections.abc import Awaitable, Callable

VERSION = 0x01000001  # from this on packets carry no checksum
MOST = 1 << 20  # bytes of a packet
_FIRST = 4096  # the same, before the two sides have greeted
_HEADER = struct.Struct("<6I")
CNXN, AUTH, OPEN, OKAY, WRTE, CLSE = (
    int.from_bytes(name, "little") for name in (b"CNXN", b"AUTH", b"OPEN", b"OKAY", b"WRTE", b"CLSE")
)
AUTH_TOKEN, AUTH_PUBLIC_KEY = 1, 3


class HangUpError(Exception):
    """The other side closed the stream, or is gone."""


class Stream:
    """One service's bytes. In each direction one packet is under way; the next follows when it has been acknowledged."""

    def __init__(self, link: "Link", local: int, remote: int) -> None:
        self._link, self.local, self.remote = link, local, remote
        self._arrived: asyncio.Queue[bytes] = asyncio.Queue()
        self._acknowledged, self._writing = asyncio.Event(), asyncio.Lock()
        self._rest, self.closed = b"", asyncio.Event()
        self.stalled = False

    async def accept(self) -> None:
        """Tell the host that the service is there."""
        await self._link.send(OKAY, self.local, self.remote)

    async def write(self, data: bytes) -> None:
        """Send bytes, in as many packets as they need, none of another writer between them."""
        async with self._writing:
            await self._hold()
            for start in range(0, len(data), self._link.most):
                if self.closed.is_set():
                    raise HangUpError
                self._acknowledged.clear()
                await self._link.send(WRTE, self.local, self.remote, data[start : start + self._link.most])
                await self._acknowledged.wait()
        if self.closed.is_set():
            raise HangUpError

    async def read(self, count: int) -> bytes:
        """Exactly `count` bytes. What was not asked for is not acknowledged, so that the host waits."""
        await self._hold()
        while len(self._rest) < count:
            if self.closed.is_set() and self._arrived.empty():
                raise HangUpError
            block = await self._arrived.get()
            if block:
                self._rest += block
                await self._link.send(OKAY, self.local, self.remote)
        taken, self._rest = self._rest[:count], self._rest[count:]
        return taken

    def take(self, command: int, data: bytes) -> None:
        """A packet of the host's for this stream."""
        if command == WRTE:
            self._arrived.put_nowait(data)
        elif command == OKAY:
            self._acknowledged.set()
        else:
            self.hang_up()

    async def _hold(self) -> None:
        """A stream that was stalled neither takes nor gives, until the host closes it."""
        if self.stalled:
            await self.closed.wait()
            raise HangUpError

    def hang_up(self) -> None:
        """There is nobody at the other end any more."""
        self.closed.set()
        self._acknowledged.set()
        self._arrived.put_nowait(b"")  # wakes a reader


class Link:
    """One connection to a host, and the streams in it.

    Args:
        banner: what the device says of itself.
        serve: called with each stream that the host opens, and the service that it wants.
        locked: seconds until somebody accepts the host's key, infinity for never; None: nobody need.
        pause: called with the bytes of each packet, after it; a slow link waits in it.
    """

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        banner: str,
        serve: Callable[[Stream, str], Awaitable[None]],
        locked: Callable[[], float | None],
        pause: Callable[[int], Awaitable[None]],
    ) -> None:
        self._reader, self._writer, self._banner, self._serve = reader, writer, banner, serve
        self._locked, self._pause = locked, pause
        self._streams: dict[int, Stream] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._version, self.most, self._opened = 0, _FIRST, 0

    async def run(self) -> None:
        """Answer until the connection ends; then everything in it is hung up on."""
        try:
            while True:
                command, first, second, length, _, magic = _HEADER.unpack(await self._reader.readexactly(_HEADER.size))
                if magic != command ^ 0xFFFFFFFF or length > MOST:
                    return
                data = await self._reader.readexactly(length)
                await self._pause(length)
                await self._take(command, first, second, data)
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            self.cut()

    def cut(self) -> None:
        """Break the connection, and hang up on every stream."""
        self._writer.transport.abort()
        for stream in self._streams.values():
            stream.hang_up()

    async def send(self, command: int, first: int, second: int, data: bytes = b"") -> None:
        """Send one packet."""
        checksum = sum(data) & 0xFFFFFFFF if self._version < VERSION else 0
        self._writer.write(_HEADER.pack(command, first, second, len(data), checksum, command ^ 0xFFFFFFFF) + data)
        try:
            await self._writer.drain()
        except OSError as error:
            raise HangUpError from error
        await self._pause(len(data))

    async def _take(self, command: int, first: int, second: int, data: bytes) -> None:
        if command == CNXN:
            self._greeting = first, second
            await self._greet(asked=False)
        elif command == AUTH:
            await self._greet(asked=first == AUTH_PUBLIC_KEY)
        elif command == OPEN:
            self._opened += 1
            stream = self._streams[self._opened] = Stream(self, self._opened, first)
            self._start(self._run(stream, data.rstrip(b"\0").decode()))
        elif second in self._streams:
            stream = self._streams[second]
            if command == CLSE and not stream.closed.is_set():
                await self.send(CLSE, stream.local, stream.remote)  # some hosts wait for the answer
            stream.take(command, data)
        elif command != CLSE:
            await self.send(CLSE, 0, first)

    async def _greet(self, *, asked: bool) -> None:
        """Say who we are; a locked phone asks for a signature first, likes none, and takes the key when somebody says so."""
        wait = self._locked()
        if wait is None:
            self._version, self.most = min(self._greeting[0], VERSION), min(self._greeting[1], MOST)
            await self.send(CNXN, VERSION, MOST, self._banner.encode())
        elif not asked:
            await self.send(AUTH, AUTH_TOKEN, 0, bytes(20))
        elif wait != float("inf"):
            self._start(self._accept(wait))

    async def _accept(self, wait: float) -> None:
        await asyncio.sleep(wait)
        self._locked = lambda: None
        await self._greet(asked=True)

    def _start(self, work: "asyncio.Future[None] | Awaitable[None]") -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, stream: Stream, service: str) -> None:
        """A service from OPEN to CLSE. One that is refused is closed without an OKAY, as adbd does."""
        try:
            await self._serve(stream, service)
        except HangUpError:
            pass
        finally:
            if not stream.closed.is_set():
                with contextlib.suppress(HangUpError):
                    await self.send(CLSE, stream.local, stream.remote)
            stream.hang_up()
            self._streams.pop(stream.local, None)
