"""One connection to an ssh server, by OpenSSH's own client, that every command shares.

The first ssh process (the master) asks for what the user's configuration, agent and known hosts hold, and opens a socket in a
private folder; whatever follows goes through that socket and names no host at all. The master runs a command of its own that
waits for its input to end: where this process dies, so does the connection, and nothing is left at either end.
"""

import contextlib
import os
import re
import select
import shutil
import subprocess
import tempfile
import time
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from edge_sd.devices._process import end
from edge_sd.errors import DeviceError, InstallationError, UsageError
from edge_sd.runtimes._child import last_lines, last_words

_USER, _HOST, _IPV6 = r"[A-Za-z0-9_][A-Za-z0-9._-]*", r"[A-Za-z0-9_][A-Za-z0-9._-]*", r"[0-9A-Fa-f:.]+(?:%[A-Za-z0-9]+)?"
_ADDRESS = re.compile(rf"(?P<user>{_USER}@)?(?:(?P<host>{_HOST})|\[(?P<ipv6>{_IPV6})\])(?::(?P<port>[0-9]{{1,5}}))?", re.ASCII)
_MOST_CHARACTERS = 255

_CONNECT, _LOGIN = 15, 45  # seconds: to the server's first word, and until it lets us in
_READY = b"edge-sd ready\n"
# What the master runs: it says that we were let in, and ends with its input.
_WAIT = "echo edge-sd ready; exec cat > /dev/null"
# Stands where ssh wants a host: everything behind the socket is this one.
LABEL = "device"
# Where the socket's folder is made: not in TMPDIR, since a socket's name may have some hundred characters only.
_SOCKETS = Path("/tmp")  # noqa: S108 (a fresh folder of mode 0700 in it)
_PREFIX = "edge-sd-ssh-"
_STALE = 600  # seconds after which an empty one was left by a process that was killed

# Options of ssh that make it a tool: it asks nobody anything, forwards nothing, and notices a dead link after half a minute.
_OPTIONS = (
    "BatchMode=yes",
    f"ConnectTimeout={_CONNECT}",
    "ServerAliveInterval=10",
    "ServerAliveCountMax=3",
    "ControlMaster=yes",
    "ControlPersist=no",
    "RemoteCommand=none",
    "RequestTTY=no",
    "PermitLocalCommand=no",
    "ClearAllForwardings=yes",
)

# What ssh says, and what helps.
_HINTS = (
    (r"host identification has changed", "ssh {shown} names the old key's line: remove it if you know why the key changed"),
    (r"host key verification failed|host key is known", "ssh {shown} once by hand, and compare its key's fingerprint"),
    (r"permission denied|too many authentication failures|no supported authentication",
     "ssh-copy-id {shown}, or name the key in ~/.ssh/config; edge-sd asks for no password"),
    (r"connection refused", "does an ssh server run there, and on this port?"),
    (r"could not resolve|name or service not known|nodename nor servname", "check the name, or add it to ~/.ssh/config"),
    (r"no route to host|unreachable|timed out|timeout|host is down", "is the device on, and in the same network?"),
    (r"configuration|bad owner or permissions|_expand", "mend ssh's configuration: ssh -G {shown} reads it"),
)  # fmt: skip


@dataclass(frozen=True)
class Address:
    """Where an ssh server is.

    Attributes:
        destination: HOST or USER@HOST as ssh takes it, HOST also a name of the user's ssh configuration.
        host: the name alone.
        port: empty for the configuration's.
    """

    destination: str
    host: str
    port: str = ""


def parse_address(text: str) -> Address:
    """Read USER@HOST:PORT; user and port may be left out, an IPv6 address stands in brackets.

    Raises:
        UsageError: no user, host or port has such a name. It never reaches a process.
    """
    found = _ADDRESS.fullmatch(text) if len(text) <= _MOST_CHARACTERS else None
    if found is None or (found["port"] and not 0 < int(found["port"]) < 2**16):
        raise UsageError(f"no ssh server can have the address {text[:_MOST_CHARACTERS]!r}", "--device ssh:USER@HOST[:PORT]")
    host = found["host"] or found["ipv6"]
    return Address(f"{found['user'] or ''}{host}", host, found["port"] or "")


class SshLink:
    """A connection that is shared.

    Args:
        address: USER@HOST:PORT.
        config: file for ssh's `-F`, in place of the user's own configuration.

    Raises:
        UsageError: no such address can be.
        InstallationError: there is no ssh here.
        DeviceError: nobody answers there, or not the right one, or we are not let in.
    """

    def __init__(self, address: str, config: Path | None = None) -> None:
        self._address, self._config, self._shown = parse_address(address), config, address
        self._open()

    def client(self, *options: str) -> list[str]:
        """How ssh is started to use the connection; a command for the device follows.

        It can reach nothing else: without the socket there is no other way for it to take.
        """
        return ["ssh", *self.options, *options, "-T", "-a", "-x", "--", LABEL]

    @property
    def options(self) -> list[str]:
        """What makes ssh and scp use the connection. No option holds white space, so that rsync can take them, too."""
        return ["-F", "none", "-o", f"ControlPath={self._socket}", "-o", "ProxyCommand=false", "-o", "BatchMode=yes"]

    @property
    def alive(self) -> bool:
        """Whether the connection stands, as far as is known."""
        return self._process.poll() is None

    def lost(self, words: str) -> DeviceError:
        """The error for a command that broke off; `words` are what its own ssh said."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1)  # the master may be about to say why
        said = "" if self.alive or self._log.closed else last_lines(self._log, 2)
        return self._refusal(f"the connection to {self._shown} broke", said or words)

    def reopen(self, seconds: float) -> bool:
        """Connect anew, trying for some seconds; whether that went well."""
        self.close()
        deadline = time.monotonic() + seconds
        while True:
            try:
                self._open()
            except DeviceError:
                if time.monotonic() > deadline:
                    return False
                time.sleep(1)
            else:
                return True

    def close(self) -> None:
        """Hang up. May be called twice."""
        self._end()

    def _open(self) -> None:
        _sweep()
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=_SOCKETS))
        self._socket = folder / "s"
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (open as long as the connection is)
        arguments = ["ssh", *(("-F", str(self._config)) if self._config else ())]
        for option in (*_OPTIONS, f"ControlPath={self._socket}"):
            arguments += ["-o", option]
        arguments += [*(("-p", self._address.port) if self._address.port else ()), "-T", "-a", "-x"]
        try:
            self._process = subprocess.Popen(  # noqa: S603 (a list of arguments; the address is checked, and stands after --)
                [*arguments, "--", self._address.destination, _WAIT],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                start_new_session=True,
            )
        except OSError as error:
            self._log.close()
            shutil.rmtree(folder, ignore_errors=True)
            raise InstallationError(
                f"cannot start ssh: {error.strerror or error}", "apt-get install -y openssh-client"
            ) from error
        self._end = weakref.finalize(self, _hang_up, self._process, folder, self._log, self.client("-O", "exit"))
        try:
            self._wait()
        except BaseException:
            self.close()
            raise

    def _wait(self) -> None:
        """Until the server has let us in."""
        stream = self._process.stdout
        assert stream is not None  # noqa: S101 (a pipe)
        heard, deadline = b"", time.monotonic() + _LOGIN
        while not heard.endswith(_READY):
            if not select.select([stream], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise self._refusal(f"{self._shown} does not let us in", f"no answer for {_LOGIN} s: timed out")
            block = os.read(stream.fileno(), 1 << 12)
            if not block:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(_CONNECT)
                words = last_lines(self._log, 2) or last_words(heard.decode(errors="replace"), 2)
                raise self._refusal(f"cannot connect to {self._shown}", words)
            heard = (heard + block)[-1024:]

    def _refusal(self, what: str, words: str) -> DeviceError:
        all_words = words
        if not self._log.closed:  # by a connection that was given up
            self._log.seek(0)
            all_words += "\n" + self._log.read(1 << 16).decode(errors="replace")
        hint = next((hint for said, hint in _HINTS if re.search(said, all_words, re.IGNORECASE)), "ssh {shown} shows more")
        return DeviceError(
            f"{what}: {words}" if words else what, hint.format(host=self._address.host, shown=self._address.destination)
        )


def _sweep() -> None:
    """Remove folders whose process was killed: ssh takes its socket along, and what is not empty is in use."""
    for folder in _SOCKETS.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):  # not empty, or another user's
            if time.time() - folder.lstat().st_mtime > _STALE:
                folder.rmdir()


def _hang_up(process: subprocess.Popen[bytes], folder: Path, log: IO[bytes], farewell: list[str]) -> None:
    if process.poll() is None:
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            subprocess.run(  # noqa: S603 (a list of arguments of ours)
                farewell, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=5, check=False
            )
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(2)
    end(process)
    log.close()
    shutil.rmtree(folder, ignore_errors=True)
