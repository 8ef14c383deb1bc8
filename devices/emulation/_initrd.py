"""The kernel's first file system: busybox, and the modules without which it sees neither disk nor network.

Debian's kernel package holds no table of which module needs which (it is made where the package is installed), but each module
names what it needs in its section `.modinfo`.
"""

import gzip
import lzma
import struct
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from edge_sd.errors import InstallationError

# Of the machine that qemu calls virt. What the kernel has built in is no file.
WANTED = ("virtio_pci", "virtio_blk", "virtio_net", "virtio_rng", "ext4")
# Loads the modules in their order, waits for the disk, and hands over to it. Where that fails it ends, and the kernel with it.
_INIT = """#!/bin/busybox sh
b=/bin/busybox
$b mount -t devtmpfs dev /dev
for module in /modules/*; do $b insmod $module || echo "edge-sd: cannot load $module"; done
i=0; while [ ! -b /dev/vda ] && [ $i -lt 100 ]; do $b usleep 100000; i=$((i + 1)); done
$b mount -t ext4 /dev/vda /new && exec $b switch_root /new /edge-init
echo "edge-sd: the disk cannot be mounted"
"""
_COMPRESSED = {".xz": lzma.decompress, ".gz": gzip.decompress}


def make_initrd(busybox: Path, modules: Path, output: Path) -> None:
    """Write the initrd.

    Args:
        busybox: a static one for the board.
        modules: the kernel package's folder `lib/modules/VERSION`.
        output: the file.

    Raises:
        InstallationError: a module is missing.
    """
    entries: list[tuple[str, int, bytes]] = [(name, 0o040755, b"") for name in ("bin", "dev", "modules", "new")]
    entries += [("bin/busybox", 0o100755, busybox.read_bytes()), ("init", 0o100755, _INIT.encode())]
    for number, (name, data) in enumerate(in_order(modules, WANTED)):
        entries.append((f"modules/{number:02d}-{name}.ko", 0o100644, data))
    output.write_bytes(gzip.compress(newc(entries), compresslevel=1, mtime=0))


def in_order(modules: Path, wanted: Iterable[str]) -> list[tuple[str, bytes]]:
    """Names and contents of the wanted modules and of all that they need, each after what it needs.

    Raises:
        InstallationError: the kernel has one neither as a file nor built in.
    """
    files = {_module_name(file.name): file for file in sorted(modules.rglob("*.ko*"))}
    listed = modules / "modules.builtin"
    built_in = {_module_name(PurePosixPath(line).name) for line in listed.read_text().splitlines()} if listed.exists() else set()
    ordered: dict[str, bytes] = {}

    def add(name: str) -> None:
        if name in ordered or (name in built_in and name not in files):
            return
        if name not in files:
            raise InstallationError(f"the kernel {modules.name} has no module {name}", "edge-sd emulator create --overwrite")
        file = files[name]
        data = _COMPRESSED.get(file.suffix, bytes)(file.read_bytes())
        for needed in depends(data):
            add(needed)
        ordered[name] = data

    for name in wanted:
        add(_module_name(name))
    return list(ordered.items())


def depends(module: bytes) -> list[str]:
    """Names of the modules that a module names as those it needs (ELF of 64 bits, little-endian)."""
    entries = _section(module, b".modinfo").split(b"\0")
    value = next((entry.removeprefix(b"depends=") for entry in entries if entry.startswith(b"depends=")), b"")
    return [_module_name(name) for name in value.decode("ascii").split(",") if name]


def newc(entries: Iterable[tuple[str, int, bytes]]) -> bytes:
    """Pack (name, mode, content) as a cpio archive in the format that the kernel unpacks ("newc")."""
    out = bytearray()
    for number, (name, mode, data) in enumerate([*entries, ("TRAILER!!!", 0, b"")], start=1):
        encoded = name.encode() + b"\0"
        #        inode, mode, uid, gid, links, mtime, size, device ×2, special device ×2, length of the name, checksum
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(encoded), 0)
        out += b"070701" + b"".join(b"%08X" % field for field in fields) + encoded
        out += bytes(-len(out) % 4) + data
        out += bytes(-len(out) % 4)
    return bytes(out)


def _module_name(file: str) -> str:
    """virtio-rng.ko.xz → virtio_rng: the kernel takes both signs for one."""
    return file.partition(".ko")[0].replace("-", "_")


def _section(elf: bytes, wanted: bytes) -> bytes:
    """The content of a section of an ELF file, found by its name; nothing where there is none."""
    if elf[:6] != b"\x7fELF\x02\x01":
        raise InstallationError("a kernel module is no ELF file of 64 bits", "edge-sd emulator create --overwrite")
    (table,) = struct.unpack_from("<Q", elf, 40)
    size, count, names = struct.unpack_from("<HHH", elf, 58)
    headers = [struct.unpack_from("<IIQQQQ", elf, table + index * size) for index in range(count)]
    strings = headers[names][4]
    for name, _, _, _, offset, length in headers:
        if elf.startswith(wanted + b"\0", strings + name):
            return elf[offset : offset + length]
    return b""
