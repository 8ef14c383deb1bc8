"""A Linux board or machine with an ssh server: commands and files by OpenSSH's own client.

The user's ssh configuration, agent and known hosts are honoured as they stand; EDGE_SD_SSH_CONFIG names another configuration
file in their place (ssh's `-F`).
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

from edge_sd.devices._device import Connection, Device, Observe, unobserved
from edge_sd.devices._process import Done, listen
from edge_sd.devices._remote import PATIENCE, RemoteConnection, Transport
from edge_sd.devices._ssh import LABEL, SshLink
from edge_sd.errors import DeviceError, UsageError
from edge_sd.files import write_bytes
from edge_sd.runnable import Availability
from edge_sd.runtimes._child import last_words

CONFIG = "EDGE_SD_SSH_CONFIG"
_REMEDY = "apt-get install -y openssh-client"
# Bytes a second below which a copy that prints nothing is given up; a link that is dead is noticed long before.
_SLOWEST = 2**16
_BACK = 10.0  # seconds in which a device may come back
_NAME = re.compile(r"/[A-Za-z0-9._/-]*", re.ASCII)
# Printed before and after a script's own output: the shell's greetings are told from its words, and its status from ssh's. A
# process that is killed by a signal would otherwise look like a connection that broke: ssh says 255 of both.
_BEGIN, _END = b"edge-sd begin\n", re.compile(r"edge-sd end (\d{1,3})")
_WRAPPED = "echo edge-sd begin; ({script}\n); s=$?; printf '\\nedge-sd end %d\\n' $s >&2; exit $s"
# The first folder in which a program can be written and run; then which programs for copying there are.
_FIND_BASE = r"""
for folder in /tmp "$HOME/.cache"; do
  mkdir -p "$folder" 2> /dev/null
  try=$(mktemp -d "$folder/edge-sd-XXXXXXXX" 2> /dev/null) || continue
  printf '#!/bin/sh\necho runs\n' > "$try/try" && chmod 700 "$try/try" && found=$("$try/try" 2> /dev/null)
  rm -rf "$try"
  [ "$found" = runs ] && printf '%s\n' "$folder" && break
done
[ "$found" = runs ] || exit 1
command -v rsync > /dev/null 2>&1 && echo rsync
exit 0
"""
# Of a way to copy that one of the two ends lacks.
_NOT_THERE = re.compile(
    r"subsystem request failed|(unknown|unrecognized|illegal|invalid) option|command not found|rsync: not found|"
    r"protocol version mismatch|scp: connection closed",
    re.IGNORECASE,
)


class SshTransport(Transport):
    """Files and commands by ssh.

    Args:
        address: USER@HOST:PORT; user and port may be left out, and HOST may be a name of ssh's configuration.
        config: file for ssh's `-F`, in place of the user's own configuration.
        kind, shown: what the device is called; ssh and the address, if left out.
        emulated: its processor is imitated.
        base: the folder for jobs, see `Transport`; looked for, if left out.

    Raises:
        UsageError: no such address can be.
        InstallationError: there is no ssh here.
        DeviceError: nobody answers there, or we are not let in, or no folder there lets programs run.
    """

    def __init__(
        self,
        address: str,
        *,
        config: Path | None = None,
        kind: str = "ssh",
        shown: str | None = None,
        emulated: bool = False,
        base: str | None = None,
    ) -> None:
        self.kind, self.address, self.emulated = kind, address if shown is None else shown, emulated
        self._link = SshLink(address, config)
        try:
            self.base, self._rsync = self._look_around()
        except BaseException:
            self._link.close()
            raise
        self.base = base or self.base

    def shell(self, script: str, *, patience: float = PATIENCE, on_line: Callable[[str], None] = lambda line: None) -> Done:
        return self._ask(script, patience, on_line)

    def push(self, local: Path, remote: str, observe: Observe = unobserved) -> None:
        _check_name(remote)
        sizes = [file.stat().st_size for file in local.rglob("*") if file.is_file()]
        total = sum(sizes)
        patience = self.patience + total / _SLOWEST
        observe(0, total, "copying")
        for copy in (self._push_rsync, self._push_sftp, self._push_tar):
            done = copy(local, remote, patience)
            if done is not None and done.status == 0:
                observe(total, total, "")
                return
            if done is not None and not (self._link.alive and _NOT_THERE.search(done.err)):
                raise self._not_copied(done, remote, total)
        raise DeviceError(f"{self._title} takes no files: it has neither rsync nor sftp nor tar", "install one of them there")

    def pull(self, remote: str, local: Path) -> None:
        _check_name(remote)
        done = self.shell(f"cat {remote}")
        if done.status:
            words = last_words(done.err) or f"exit code {done.status}"
            raise DeviceError(f"{self._title} does not give {remote}: {words}", "did the job write it?")
        write_bytes(local, done.out)

    def reconnect(self) -> bool:
        return self._link.reopen(_BACK)

    def close(self) -> None:
        self._link.close()

    @property
    def _title(self) -> str:
        return f"{self.kind}:{self.address}" if self.address else self.kind

    def _ask(
        self, script: str, patience: float, on_line: Callable[[str], None] = lambda line: None, source: IO[bytes] | None = None
    ) -> Done:
        """Run a script by the device's sh, whatever the login shell is, and tell its status from ssh's own."""

        def on_own_line(line: str) -> None:
            if line and not _END.fullmatch(line):
                on_line(line)

        command = f"exec sh -c {shlex.quote(_WRAPPED.format(script=script))}"
        done = listen([*self._link.client(), command], patience=patience, on_line=on_own_line, source=source)
        lines = done.err.splitlines()
        ends = [(index, int(match[1])) for index, line in enumerate(lines) if (match := _END.fullmatch(line))]
        words = "\n".join(line for line in lines if not _END.fullmatch(line)).strip()
        if not ends or ends[-1][1] != done.status:
            raise self._link.lost(last_words(words, 1) or f"ssh ended with exit code {done.status}")
        return Done(done.status, done.out.partition(_BEGIN)[2], words)

    def _look_around(self) -> tuple[str, bool]:
        """The folder for jobs, and whether there is rsync."""
        done = self._ask(_FIND_BASE, PATIENCE)
        base, *rest = done.text.splitlines() or [""]
        if done.status or not base.startswith("/") or not _NAME.fullmatch(base):
            raise DeviceError(
                f"{self._title}: programs can be run neither in /tmp nor in ~/.cache" + (f" ({base!r})" if base else ""),
                "is its disk full, or mounted noexec?",
            )
        return base, "rsync" in rest

    # Three ways to copy; None where this end lacks what it takes

    def _push_rsync(self, local: Path, remote: str, patience: float) -> Done | None:
        if not self._rsync or shutil.which("rsync") is None:
            return None
        through = ["--whole-file", "-rpL", "-e", " ".join(["ssh", *self._link.options])]
        return listen(["rsync", *through, "--", f"{local.absolute()}/", f"{LABEL}:{remote}/"], patience=patience)

    def _push_sftp(self, local: Path, remote: str, patience: float) -> Done | None:
        if shutil.which("scp") is None:
            return None
        through = ["-s", "-r", "-p", "-q", *self._link.options]  # -s: by sftp, where no shell of the device reads the names
        return listen(["scp", *through, "--", f"{local.absolute()}/.", f"{LABEL}:{remote}/"], patience=patience)

    def _push_tar(self, local: Path, remote: str, patience: float) -> Done:
        with tempfile.TemporaryFile() as packed:
            with tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT, dereference=True) as archive:
                archive.add(local, ".")
            packed.seek(0)
            return self._ask(f"tar -xof - -C {remote}", patience, source=packed)

    def _not_copied(self, done: Done, remote: str, total: int) -> DeviceError:
        """What to say of a copy that failed; sftp has no word of its own for a full disk."""
        words = last_words(done.err) or f"exit code {done.status}"
        if not self._link.alive:
            return self._link.lost(words)
        room = self._ask(f"df -Pk {remote}", PATIENCE).text.split()
        free = int(room[-3]) * 1024 if len(room) > 6 and room[-3].isdecimal() else total
        if free < total and "no space" not in words.lower():
            words = f"no space left on device ({words})"
        return DeviceError(
            f"{self._title} did not take {total / 2**20:.1f} MiB: {words}", "is there room, and may we write there?"
        )


class Ssh(Device):
    """Linux boards and machines."""

    name = "ssh"
    about = f"a Linux board or machine, by OpenSSH with the user's own configuration, or the file that {CONFIG} names"
    address = "USER@HOST"

    def available(self) -> Availability:
        if sys.platform == "win32":
            return Availability(False, "ssh of Windows cannot share one connection", "use it in WSL")
        if shutil.which("ssh") is None:
            return Availability(False, "ssh is not installed", _REMEDY)
        asked = subprocess.run(["ssh", "-V"], capture_output=True, text=True, timeout=10, check=False)  # noqa: S607 (found above)
        version = asked.stderr.strip()
        return Availability("OpenSSH" in version, version if "OpenSSH" in version else f"ssh is not OpenSSH: {version}", _REMEDY)

    def open(self, address: str) -> Connection:
        return RemoteConnection(SshTransport(address, config=_config()))


def _config() -> Path | None:
    name = os.environ.get(CONFIG, "")
    if name and not Path(name).is_file():
        raise UsageError(f"{CONFIG} names {name!r}, which is no file", f"unset {CONFIG}")
    return Path(name).absolute() if name else None


def _check_name(remote: str) -> None:
    if not _NAME.fullmatch(remote):
        raise ValueError(f"{remote!r} is no name of ours on a device")
