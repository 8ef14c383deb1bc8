"""The service sync: files in and out, as adbd's file_sync_service answers it (STAT, STA2, LST2, LIST, LIS2, SEND, RECV)."""

import os
import struct
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from adbd.system import SHELL_USER
from adbd.wire import Stream

_REQUEST = struct.Struct("<4sI")
_STAT, _STAT2 = struct.Struct("<4s3I"), struct.Struct("<4sIQQIIIIQqqq")
_BLOCK = 64 * 1024


class Sync:
    """One sync stream.

    Args:
        root: what `/` means.
        sending: called with the number of bytes of each block that is sent, before it is written.
        kept: a path → bytes of it that are told of; None: all.
    """

    def __init__(
        self, root: Path, stream: Stream, sending: Callable[[Stream, int], None], kept: Callable[[str], int | None]
    ) -> None:
        self._root, self._stream, self._sending, self._kept = root, stream, sending, kept

    async def serve(self) -> None:
        """Answer until the host quits."""
        while True:
            request, length = _REQUEST.unpack(await self._stream.read(_REQUEST.size))
            if request == b"QUIT" or length > 1024:
                return
            path = (await self._stream.read(length)).decode(errors="surrogateescape")
            if request == b"STAT":
                await self._stream.write(self._old_stat(request, self._path(path)))
            elif request in (b"STA2", b"LST2"):
                await self._stream.write(self._stat(request, self._path(path), follow=request == b"STA2"))
            elif request in (b"LIST", b"LIS2"):
                await self._list(path, new=request == b"LIS2")
            elif request == b"SEND":
                await self._take(*path.rsplit(",", 1))
            elif request == b"RECV":
                await self._give(path)
            else:
                await self._fail(f"unknown request {request!r}")
                return

    def _path(self, path: str) -> Path:
        """A path of the phone's in this process's file system; `..` leads nowhere."""
        return self._root.joinpath(*(part for part in PurePosixPath(path).parts if part not in ("/", "..")))

    def _old_stat(self, request: bytes, path: Path) -> bytes:
        try:
            found = path.lstat()
        except OSError:
            return _STAT.pack(request, 0, 0, 0)
        return _STAT.pack(request, found.st_mode, found.st_size & 0xFFFFFFFF, int(found.st_mtime))

    def _stat(self, request: bytes, path: Path, *, follow: bool) -> bytes:
        try:
            found = path.stat() if follow else path.lstat()
        except OSError as error:
            return _STAT2.pack(request, error.errno or 1, *[0] * 10)
        return _STAT2.pack(
            request, 0, found.st_dev, found.st_ino, found.st_mode, found.st_nlink, found.st_uid, found.st_gid, found.st_size,
            int(found.st_atime), int(found.st_mtime), int(found.st_ctime),
        )  # fmt: skip

    async def _list(self, path: str, *, new: bool) -> None:
        folder = self._path(path)
        for name in [".", "..", *sorted(os.listdir(folder))] if folder.is_dir() else []:  # noqa: PTH208 (. and .. belong to it)
            entry = self._stat(b"DNT2", folder / name, follow=False) if new else self._old_stat(b"DENT", folder / name)
            encoded = os.fsencode(name)
            await self._stream.write(entry + struct.pack("<I", len(encoded)) + encoded)
        await self._stream.write(b"DONE" + bytes((_STAT2 if new else _STAT).size - 4 + 4))

    async def _take(self, path: str, mode: str) -> None:
        """Write a file. After a refusal the rest is taken and thrown away, as adbd does: the host is still sending."""
        target, refused = self._path(path), ""
        try:
            missing = [folder for folder in reversed(target.parents) if not folder.exists()]
            for folder in missing:
                folder.mkdir(mode=0o775)
                os.chown(folder, SHELL_USER, SHELL_USER)
            target.unlink(missing_ok=True)
            file = target.open("xb", buffering=0)
        except OSError as error:
            file, refused = None, f"couldn't create file: {error.strerror}"
        while True:
            kind, length = _REQUEST.unpack(await self._stream.read(_REQUEST.size))
            if kind == b"DONE":
                break
            data = await self._stream.read(length)
            self._sending(self._stream, length)
            try:
                while file is not None and data:
                    data = data[file.write(data) :]
            except OSError as error:
                refused, data = f"write failed: {error.strerror}", b""
                if file is not None:
                    file.close()
                file = None
                target.unlink(missing_ok=True)
        if file is not None:
            owner = int(mode) >> 6 & 7  # adbd gives the group and all others what the owner has
            os.fchmod(file.fileno(), owner << 6 | owner << 3 | owner)  # by its handle: somebody may have removed it meanwhile
            os.fchown(file.fileno(), SHELL_USER, SHELL_USER)
            os.utime(file.fileno(), (length, length))
            file.close()
        await (self._fail(refused) if refused else self._stream.write(_REQUEST.pack(b"OKAY", 0)))

    async def _give(self, path: str) -> None:
        kept = self._kept(path)
        try:
            with self._path(path).open("rb") as file:
                while block := file.read(_BLOCK if kept is None else min(_BLOCK, kept)):
                    kept = None if kept is None else kept - len(block)
                    await self._stream.write(_REQUEST.pack(b"DATA", len(block)) + block)
        except OSError as error:
            await self._fail(f"open failed: {error.strerror}")
            return
        await self._stream.write(_REQUEST.pack(b"DONE", 0))

    async def _fail(self, why: str) -> None:
        await self._stream.write(_REQUEST.pack(b"FAIL", len(why.encode())) + why.encode())
