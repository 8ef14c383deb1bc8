"""Programs in a child process: what kills it is an error here, in words, and not the end of this process.

The child reads requests from its standard input and answers on its standard output (`_frames.py`); what it prints on standard
error goes to a temporary file, whose last lines are in the error where it dies. It never outlives its session: it is killed
when the session is closed, collected, or the interpreter ends, and where this process is killed itself, its input ends and
Linux tells it so (PR_SET_PDEATHSIG, in the child).
"""

import contextlib
import re
import signal
import subprocess
import sys
import tempfile
import weakref
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import IO, Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from edge_sd.bundle import Bundle
from edge_sd.bundle.contract import Contract
from edge_sd.errors import DeviceError, EdgeSDError, InstallationError, ParityError, UsageError
from edge_sd.runnable import Session
from edge_sd.runtimes._frames import DTYPES, BrokenFrameError, Fault, Ready, Signature, encode_request, read_response
from edge_sd.runtimes._runtime import Runtime, load_programs

# By exit code, so that an error is the same on both sides.
ERRORS = {int(kind.code): kind for kind in (EdgeSDError, UsageError, ParityError, DeviceError, InstallationError)}
# ExecuTorch's notices on its way to work, and the runner's progress.
_CHATTER = re.compile(r"[DI] \d\d:\d\d:\d\d\.|\[\w+\.cpp:\d+\]|Error in cpuinfo|step \d+ of \d+$")
_KILLED = -9  # SIGKILL, which Windows has no name for
_MEMORY = "free some memory, or take a smaller model; edge-sd inspect forecasts what a bundle needs"


class ChildSession(Session):
    """Programs that a child process runs.

    Args:
        arguments: what to start.
        runtime: its name, for errors.
        files: of the programs, for errors.
        contracts: of the programs, in the order in which the child numbers them; `select` chooses among them.

    Raises:
        InstallationError: there is nothing to start.
        EdgeSDError: the child refuses a program, dies, or has loaded one that does not keep its contract.
    """

    def __init__(self, arguments: Sequence[str], *, runtime: str, files: str, contracts: Sequence[Contract]) -> None:
        self._runtime, self._files, self._chosen = runtime, files, 0
        self.sample_shape = contracts[0].inputs[0].shape[1:]
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (open as long as the child runs)
        try:
            self._process = subprocess.Popen(  # noqa: S603 (our own runner or worker, a list of arguments)
                list(arguments), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log
            )
        except OSError as error:
            self._log.close()
            raise InstallationError(
                f"{runtime}: cannot start {arguments[0]}: {error.strerror or error}", "edge-sd doctor"
            ) from error
        self._end = weakref.finalize(self, _end, self._process, self._log)
        try:
            ready = self._exchange(b"")
            if not isinstance(ready, Ready):
                raise BrokenFrameError(f"{runtime}: the process that was to run {files} began with an answer", "edge-sd doctor")
            _check_contracts(runtime, ready, contracts)
        except BaseException:
            self.close()
            raise

    @property
    def process_id(self) -> int:
        """Of the child."""
        return self._process.pid

    def select(self, program: int) -> None:
        self._chosen = program

    def __call__(self, *inputs: NDArray[Any]) -> NDArray[np.float32]:
        answer = self._exchange(encode_request(self._chosen, inputs))
        if isinstance(answer, Ready):
            self.close()
            raise BrokenFrameError(f"{self._runtime}: the process that runs {self._files} did not answer", "edge-sd doctor")
        return answer

    def close(self) -> None:
        """End the child; the session is of no use afterwards."""
        self._end()

    def _exchange(self, request: bytes) -> NDArray[np.float32] | Ready:
        """Send a request and wait for the response. A child whose frames are out of step is ended."""
        if not self._end.alive:
            raise EdgeSDError(f"{self._runtime}: the process that ran {self._files} has ended", "load the bundle again")
        requests, responses = cast(BinaryIO, self._process.stdin), cast(BinaryIO, self._process.stdout)  # both are pipes
        try:
            requests.write(request)
            requests.flush()
            response = read_response(responses)
        except (BrokenFrameError, OSError) as error:
            raise self._ended(error) from error
        except BaseException:
            self.close()
            raise
        if isinstance(response, Fault):
            raise ERRORS.get(response.code, EdgeSDError)(response.message, response.hint)
        return response

    def _ended(self, error: Exception) -> EdgeSDError:
        """What to say of a child that does not answer."""
        try:
            status: int | None = self._process.wait(2)
        except subprocess.TimeoutExpired:  # it closed its output, or spoke nonsense, and goes on
            status = None
        said = last_lines(self._log)
        self.close()
        what = f"stopped making sense ({error})" if status is None else ending(status)
        message = f"{self._runtime}: the process that ran {self._files} {what}" + (f"; it last said: {said}" if said else "")
        return EdgeSDError(message, _MEMORY if status == _KILLED else "edge-sd parity shows which programs run; edge-sd doctor")


def ending(status: int) -> str:
    """An exit status in words."""
    if status >= 0:
        return f"ended with exit code {status}"
    name = signal.Signals(-status).name if -status in set(signal.Signals) else f"signal {-status}"
    return f"was killed by {name}" + (", most likely out of memory" if status == _KILLED else "")


def last_lines(log: IO[bytes], count: int = 3) -> str:
    """The last lines of what a process printed, notices left out, as one."""
    log.seek(0, 2)
    log.seek(max(0, log.tell() - 8192))
    return last_words(log.read().decode(errors="replace"), count)


def last_words(text: str, count: int = 3) -> str:
    """The last lines of a text, notices left out, as one."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and not _CHATTER.match(line)]
    return " / ".join(lines[-count:])


def _end(process: subprocess.Popen[bytes], log: IO[bytes]) -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(OSError):  # of a request that was cut off
                stream.close()
    log.close()


def _check_contracts(runtime: str, ready: Ready, contracts: Sequence[Contract]) -> None:
    """The programs' inputs and outputs must be the manifest's."""
    wanted, found = [signature_of(contract) for contract in contracts], list(ready.programs)
    if wanted != found:
        ours, theirs = next((pair for pair in zip(wanted, found, strict=False) if pair[0] != pair[1]), (wanted, found))
        raise EdgeSDError(
            f"the program of {runtime} has {_shown(theirs)}, its contract says {_shown(ours)}", "export the bundle again"
        )


def _shown(signature: Signature | list[Signature]) -> str:
    if isinstance(signature, list):
        return f"{len(signature)} programs"
    inputs, outputs = (
        ", ".join(f"{DTYPES.get(code, code)} {shape}" for code, shape in side) for side in (signature.inputs, signature.outputs)
    )
    return f"{inputs} → {outputs}"


def signature_of(contract: Contract) -> Signature:
    """What a program says of itself that keeps a contract."""
    codes = {name: code for code, name in DTYPES.items()}
    inputs, outputs = (tuple((codes[spec.dtype], spec.shape) for spec in side) for side in (contract.inputs, contract.outputs))
    return Signature(inputs=inputs, outputs=outputs)


# Any runtime in a child


class LoadsTogether(ABC):
    """A runtime that loads several programs into one child by itself."""

    @abstractmethod
    def load_together(self, bundle: Bundle, threads: int | None, programs: Sequence[str]) -> Session:
        """Load several of a bundle's programs; `Session.select` takes an index into `programs`."""


# What `-c` runs: this process's own search path, as multiprocessing's children have it, and not the current folder.
_START = "import sys; sys.path[:] = {path!r}; from edge_sd.runtimes._worker import main; sys.exit(main(sys.argv[1:]))"


def isolated(runtime: Runtime, bundle: Bundle, threads: int | None = None, programs: Sequence[str] = ("denoiser",)) -> Session:
    """Load programs where nothing they do ends this process: native runtimes in a child, the others here.

    Args:
        programs: `Session.select` takes an index into them.

    Raises:
        EdgeSDError: as `Runtime.load` raises it, in the child or here; or the child died.
    """
    if isinstance(runtime, LoadsTogether):
        return runtime.load_together(bundle, threads, programs)
    if not runtime.native:
        return load_programs(runtime, bundle, threads, programs)
    files = dict.fromkeys(str(bundle.path / bundle.program(runtime.target, name).file) for name in programs)
    arguments = [sys.executable, "-c", _START.format(path=sys.path), str(bundle.path.absolute()), runtime.name, *programs]
    return ChildSession(
        arguments if threads is None else [*arguments, "--threads", str(threads)],
        runtime=runtime.name,
        files=", ".join(files),
        contracts=[bundle.manifest.contract(name) for name in programs],
    )
