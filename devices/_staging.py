"""A job's folder, made here and brought to a device: what runs, what it reads, and the commands that start it."""

import os
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path

from edge_sd.bundle import Bundle
from edge_sd.bundle.manifest import GOLDEN, LAYOUT, NCHW, PLAN, WEIGHTS, Program
from edge_sd.devices._agent import EVIDENCE as EVIDENCE
from edge_sd.devices._agent import JOB as JOB
from edge_sd.devices._agent import RESULT as RESULT
from edge_sd.devices._job import Job
from edge_sd.devices._measuring import Limits
from edge_sd.diffusion.noise import NAME
from edge_sd.errors import EdgeSDError, UsageError
from edge_sd.files import explained, write_model, write_text
from edge_sd.runtimes import _native as native
from edge_sd.runtimes.evidence import EvidenceHeader
from edge_sd.runtimes.executorch_runner import ExecuTorchRunner, runnable
from edge_sd.runtimes.onnxruntime import OnnxRuntime
from edge_sd.validation import Record

# A board's Python, unless its own environment names another (that of a virtual environment, say).
_PYTHON = '"${EDGE_SD_PYTHON:-python3}"'
# What it is asked. A constant, and silent.
HAS_ONNXRUNTIME = f"ORT_DISABLE_TELEMETRY=1 {_PYTHON} -c 'import numpy, onnxruntime' > /dev/null 2>&1"
RUNNER, ONNXRUNTIME = ExecuTorchRunner.name, OnnxRuntime.name
_AGENT = "agent.pyz"
_PLAIN = re.compile(r"[A-Za-z0-9._:/-]+")
_PACKAGE = Path(__file__).parent
# Of ours, what the agent needs: these import NumPy alone.
_ALONG = {
    "edge_sd/diffusion/noise.py": "edge_sd.diffusion.noise",
    "edge_sd/diffusion/execute.py": "edge_sd.diffusion.execute",
    "edge_sd/devices/_measuring.py": "edge_sd.devices._measuring",
}


class Part(Record):
    """A program's file in the job's folder, and whether ONNX Runtime is to leave its maps as they lie."""

    file: str
    nchw: bool


class Description(Record):
    """job.json as the agent reads it; see `_agent.Work`."""

    threads: int
    programs: tuple[Part, ...]
    decoder: Part | None
    temporal: Part | None
    labels: tuple[int, ...]
    seed: int
    history: int
    header: EvidenceHeader
    limits: dict[str, int | float]


@dataclass(frozen=True)
class Command:
    """What is started in a job's folder.

    Attributes:
        words: constants, numbers, and names of files in the folder that are ours: none needs a shell's quotes.
        output: the file there that takes its standard output; empty: it goes nowhere.
    """

    words: tuple[str, ...]
    output: str = ""

    @property
    def script(self) -> str:
        """For a shell whose current folder is the job's."""
        plain = [*self.words, self.output] if self.output else self.words
        if wrong := [word for word in plain if not _PLAIN.fullmatch(word)]:
            raise EdgeSDError(f"{wrong[0]!r} is no word for a device's shell", "export the bundle again")
        first = _PYTHON if self.words[0] == "python3" else self.words[0]
        return " ".join((first, *self.words[1:])) + (f" > {self.output}" if self.output else "")


def limits_of(job: Job) -> Limits:
    """The part of a job that says how much is timed."""
    return Limits(**{name: getattr(job, name) for name in Limits._fields})


def stage(bundle: Bundle, job: Job, machine: str, folder: Path) -> tuple[Command, ...]:
    """Fill a folder with a job for a device.

    Args:
        machine: the device's architecture, as `uname -m` names it.

    Returns:
        What is to be run in it, one after the other.

    Raises:
        UsageError: no such runtime there.
        InstallationError: the runner cannot be built.
        EdgeSDError: the bundle has no program for the runtime.
    """
    with explained(folder):
        folder.mkdir(parents=True)
        for name in (PLAN, GOLDEN):
            _link(bundle.path / name, folder / name)
    makers = {RUNNER: _stage_runner, ONNXRUNTIME: _stage_agent}
    if job.runtime not in makers:
        raise UsageError(
            f"runtime {job.runtime!r} does not run on a device that is reached by a shell", f"one of {', '.join(makers)}"
        )
    return makers[job.runtime](bundle, job, machine, folder)


def _stage_runner(bundle: Bundle, job: Job, machine: str, folder: Path) -> tuple[Command, ...]:
    start = native.assemble(native.machine_of(machine), folder)
    files: dict[str, str] = {}  # of the bundle → in the folder: several programs may be methods of one file

    def method(name: str) -> str:
        program = runnable(bundle, name)
        if program.file not in files:
            files[program.file] = f"program{len(files)}.pte"
            _link(bundle.path / program.file, folder / files[program.file])
        return f"{files[program.file]}:{program.entry}"

    shared = ["--plan", PLAN, "--golden", GOLDEN, "--seed", str(bundle.golden.header.seed), "--threads", str(job.threads)]
    for name in bundle.plan.header.programs:
        shared += ["--program", method(name)]
    if _has(bundle, "decoder"):
        shared += ["--decoder", method("decoder")]
    commands = []
    if job.prove:
        version = native.tools_available(native.machine_of(machine), to_run=False).detail
        write_text(folder / "header.json", _header(bundle, job, f"{version}, C++ runner").model_dump_json())
        words = [*start, "prove", *shared, "--header-file", "header.json", "--output", EVIDENCE, "--watch", "1"]
        if _has(bundle, "temporal"):
            words += ["--temporal", method("temporal")]
            for label in bundle.golden.header.labels:
                words += ["--label", str(label)]
        commands.append(Command(tuple(words), "proof.json"))
    if job.iterations:
        limits = [
            word for name, value in limits_of(job)._asdict().items() for word in (f"--{name.replace('_', '-')}", _number(value))
        ]
        commands.append(Command((*start, "measure", *shared, *limits, "--watch", "1"), RESULT))
    return tuple(commands)


def _stage_agent(bundle: Bundle, job: Job, machine: str, folder: Path) -> tuple[Command, ...]:
    parts: dict[str, Part] = {}

    def part(name: str) -> Part:
        program = bundle.program("onnx", name)
        if program.file not in parts:
            parts[program.file] = Part(file=f"program{len(parts)}.onnx", nchw=_nchw(program))
            _link(bundle.path / program.file, folder / parts[program.file].file)
            beside = [file for file in bundle.manifest.files if file.startswith(f"{program.file}.")]
            if beside:
                raise EdgeSDError(
                    f"{bundle.path}: {program.file} keeps its weights in {beside[0]}, which does not travel yet",
                    "use the runtime executorch-runner on this device",
                )
        return parts[program.file]

    if WEIGHTS in bundle.manifest.files:
        _link(bundle.path / WEIGHTS, folder / WEIGHTS)
    description = Description(
        threads=job.threads,
        programs=tuple(part(name) for name in bundle.plan.header.programs),
        decoder=part("decoder") if _has(bundle, "decoder") else None,
        temporal=part("temporal") if _has(bundle, "temporal") else None,
        labels=bundle.golden.header.labels,
        seed=bundle.golden.header.seed,
        history=bundle.plan.header.history,
        header=_header(bundle, job),
        limits=limits_of(job)._asdict(),
    )
    write_model(folder / JOB, description)
    _pack_agent(folder / _AGENT)
    modes = [mode for mode, wanted in (("prove", job.prove), ("measure", job.iterations)) if wanted]
    return tuple(Command(("python3", _AGENT, mode)) for mode in modes)


def _pack_agent(path: Path) -> None:
    """The agent and the modules that it imports, as one file that Python runs; packages are empty there."""
    from importlib.util import find_spec

    with explained(path), zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("__main__.py", (_PACKAGE / "_agent.py").read_bytes())
        for package in ("edge_sd", "edge_sd/diffusion", "edge_sd/devices"):
            archive.writestr(f"{package}/__init__.py", "")
        for name, module in _ALONG.items():
            spec = find_spec(module)
            archive.writestr(name, Path(str(spec and spec.origin)).read_bytes())


def _number(value: float) -> str:
    """As the runner reads it; truth is 0 or 1."""
    return str(int(value)) if value == int(value) else f"{value:f}"


def _header(bundle: Bundle, job: Job, version: str = "") -> EvidenceHeader:
    digest, seed = bundle.manifest.digest, bundle.golden.header.seed
    return EvidenceHeader(bundle_digest=digest, runtime=job.runtime, runtime_version=version, seed=seed, noise=NAME)


def _has(bundle: Bundle, program: str) -> bool:
    return any(contract.program == program for contract in bundle.manifest.contracts)


def _nchw(program: Program) -> bool:
    return program.options.get(LAYOUT) == NCHW


def _link(source: Path, target: Path) -> None:
    """The same bytes under another name: a hard link where the file system gives one."""
    with explained(target):
        try:
            os.link(source, target)
        except OSError:
            target.write_bytes(source.read_bytes())
