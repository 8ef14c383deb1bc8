"""A real ssh server on the loopback address, with keys of its own: what tests reach by ssh.

It takes the user `sshd`, which the Debian package openssh-server makes; no service is touched, and nothing stays behind.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

# Where sshd's unprivileged half is locked up; part of no package, made by what starts the service.
_PRIVILEGES = Path("/run/sshd")
_SECONDS = 30


@dataclass
class LoopbackSshd:
    """A server that runs.

    Attributes:
        port: on 127.0.0.1.
        folder: of its keys and configurations.
        config: for ssh's `-F`: host `board` is this server; in it stands whatever a test wants to change.
        process: the listening server; each connection is a child of it.
    """

    port: int
    folder: Path
    config: Path
    process: subprocess.Popen[bytes]

    def write_config(self, **changes: str) -> Path:
        """Another configuration of the client, options of ssh_config replaced or added; for ssh's `-F`."""
        options = {
            "HostName": "127.0.0.1",
            "Port": str(self.port),
            "User": "root",
            "IdentityFile": quoted(self.folder / "client"),
            "IdentitiesOnly": "yes",
            "IdentityAgent": "none",
            "UserKnownHostsFile": quoted(self.folder / "known_hosts"),
            "GlobalKnownHostsFile": "/dev/null",
            "StrictHostKeyChecking": "yes",
            **changes,
        }
        self.config.write_text("Host board\n" + "".join(f"  {name} {value}\n" for name, value in options.items()))
        return self.config

    def kill_connections(self) -> None:
        """Kill the server's half of every connection, and leave the listening server be."""
        for child in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()

    def sleep(self) -> None:
        """Let no process of the server run any more: a link that is dead without a word."""
        for process in self._processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.suspend()

    def wake(self) -> None:
        """Undo `sleep`."""
        for process in self._processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()

    def _processes(self) -> list[psutil.Process]:
        server = psutil.Process(self.process.pid)
        return [server, *server.children(recursive=True)]


@contextlib.contextmanager
def loopback_sshd(folder: Path, **options: str) -> Iterator[LoopbackSshd]:
    """Start a server in an empty folder; `options` are those of sshd_config, replaced or added, or left out where they are empty.

    It is ended with all its connections, also where the block fails.
    """
    program = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    assert program, "sshd is not installed: apt-get install openssh-server"
    for name in ("host", "client"):
        _keygen(folder / name)
    shutil.copy(folder / "client.pub", folder / "authorized_keys")
    port = free_port()
    host_key = " ".join((folder / "host.pub").read_text().split()[:2])
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {host_key}\n")
    settings = {
        "ListenAddress": "127.0.0.1",
        "Port": str(port),
        "HostKey": f'"{folder}/host"',
        "AuthorizedKeysFile": quoted(folder / "authorized_keys"),
        "PidFile": "none",
        "UsePAM": "no",
        "StrictModes": "no",
        "PermitRootLogin": "prohibit-password",
        "PasswordAuthentication": "no",
        "KbdInteractiveAuthentication": "no",
        "PrintMotd": "no",
        "Subsystem": "sftp internal-sftp",
        **options,
    }
    (folder / "sshd_config").write_text("".join(f"{name} {value}\n" for name, value in settings.items() if value))
    made = not _PRIVILEGES.exists()
    _PRIVILEGES.mkdir(mode=0o755, exist_ok=True)
    with (folder / "sshd.log").open("wb") as log:
        process = subprocess.Popen(
            [program, "-D", "-e", "-f", str(folder / "sshd_config")], stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    server = LoopbackSshd(port, folder, folder / "ssh_config", process)
    server.write_config()
    try:
        _wait_for(server)
        yield server
    finally:
        processes = server._processes() if process.poll() is None else []
        for each in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.send_signal(signal.SIGKILL)
        process.wait(_SECONDS)
        psutil.wait_procs(processes, _SECONDS)
        if made:
            with contextlib.suppress(OSError):  # another server came to use it
                _PRIVILEGES.rmdir()


def quoted(path: Path) -> str:
    """A path as it stands in ssh's configuration, where % and white space mean something."""
    return '"' + str(path).replace("%", "%%") + '"'


def free_port() -> int:
    """A port of the loopback address that nobody listens to at this moment."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _keygen(path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "edge-sd", "-f", str(path)], check=True)


def _wait_for(server: LoopbackSshd) -> None:
    end = time.monotonic() + _SECONDS
    while time.monotonic() < end:
        assert server.process.poll() is None, (server.folder / "sshd.log").read_text()
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", server.port), 1):
            return
        time.sleep(0.05)
    raise AssertionError("sshd does not listen: " + (server.folder / "sshd.log").read_text())
