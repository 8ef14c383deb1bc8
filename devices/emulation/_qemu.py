"""How the board is started: qemu's command, the keeper that stands behind it, and the configuration for ssh."""

from pydantic import Field

from edge_sd.devices.emulation import _create as made
from edge_sd.devices.emulation._place import board_folder
from edge_sd.validation import Record

HOST = "board"  # in the configuration for ssh

# Starts the board and is its parent. Its input is this process's hold on the board: it ends without a word where this process
# ends before it has let the board go, and the board is killed; after "stay" the board is on its own. Constant: the board's
# command comes as arguments. As long as the keeper reads, the board's number cannot be given to another process. Where this
# process ended before the keeper could answer, the answer must not end the keeper (PIPE), who has the board to kill.
KEEPER = """
console=$1; shift
exec 3<&0
(
  "$@" < /dev/null > "$console" 2>&1 3<&- &
  board=$!
  trap '' PIPE
  echo "$board $(exec sh -c 'echo $PPID')"
  exec > /dev/null 2>&1
  read -r word <&3
  [ "$word" = stay ] || kill -9 "$board"
  exec 3<&-
  wait "$board"
) &
"""


class Settings(Record):
    """What a board is started with.

    Attributes:
        memory_mib: of the board; qemu takes some 100 MiB more.
        cores: of the board, each a thread here.
    """

    memory_mib: int = Field(default=1024, ge=192, le=2**20)
    cores: int = Field(default=2, ge=1, le=8)


def command(settings: Settings, port: int) -> list[str]:
    """What is started: a board whose console is the standard output, and whose ssh is a port of the loopback address.

    It reaches nothing outside of it (restrict), and its disk is written to a file without a name (snapshot).
    """
    folder = board_folder()
    disk = str(folder / made.DISK).replace(",", ",,")
    return [
        made.find_tool("qemu-system-aarch64") or "qemu-system-aarch64",
        "-nodefaults", "-no-user-config", "-display", "none", "-monitor", "none", "-serial", "stdio", "-no-reboot",
        "-machine", "virt", "-cpu", "cortex-a72", "-accel", "tcg,thread=multi",
        "-smp", str(settings.cores), "-m", str(settings.memory_mib),
        "-kernel", str(folder / made.KERNEL), "-initrd", str(folder / made.INITRD),
        "-append", "console=ttyAMA0 quiet panic=-1 mitigations=off random.trust_cpu=on",
        "-drive", f"file={disk},if=none,format=raw,id=disk,snapshot=on", "-device", "virtio-blk-pci,drive=disk",
        "-netdev", f"user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:{port}-:22", "-device", "virtio-net-pci,netdev=net,romfile=",
        "-device", "virtio-rng-pci",
    ]  # fmt: skip


def ssh_config(port: int) -> str:
    """A file for ssh's `-F`: it knows the board's own key alone, and gives away no other key than the board's."""
    folder = board_folder()

    def quoted(name: str) -> str:
        return '"' + str(folder / name).replace("%", "%%") + '"'

    options = {
        "HostName": "127.0.0.1",
        "Port": port,
        "User": "root",
        "IdentityFile": quoted(made.CLIENT_KEY),
        "IdentitiesOnly": "yes",
        "IdentityAgent": "none",
        "BatchMode": "yes",
        "HostKeyAlias": made.ALIAS,
        "UserKnownHostsFile": quoted(made.KNOWN_HOSTS),
        "GlobalKnownHostsFile": "/dev/null",
        "StrictHostKeyChecking": "yes",
        "UpdateHostKeys": "no",
    }
    return f"Host {HOST}\n" + "".join(f"  {name} {value}\n" for name, value in options.items())
