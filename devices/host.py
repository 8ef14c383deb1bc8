"""This machine: the job runs in a process of its own, on the processors and in the memory that it is given."""

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import psutil

from edge_sd.bundle import Bundle
from edge_sd.devices import _staging as staging
from edge_sd.devices._cgroup import memory_limit
from edge_sd.devices._device import Connection, Device, Observe, unobserved
from edge_sd.devices._fingerprint import DeviceInfo
from edge_sd.devices._job import Job, Measurement, Outcome
from edge_sd.devices._probe import SCRIPT, read_probe
from edge_sd.devices._process import Done, listen
from edge_sd.devices._remote import progress_of
from edge_sd.errors import DeviceError, EdgeSDError
from edge_sd.files import parse_model, read_model, write_model
from edge_sd.runnable import Availability
from edge_sd.runtimes import find_runtime, runtimes
from edge_sd.runtimes._child import ERRORS, ending, last_words
from edge_sd.runtimes._frames import Fault
from edge_sd.runtimes.evidence import load_evidence
from edge_sd.runtimes.executorch_runner import NativeRunner

# What `-c` runs: this process's own search path, as multiprocessing's children have it, and not the current folder.
_START = "import sys; sys.path[:] = {path!r}; from edge_sd.devices._work import main; sys.exit(main(*sys.argv[1:]))"
_KILLED = (-9, 137)


class Host(Device):
    """The machine that edge-sd runs on."""

    name = "host"
    about = "this machine, in a process of its own"
    shares_host = True

    def available(self) -> Availability:
        return Availability(True, f"{psutil.cpu_count()} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB")

    def open(self, address: str) -> Connection:
        return HostConnection()


class HostConnection(Connection):
    """Jobs in child processes; what they read and write is a temporary folder."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="edge-sd-")
        self._pushed: tuple[Bundle, Job] | None = None

    def info(self) -> DeviceInfo:
        return describe_host()

    def runtimes(self, bundle: Bundle) -> tuple[str, ...]:
        targets = {program.target for program in bundle.manifest.programs}
        found = [each for each in runtimes().values() if each.target in targets and each.available().ok]
        return tuple(each.name for each in sorted(found, key=lambda each: (each.emulated or each.evaluates, each.name)))

    def push(self, bundle: Bundle, job: Job, observe: Observe = unobserved) -> None:
        find_runtime(job.runtime)
        most = psutil.cpu_count() or 1
        if job.processors and (max(job.processors) >= most or not shutil.which("taskset")):
            raise DeviceError(f"no job can be pinned to processors {job.processors} here", f"there are {most}, from 0 on (Linux)")
        self._pushed = bundle, job
        write_model(self._place(staging.JOB), job)

    def run(self, observe: Observe = unobserved) -> None:
        bundle, job = self._work
        with memory_limit(job.memory_mib) as prefix:
            before = [*prefix, *(["taskset", "-c", ",".join(map(str, job.processors))] if job.processors else [])]
            if job.prove:
                self._do([*before, *self._python("prove")], observe)
            if job.iterations and isinstance(runner := find_runtime(job.runtime), NativeRunner):
                staged = Path(tempfile.mkdtemp(dir=self._folder.name)) / "job"
                alone = job.model_copy(update={"prove": False, "runtime": staging.RUNNER})
                (command,) = staging.stage(bundle, alone, runner.machine.architecture, staged)
                done = self._do([*before, *runner.machine.emulator, *command.words], observe, staged)
                self._place(command.output).write_bytes(done.out)
            elif job.iterations:
                self._do([*before, *self._python("measure")], observe)

    def pull(self) -> Outcome:
        bundle, job = self._work
        measurement = read_model(Measurement, self._place(staging.RESULT)) if job.iterations else None
        if not job.prove:
            return Outcome(measurement, None)
        header, evidence = load_evidence(self._place(staging.EVIDENCE), bundle)
        return Outcome(measurement, evidence, header.runtime_version)

    def close(self) -> None:
        self._folder.cleanup()

    @property
    def _work(self) -> tuple[Bundle, Job]:
        assert self._pushed is not None, "push comes first"  # noqa: S101
        return self._pushed

    def _place(self, name: str) -> Path:
        return Path(self._folder.name) / name

    def _python(self, mode: str) -> list[str]:
        bundle, _ = self._work
        return [sys.executable, "-c", _START.format(path=sys.path), mode, str(bundle.path.absolute()), self._folder.name]

    def _do(self, arguments: Sequence[str], observe: Observe, folder: Path | None = None) -> Done:
        _, job = self._work
        environment = {**os.environ, "OMP_NUM_THREADS": str(job.threads), "OPENBLAS_NUM_THREADS": str(job.threads)}
        place = folder or Path(self._folder.name)
        done = listen(arguments, patience=job.patience, on_line=progress_of(observe), environment=environment, folder=place)
        if done.status:
            raise self._failed(done)
        return done

    def _failed(self, done: Done) -> EdgeSDError:
        bundle, job = self._work
        if done.text.startswith("{"):
            fault = parse_model(Fault, done.text.splitlines()[-1], "the job's process")
            return ERRORS.get(fault.code, EdgeSDError)(fault.message, fault.hint)
        words = last_words(done.err)
        what = f"the process that ran {bundle.path} in {job.runtime} died: it {ending(done.status)}"
        limit = f"; its limit was {job.memory_mib} MiB" if job.memory_mib and done.status in _KILLED else ""
        return DeviceError(
            what + limit + (f"; it last said: {words}" if words else ""), "is there memory enough? edge-sd inspect forecasts"
        )


def describe_host() -> DeviceInfo:
    """This machine's fingerprint."""
    if platform.system() == "Linux":
        done = subprocess.run(["/bin/sh", "-c", SCRIPT], capture_output=True, text=True, timeout=60, check=False)  # noqa: S603
        return read_probe(done.stdout, device=Host.name)
    processor = platform.processor() or platform.machine()
    return DeviceInfo(
        device=Host.name,
        model=processor,
        processor=processor,
        machine=platform.machine(),
        cores=psutil.cpu_count() or 1,
        memory_bytes=psutil.virtual_memory().total,
        system=f"{platform.system()} {platform.release()}",
    )
