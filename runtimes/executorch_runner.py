"""ExecuTorch without Python and torch: the C++ runner, in a child process, on this machine and on emulated ARM."""

import collections
import re
import subprocess
import tempfile
from abc import abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from edge_sd.bundle import Bundle
from edge_sd.bundle.manifest import GOLDEN, PLAN, Program
from edge_sd.errors import EdgeSDError
from edge_sd.files import explained, parse_model
from edge_sd.runnable import Availability, Session
from edge_sd.runtimes._child import ChildSession, LoadsTogether, ending, last_words
from edge_sd.runtimes._native import AARCH64, HOST, Machine, command, tools_available
from edge_sd.runtimes._runtime import Runtime
from edge_sd.runtimes.evidence import Prover, header_of
from edge_sd.validation import Record

# The delegate that the runner is linked with.
_DELEGATE = "xnnpack"
_STEP = re.compile(r"step (\d+) of (\d+)")
_KEPT_LINES = 50  # of what it says, for an error


class ProofStep(Record):
    """One row of the plan; decibels are of the worst trajectory, as in `parity.StepParity`."""

    row: int
    teacher_forced_db: float
    free_running_db: float


class Proof(Record):
    """What the runner found.

    Attributes:
        load_ms: from the files on disk to loaded programs.
        calls_ms: each call of a denoiser: for each trajectory and step, from the golden's sample and in the runner's own loop.
        decoder_ms: each call of the decoder.
        peak_memory_bytes: largest resident set of the runner; where it is emulated, the emulator's.
    """

    schema_version: Literal[1] = 1
    kind: Literal["proof"] = "proof"
    trajectories: int = Field(ge=1)
    steps: tuple[ProofStep, ...]
    final_snr_db: float
    image_snr_db: float | None
    load_ms: float
    calls_ms: tuple[float, ...]
    decoder_ms: tuple[float, ...]
    peak_memory_bytes: int


class NativeRunner(Runtime, LoadsTogether, Prover):
    """The C++ runner, for one kind of machine."""

    target = "executorch"

    @property
    @abstractmethod
    def machine(self) -> Machine:
        """What the runner is built for."""

    def available(self) -> Availability:
        return tools_available(self.machine)

    def load(self, bundle: Bundle, threads: int | None = None, program: str = "denoiser") -> Session:
        return self.load_together(bundle, threads, (program,))

    def load_together(self, bundle: Bundle, threads: int | None, programs: Sequence[str]) -> Session:
        names = [_program(bundle, name) for name in programs]
        files = dict.fromkeys(str(bundle.path / bundle.program(self.target, name).file) for name in programs)
        return ChildSession(
            [*command(self.machine), "serve", *_repeated("--program", names), *_threads(threads)],
            runtime=self.name,
            files=", ".join(files),
            contracts=[bundle.manifest.contract(name) for name in programs],
        )

    def prove(
        self, bundle: Bundle, threads: int | None, output: Path, observe: Callable[[int, int], None] = lambda done, total: None
    ) -> tuple[Path, Proof]:
        """Follow the bundle's golden trajectories by the runner alone, as a device without Python does.

        Args:
            output: where the evidence goes, see `evidence.load_evidence`.

        Raises:
            EdgeSDError: the runner fails: a damaged file, a prediction that is not finite, a full disk.
            InstallationError: it cannot be built.
        """
        arguments = [
            *command(self.machine), "prove", "--plan", str(bundle.path / PLAN), "--golden", str(bundle.path / GOLDEN),
            *_repeated("--program", [_program(bundle, name) for name in bundle.plan.header.programs]),
            "--seed", str(bundle.golden.header.seed), "--header", header_of(bundle, self).model_dump_json(),
            "--output", str(output), *_threads(threads),
        ]  # fmt: skip
        known = {contract.program for contract in bundle.manifest.contracts}
        for name in ("decoder", "temporal"):
            arguments += [f"--{name}", _program(bundle, name)] if name in known else []
        arguments += _repeated("--label", [str(label) for label in bundle.golden.header.labels if "temporal" in known])
        with explained(output):
            output.parent.mkdir(parents=True, exist_ok=True)
        with (
            tempfile.TemporaryFile() as told,
            subprocess.Popen(  # noqa: S603 (our own runner)
                arguments, stdin=subprocess.DEVNULL, stdout=told, stderr=subprocess.PIPE
            ) as process,
        ):
            said: collections.deque[str] = collections.deque(maxlen=_KEPT_LINES)
            try:
                for line in process.stderr or ():
                    said.append(line.decode(errors="replace"))
                    if step := _STEP.fullmatch(said[-1].strip()):
                        observe(int(step[1]), int(step[2]))
            except BaseException:
                process.kill()
                raise
            status = process.wait()
            told.seek(0)
            proof = told.read()
        if status:
            words = last_words("".join(said))
            raise EdgeSDError(
                f"{self.name}: the proof of {bundle.path} {ending(status)}" + (f": {words}" if words else ""),
                "edge-sd inspect shows whether the bundle is whole",
            )
        return output, parse_model(Proof, proof, self.name)


class ExecuTorchRunner(NativeRunner):
    """On this machine."""

    name = "executorch-runner"
    about = "ExecuTorch, C++ runner without torch"

    @property
    def machine(self) -> Machine:
        return HOST


class ExecuTorchRunnerAarch64(NativeRunner):
    """On 64-bit ARM, emulated: its answers are ARM's, its times and its memory are the emulator's."""

    name = "executorch-runner-aarch64"
    about = "ExecuTorch, C++ runner for aarch64, emulated by qemu-user"
    emulated = True

    @property
    def machine(self) -> Machine:
        return AARCH64


def runnable(bundle: Bundle, name: str) -> Program:
    """A program that the runner runs.

    Raises:
        EdgeSDError: the bundle has no such program for ExecuTorch, or one that is lowered to another delegate.
    """
    found = bundle.program("executorch", name)
    delegate = found.options.get("delegate", "")
    if delegate != _DELEGATE:
        raise EdgeSDError(
            f"{bundle.path / found.file} is lowered to {delegate}, which does not run here", "edge-sd export --delegate xnnpack"
        )
    return found


def _program(bundle: Bundle, name: str) -> str:
    """FILE:METHOD; errors as `runnable`'s."""
    found = runnable(bundle, name)
    return f"{bundle.path / found.file}:{found.entry}"


def _threads(threads: int | None) -> list[str]:
    return [] if threads is None else ["--threads", str(threads)]


def _repeated(option: str, values: Sequence[str]) -> list[str]:
    return [word for value in values for word in (option, value)]
