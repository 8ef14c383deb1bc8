"""A device with a POSIX shell and a folder of its own: what ssh, adb and the emulator share.

A job there is a folder `edge-sd-` and eight digits that holds what runs (the C++ runner with its libraries, or the Python agent),
the bundle's plan, goldens and programs, and the answers. Names in it are ours: nothing that a person or a file chose is ever part
of a command. The job's process watches its standard input, and ends when that does: a pulled cable leaves nothing running.
"""

import re
import secrets
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from edge_sd.bundle import Bundle
from edge_sd.devices import _staging as staging
from edge_sd.devices._device import Connection, Observe, unobserved
from edge_sd.devices._fingerprint import DeviceInfo
from edge_sd.devices._job import Job, Measurement, Outcome
from edge_sd.devices._probe import SCRIPT, read_probe
from edge_sd.devices._process import Done
from edge_sd.errors import DeviceError, EdgeSDError
from edge_sd.files import parse_model, sha256
from edge_sd.runtimes._child import last_words
from edge_sd.runtimes.evidence import load_evidence

PATIENCE = 120.0  # seconds without a word
_IMITATED = 5  # how many times longer an imitated processor may be silent: Python alone takes a minute of it on a busy machine
_PLAIN = re.compile(r"/[A-Za-z0-9._/-]+")
_STEP = re.compile(r"step (\d+) of (\d+)")
_NO_SPACE = re.compile(r"no space left|disk quota|not enough space|ENOSPC", re.IGNORECASE)
# Left by jobs whose device vanished: older than any job that still runs (it writes into its folder's files as it goes).
_SWEEP = "find {base} -maxdepth 1 -name 'edge-sd-????????' -user $(id -un) -mmin +1500 -exec rm -rf {{}} + 2>/dev/null; :"


class Transport(ABC):
    """Files and commands on a device with a POSIX shell.

    Attributes:
        kind: the device's name, see `Device.name`.
        address: which one.
        base: an absolute folder of the device that may be written to and holds programs that may run; letters, digits, ._/- only.
        emulated: its processor is imitated.
        patience: seconds without a word after which a copy is given up.
    """

    kind: str
    address: str
    base: str
    emulated: bool = False
    patience: float = PATIENCE

    @abstractmethod
    def shell(self, script: str, *, patience: float = PATIENCE, on_line: Callable[[str], None] = lambda line: None) -> Done:
        """Run a script of the device's own shell (sh) to its end.

        Args:
            script: constant text and names of ours, never anything that a person or a file chose.

        Raises:
            DeviceError: the device is gone or fell silent. A script that fails is no error here: see `Done.status`.
        """

    @abstractmethod
    def push(self, local: Path, remote: str, observe: Observe = unobserved) -> None:
        """Copy what is in a local folder into a folder that exists on the device.

        Raises:
            DeviceError: the device is gone, or has no room.
        """

    @abstractmethod
    def pull(self, remote: str, local: Path) -> None:
        """Copy one file of the device to a local path.

        Raises:
            DeviceError: the device is gone, or there is no such file.
        """

    def reconnect(self) -> bool:
        """Wait a few seconds for a device that went away, so that it can be cleaned up; whether it is back."""
        return True

    def close(self) -> None:  # noqa: B027 (most have nothing to close)
        """Let go of the device. Never raises."""


def progress_of(observe: Observe) -> Callable[[str], None]:
    """What to call with each line that a job prints: those that tell how far it is are told on."""

    def on_line(line: str) -> None:
        if step := _STEP.fullmatch(line.strip()):
            observe(int(step[1]), int(step[2]), "")

    return on_line


class _Pushed(NamedTuple):
    """What is on the device, and where."""

    folder: str
    bundle: Bundle
    job: Job
    commands: tuple[staging.Command, ...]


class RemoteConnection(Connection):
    """Jobs by way of a `Transport`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._pushed: _Pushed | None = None
        self._local = tempfile.TemporaryDirectory(prefix="edge-sd-")
        self._info: DeviceInfo | None = None
        self._closed = False

    def info(self) -> DeviceInfo:
        done = self._must(SCRIPT, "describe itself")
        self._info = read_probe(
            done.text, device=self._transport.kind, address=self._transport.address, emulated=self._transport.emulated
        )
        return self._info

    def runtimes(self, bundle: Bundle) -> tuple[str, ...]:
        targets = {program.target for program in bundle.manifest.programs}
        found = [staging.RUNNER] if "executorch" in targets else []
        if "onnx" in targets and self._transport.shell(staging.HAS_ONNXRUNTIME).status == 0:
            found.append(staging.ONNXRUNTIME)
        return tuple(found)

    def push(self, bundle: Bundle, job: Job, observe: Observe = unobserved) -> None:
        info = self._info or self.info()
        if job.runtime == staging.ONNXRUNTIME and self._transport.shell(staging.HAS_ONNXRUNTIME).status:
            raise DeviceError(
                f"{self.title} has no python3 with NumPy and ONNX Runtime",
                "pip install numpy onnxruntime there (EDGE_SD_PYTHON in its environment names another Python), "
                "or --runtime executorch-runner, which brings all that it needs",
            )
        self._remove()
        local = Path(tempfile.mkdtemp(dir=self._local.name)) / "job"
        commands = staging.stage(bundle, job, info.machine, local)
        base = self._transport.base
        if not _PLAIN.fullmatch(base):
            raise DeviceError(f"{self.title} keeps its files in {base!r}", "use a device whose folders have plain names")
        self._transport.patience = job.patience
        self._transport.shell(_SWEEP.format(base=base))
        # Named and noted here before it is made: whatever interrupts what follows, it is known what to remove.
        folder = f"{base}/edge-sd-{secrets.token_hex(4)}"
        self._pushed = _Pushed(folder, bundle, job, commands)
        self._must(f"mkdir -m 700 {folder}", "make a folder")
        try:
            self._transport.push(local, folder, observe)
        except DeviceError as error:
            if _NO_SPACE.search(error.message):
                mebi = sum(file.stat().st_size for file in local.rglob("*") if file.is_file()) / 2**20
                raise DeviceError(
                    f"{self.title} has no room for {mebi:.0f} MiB in {base}: {error.message}", "free some space on the device"
                ) from error
            raise
        self._check_arrival(local, folder)

    def run(self, observe: Observe = unobserved) -> None:
        pushed = self._work
        for command in pushed.commands:
            script = f"cd {pushed.folder} && exec {command.script}"
            patience = pushed.job.patience * (_IMITATED if self._transport.emulated else 1)
            done = self._transport.shell(script, patience=patience, on_line=progress_of(observe))
            if done.status:
                raise self._failed(done)

    def pull(self) -> Outcome:
        pushed, local, measurement = self._work, Path(self._local.name), None
        if pushed.job.iterations:
            self._transport.pull(f"{pushed.folder}/{staging.RESULT}", local / staging.RESULT)
            text = (local / staging.RESULT).read_bytes()
            measurement = parse_model(Measurement, text, f"{self.title}'s {staging.RESULT}")
        if not pushed.job.prove:
            return Outcome(measurement, None)
        self._transport.pull(f"{pushed.folder}/{staging.EVIDENCE}", local / staging.EVIDENCE)
        header, evidence = load_evidence(local / staging.EVIDENCE, pushed.bundle)
        return Outcome(measurement, evidence, header.runtime_version)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        try:
            with suppress(EdgeSDError):
                self._remove()
        finally:  # a second Ctrl-C too
            self._transport.close()
            self._local.cleanup()

    @property
    def title(self) -> str:
        """The device, for an error."""
        return f"{self._transport.kind}:{self._transport.address}" if self._transport.address else self._transport.kind

    @property
    def _work(self) -> "_Pushed":
        assert self._pushed is not None, "push comes first"  # noqa: S101
        return self._pushed

    def _must(self, script: str, what: str) -> Done:
        done = self._transport.shell(script)
        if done.status:
            words = last_words(done.err) or done.text[-200:] or f"exit code {done.status}"
            raise DeviceError(
                f"{self.title} cannot {what}: {words}", "is its shell a POSIX shell, and is there room on its disk?"
            )
        return done

    def _remove(self) -> None:
        """Remove the job's folder; a device that went away gets a few seconds to come back."""
        if self._pushed is None:
            return
        script, self._pushed = f"rm -rf {self._pushed.folder}", None
        for _ in range(2):
            with suppress(DeviceError):
                if self._transport.shell(script, patience=20).status == 0:
                    return
            if not self._transport.reconnect():
                return

    def _check_arrival(self, local: Path, folder: str) -> None:
        """The files on the device are those that were sent."""
        sent = {file.relative_to(local).as_posix(): sha256(file) for file in local.rglob("*") if file.is_file()}
        done = self._must(f"cd {folder} && find . -type f -exec sha256sum {{}} +", "hash what it was sent")
        lines = (line.split(maxsplit=1) for line in done.text.splitlines())
        there = {name.lstrip("*").removeprefix("./"): digest for digest, name in (pair for pair in lines if len(pair) == 2)}
        wrong = sorted(name for name, digest in sent.items() if there.get(name) != digest)
        if wrong:
            state = "is missing" if wrong[0] not in there else "differs"
            raise DeviceError(
                f"{self.title}: {wrong[0]} {state} after the copy ({len(wrong)} of {len(sent)} files)",
                "is its disk full, or the connection bad?",
            )

    def _failed(self, done: Done) -> EdgeSDError:
        """What to say of a job whose process did not end well: its own words, or the device's."""
        words = last_words(done.err)
        said = f"; it last said: {words}" if words else ""
        if done.status in (137, -9):  # as a shell says it, and as a process does
            return DeviceError(
                f"{self.title}: the job was killed (SIGKILL){said}",
                "most likely out of memory: edge-sd inspect forecasts what a bundle needs",
            )
        if done.status in (126, 127):
            return DeviceError(
                f"{self.title} cannot start the job in {self._transport.base}{said}", "may programs be run there (noexec)?"
            )
        status = done.status
        return EdgeSDError(
            f"{self.title}: the job ended with exit code {status}" + (f": {words}" if words else ""),
            "edge-sd parity on this machine shows whether the bundle is whole",
        )
