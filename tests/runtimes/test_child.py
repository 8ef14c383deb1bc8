"""Programs in child processes: whatever the child does, this process gets an error in words, and no orphan is left behind."""

import gc
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest

from edge_sd.bundle import Bundle, trace
from edge_sd.bundle.contract import Contract, PlanSummary, TensorSpec
from edge_sd.checkpoint import Checkpoint, Provenance
from edge_sd.diffusion import SCHEDULES
from edge_sd.errors import EdgeSDError, ExitCode, InstallationError, UsageError
from edge_sd.evaluation import snr_db
from edge_sd.export import ExportRequest, export_bundle
from edge_sd.models.unet import SpectralUNet
from edge_sd.runtimes import find_runtime
from edge_sd.runtimes._child import ChildSession, isolated, signature_of

X = np.arange(4, dtype=np.float32).reshape(1, 1, 2, 2)
FEATURES = np.zeros((1, 3), np.float32)

# A child in Python that greets with the signature it is given and answers as `answer` says.
CHILD = """
import os, resource, signal, sys, time
from edge_sd.runtimes import _frames as frames
out = sys.stdout.buffer
def answer(program, inputs):
    return inputs[0] + program
{body}
out.write(frames.encode_ready(frames.Ready.model_validate_json(sys.argv[1])))
out.flush()
while (request := frames.read_request(sys.stdin.buffer)) is not None:
    out.write(frames.encode_answer(answer(*request)))
    out.flush()
"""


@pytest.fixture(scope="module")
def contract() -> Contract:
    """(1, 1, 2, 2) and (1, 3) to (1, 1, 2, 2)."""

    def spec(name: str, shape: tuple[int, ...]) -> TensorSpec:
        return TensorSpec(name=name, shape=shape, layout="NCHW"[: len(shape)], range=(0, 1))

    return Contract.model_construct(
        program="denoiser",
        inputs=(spec("sample", (1, 1, 2, 2)), spec("time_features", (1, 3))),
        outputs=(spec("prediction", (1, 1, 2, 2)),),
        plan=PlanSummary.model_construct(),
    )


Start = Callable[..., ChildSession]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Children of `-c` look for packages in the current folder first, and a checkout's edge_sd/ is not the installed one."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def start(contract: Contract) -> Iterator[Start]:
    """A function's body, or more → a session of a child that answers by it."""
    started: list[ChildSession] = []

    def start_(body: str = "", programs: int = 1, before: tuple[str, ...] = ()) -> ChildSession:
        ready = f'{{"programs": [{signature_of(contract).model_dump_json()}]}}'
        code = CHILD.format(body=textwrap.dedent(body))
        session = ChildSession(
            [*before, sys.executable, "-c", code, ready], runtime="fake", files="some.pte", contracts=[contract] * programs
        )
        started.append(session)
        return session

    yield start_
    for session in started:
        session.close()


def test_it_runs_what_the_child_runs(start: Start) -> None:
    session = start()
    assert session.sample_shape == (1, 2, 2)
    np.testing.assert_array_equal(session(X, FEATURES), X)
    session.select(3)
    np.testing.assert_array_equal(session(X, FEATURES), X + 3)


def test_closed_it_ends_the_child_and_says_so(start: Start) -> None:
    session = start()
    child = psutil.Process(session.process_id)
    session.close()
    assert not child.is_running()
    session.close()
    with pytest.raises(EdgeSDError, match=r"fake: the process that ran some\.pte has ended"):
        session(X, FEATURES)


def test_collected_it_ends_the_child(start: Start, contract: Contract) -> None:
    code = CHILD.format(body="")
    ready = f'{{"programs": [{signature_of(contract).model_dump_json()}]}}'
    session = ChildSession([sys.executable, "-c", code, ready], runtime="fake", files="x", contracts=[contract])
    child = psutil.Process(session.process_id)
    del session
    gc.collect()
    assert not child.is_running()


# A child that dies


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", "was killed by SIGKILL, most likely out of memory"),
        ("os.abort()", "was killed by SIGABRT"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "was killed by SIGSEGV"),
        ("os._exit(7)", "ended with exit code 7"),
        ("os.close(1); time.sleep(60)", "stopped making sense"),
        ("out.write(b'nonsense'); out.flush(); time.sleep(60)", "unknown status"),
        ("out.write(b'\\\\0\\\\0'); out.flush(); os._exit(3)", "ended with exit code 3"),
    ],
)
def test_a_child_that_dies_or_talks_nonsense_is_an_error_in_words(body: str, said: str, start: Start) -> None:
    body = body.replace("\\\\", "\\")
    session = start(f"def answer(program, inputs):\n    print('the last of it', file=sys.stderr, flush=True)\n    {body}")
    child = psutil.Process(session.process_id)
    with pytest.raises(EdgeSDError, match=said) as caught:
        session(X, FEATURES)
    assert "fake: the process that ran some.pte" in caught.value.message
    assert "it last said: the last of it" in caught.value.message
    assert caught.value.hint
    assert not child.is_running()
    with pytest.raises(EdgeSDError, match="has ended"):
        session(X, FEATURES)


def test_a_child_that_is_killed_between_calls_is_an_error_in_the_next(start: Start) -> None:
    session = start()
    os.kill(session.process_id, signal.SIGKILL)
    with pytest.raises(EdgeSDError, match="SIGKILL"):
        session(X, FEATURES)


def test_a_child_that_runs_out_of_memory_is_an_error(start: Start) -> None:
    """Its own limit stands for the machine's."""
    body = """
    def answer(program, inputs):
        resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))
        return bytearray(2**31)
    """
    with pytest.raises(EdgeSDError, match=r"ended with exit code 1; it last said: .*MemoryError"):
        start(body)(X, FEATURES)


@pytest.mark.parametrize("body", ["sys.exit('no such program')", "out.write(frames.encode_answer(np.zeros(1)))"])
def test_a_child_that_does_not_begin_well_is_an_error(body: str, start: Start) -> None:
    with pytest.raises(EdgeSDError, match=r"no such program|NameError"):
        start(body)


def test_a_child_that_begins_with_an_answer_is_refused(start: Start) -> None:
    with pytest.raises(EdgeSDError, match="began with an answer"):
        start("import numpy\nout.write(frames.encode_answer(numpy.zeros(1, numpy.float32)))")


def test_programs_that_do_not_keep_their_contracts_are_refused(start: Start) -> None:
    with pytest.raises(EdgeSDError, match="contract"):
        start(programs=2)


def test_what_cannot_be_started_is_a_broken_installation(contract: Contract) -> None:
    with pytest.raises(InstallationError, match="cannot start /no/such: No such file"):
        ChildSession(["/no/such"], runtime="fake", files="x", contracts=[contract])


def test_an_interrupted_call_ends_the_child(start: Start) -> None:
    """Its answer would be taken for the next call's."""
    session = start("def answer(program, inputs):\n    time.sleep(60)")
    child = psutil.Process(session.process_id)
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    try:
        with pytest.raises(KeyboardInterrupt):
            session(X, FEATURES)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert not child.is_running()


# The worker


@pytest.fixture(scope="module")
def bundle(make_model: Callable[..., SpectralUNet], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """8 px, 3 steps, for ONNX and ExecuTorch."""
    path = tmp_path_factory.mktemp("child") / "tiny.edgesd"
    checkpoint = Checkpoint.of(make_model(image_size=8), SCHEDULES["cosine"], "v", Provenance(made_by="train"))
    return export_bundle(checkpoint, path, ExportRequest(("onnx", "executorch"), steps=3, goldens=1, temporal=True))


@pytest.mark.parametrize("name", ["onnxruntime", "executorch"])
def test_an_isolated_runtime_says_what_it_says_here(name: str, bundle: Bundle) -> None:
    runtime = find_runtime(name)
    assert runtime.native
    session = isolated(runtime, bundle, 1, ("denoiser", "temporal"))
    here = trace(bundle.plan, runtime.load(bundle, 1), 3, 0)
    there = trace(bundle.plan, session, 3, 0)
    np.testing.assert_array_equal(here.predictions, there.predictions)
    np.testing.assert_array_equal(here.final, there.final)
    session.select(1)
    time_ = bundle.plan.timestep[:1].astype(np.float32)
    np.testing.assert_array_equal(session(time_), runtime.load(bundle, 1, "temporal")(time_))


def test_a_runtime_of_ours_stays_here(bundle: Bundle) -> None:
    runtime = find_runtime("torch")
    assert not runtime.native
    session = isolated(runtime, bundle, 1, ("denoiser", "temporal"))
    assert not isinstance(session, ChildSession)
    session.select(1)
    assert session(bundle.plan.timestep[:1].astype(np.float32)).shape == (1, bundle.plan.header.feature_width)


def test_errors_of_the_worker_are_raised_here_as_they_are(bundle: Bundle, tmp_path: Path) -> None:
    runtime = find_runtime("onnxruntime")
    with pytest.raises(EdgeSDError, match=r"(?i)invalid.?argument"):
        isolated(runtime, bundle, 1)(X, FEATURES)
    moved = Bundle(tmp_path / "nowhere.edgesd", bundle.manifest, bundle.plan, bundle.golden)
    with pytest.raises(UsageError, match="is not a bundle") as caught:
        isolated(runtime, moved, 1)
    assert caught.value.code == ExitCode.USAGE
    assert caught.value.hint == "give a folder that edge-sd export wrote"


def test_a_session_goes_on_after_a_call_that_it_refused(bundle: Bundle) -> None:
    golden = bundle.golden.trajectories[0]
    session = isolated(find_runtime("onnxruntime"), bundle, 1)
    session.select(1)
    with pytest.raises(EdgeSDError, match="no program number 1"):
        session(golden.samples[:1], golden.features[:1])
    session.select(0)
    assert session(golden.samples[:1], golden.features[:1]).shape == (1, *bundle.manifest.sample_shape)


def test_a_worker_that_is_killed_is_an_error_that_names_program_and_signal(bundle: Bundle) -> None:
    golden = bundle.golden.trajectories[0]
    session = isolated(find_runtime("onnxruntime"), bundle, 1)
    assert isinstance(session, ChildSession)
    os.kill(session.process_id, signal.SIGKILL)
    with pytest.raises(
        EdgeSDError, match=r"onnxruntime: the process that ran .*denoiser\.onnx was killed by SIGKILL, most likely"
    ):
        session(golden.samples[:1], golden.features[:1])


@pytest.mark.parametrize("name", ["onnxruntime", "executorch-runner", "executorch-runner-aarch64"])
def test_a_session_outlives_the_thread_that_started_it(name: str, bundle: Bundle) -> None:
    """Linux tells a child of its parent's death when the thread ends that started it."""
    with ThreadPoolExecutor(1) as pool:
        session = pool.submit(isolated, find_runtime(name), bundle, 1).result()
    golden = bundle.golden.trajectories[0]
    time.sleep(0.2)
    for _ in range(2):
        assert snr_db(golden.predictions[:1], session(golden.samples[:1], golden.features[:1])) > 80


# Orphans

ORPHAN = """
import os, subprocess, sys, time
from pathlib import Path
from edge_sd.bundle import open_bundle
from edge_sd.runtimes import find_runtime
from edge_sd.runtimes._child import isolated
session = isolated(find_runtime(sys.argv[2]), open_bundle(Path(sys.argv[1])), 1)
# Holds the child's input open: its end alone does not tell it.
other = subprocess.Popen(["sleep", "60"], pass_fds=[session._process.stdin.fileno()], stdout=subprocess.DEVNULL)
print(session.process_id, other.pid, flush=True)
if sys.argv[3] == "die":
    time.sleep(60)
"""


def alive(pid: int) -> bool:
    """A zombie is not: nobody has asked for its exit code yet."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("name", ["onnxruntime", "executorch-runner", "executorch-runner-aarch64"])
@pytest.mark.parametrize("how", ["die", "end"])
def test_no_orphan_is_left(name: str, how: str, bundle: Bundle, tmp_path: Path) -> None:
    """Neither of a parent that is killed nor of one that ends."""
    words = [sys.executable, "-c", ORPHAN, bundle.path, name, how]
    with subprocess.Popen(words, stdout=subprocess.PIPE, cwd=tmp_path) as parent:
        try:
            assert parent.stdout is not None
            child, other = map(int, parent.stdout.readline().split())
            if how == "die":
                assert alive(child)
                parent.kill()
            parent.wait(60)
            end = time.monotonic() + 10
            while alive(child) and time.monotonic() < end:
                time.sleep(0.05)
            assert not alive(child)
            assert alive(other)
            os.kill(other, signal.SIGKILL)
        finally:
            parent.kill()
