"""A browser as a device: jobs by wasm and by WebGPU, on whole bundles and damaged ones, with ends that nobody wishes for."""

import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from edge_sd.bundle import Bundle, open_bundle
from edge_sd.bundle.manifest import MANIFEST
from edge_sd.checkpoint import Checkpoint, Provenance
from edge_sd.devices import Job, Outcome, find_device
from edge_sd.devices import _web as web
from edge_sd.devices._chromium import VARIABLE, find
from edge_sd.devices.browser import RUNTIME, Browser, BrowserConnection
from edge_sd.devices.host import describe_host
from edge_sd.diffusion import SCHEDULES
from edge_sd.errors import DeviceError, EdgeSDError, InstallationError, UsageError
from edge_sd.evaluation.metrics import snr_db
from edge_sd.export import ExportRequest, export_bundle
from edge_sd.models.unet import SpectralUNet
from edge_sd.runtimes import find_runtime
from edge_sd.runtimes.evidence import gather
from verbs import succeeded

QUICK = Job(runtime=RUNTIME, least_warmup=2, most_warmup=10, iterations=5, images=1, most_seconds=20)
ENDLESS = QUICK.model_copy(update={"prove": False, "minutes": 60.0, "patience": 20.0})
LEAST_DB = 60.0


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Temporary files of this test alone; at its end there is no browser, and no profile."""
    with tempfile.TemporaryDirectory() as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield
        assert not browsers()
        assert os.listdir(folder) == []  # noqa: PTH208


def browsers(kind: str = "") -> list[psutil.Process]:
    """Processes of browsers with a profile in this test's folder that are alive; of one kind (browser, renderer) or all."""
    found = []
    for process in psutil.process_iter():
        try:
            words, state = process.cmdline(), process.status()
        except psutil.Error:
            continue
        ours = any(word.startswith(f"--user-data-dir={tempfile.gettempdir()}/") for word in words)
        kinds = [word.removeprefix("--type=") for word in words if word.startswith("--type=")] or ["browser"]
        if ours and state != psutil.STATUS_ZOMBIE and kind in ("", *kinds):
            found.append(process)
    return found


@pytest.fixture
def wasm() -> Iterator[BrowserConnection]:
    with Browser().open("") as connection:
        assert isinstance(connection, BrowserConnection)
        yield connection


def outcome_of(connection: BrowserConnection, bundle: Bundle, job: Job) -> tuple[Outcome, list[tuple[int, int, str]]]:
    seen: list[tuple[int, int, str]] = []
    connection.push(bundle, job)
    connection.run(lambda done, total, note: seen.append((done, total, note)))
    return connection.pull(), seen


def check_evidence(outcome: Outcome, bundle: Bundle) -> None:
    """Every tensor that a device can bring is there, and is the reference's."""
    assert outcome.evidence is not None
    for golden, found in zip(bundle.golden.trajectories, outcome.evidence, strict=True):
        pairs = {
            "forced": (golden.predictions, found.forced),
            "free": (golden.samples, found.free),
            "last": (golden.final, found.last),
            "features": (golden.features, found.features),
            "image": (golden.image, found.image),
            "drawn": (golden.image, found.drawn),
        }
        for name, (reference, other) in pairs.items():
            assert reference is not None
            assert other is not None, name
            assert snr_db(reference, other) > LEAST_DB, name
        assert snr_db(golden.samples[0], found.free[0]) == 200, "the noise it starts from is the reference's to the bit"


# Jobs


def test_wasm_proves_and_times(wasm: BrowserConnection, bundle: Bundle) -> None:
    assert wasm.runtimes(bundle) == (RUNTIME,)
    outcome, seen = outcome_of(wasm, bundle, QUICK)
    check_evidence(outcome, bundle)
    measured = outcome.measurement
    assert measured is not None
    assert measured.runtime_version == outcome.runtime_version
    assert measured.runtime_version.startswith(f"onnxruntime-web {web.VERSION} (wasm, 1 thread, clock ")
    assert len(measured.samples_ms) == 5
    assert 4 <= len(measured.warmup_ms) <= 10
    assert len(measured.image_ms) == len(measured.decoder_ms) == 1
    assert measured.ceiling_gflops is not None
    assert measured.ceiling_gflops > 0.05
    stages = list(dict.fromkeys(note for _, _, note in seen))
    assert stages == ["files", "programs", "proof", "warm-up", "timing", "images", "ceiling"]
    assert all(done <= total for done, total, _ in seen)


def test_info_is_the_browsers_on_this_machine(wasm: BrowserConnection) -> None:
    info, host = wasm.info(), describe_host()
    assert info.title == "browser:wasm"
    assert info.model.startswith(("Chromium ", "Google Chrome "))
    assert (info.processor, info.cores, info.emulated) == (host.processor, host.cores, False)


def test_threads_and_a_job_of_one_half(wasm: BrowserConnection, bundle: Bundle) -> None:
    outcome, _ = outcome_of(wasm, bundle, QUICK.model_copy(update={"threads": 2, "iterations": 0}))
    check_evidence(outcome, bundle)
    assert outcome.measurement is None
    assert "wasm, 2 threads" in outcome.runtime_version
    outcome, _ = outcome_of(wasm, bundle, QUICK.model_copy(update={"prove": False, "minutes": 0.01}))
    assert outcome.evidence is None
    assert outcome.measurement is not None
    assert len(outcome.measurement.sustained) == 1


def test_webgpu_imitated_proves(bundle: Bundle) -> None:
    """SwiftShader, where there is no graphics processor: its times say nothing, its numbers count."""
    with Browser().open("webgpu") as connection:
        assert isinstance(connection, BrowserConnection)
        info = connection.info()
        assert info.title == "browser:webgpu"
        outcome, _ = outcome_of(connection, bundle, QUICK.model_copy(update={"iterations": 3, "most_seconds": 1, "images": 0}))
    check_evidence(outcome, bundle)
    assert info.processor in outcome.runtime_version
    assert info.emulated == ("swiftshader" in info.processor.lower())


def test_classes_without_a_decoder(wasm: BrowserConnection, make_model: Callable[..., SpectralUNet], tmp_path: Path) -> None:
    """The rows of time features depend on the class then, and come from the program temporal."""
    model = make_model(image_size=8, num_classes=3)
    checkpoint = Checkpoint.of(model, SCHEDULES["ldm"], "epsilon", Provenance(made_by="train"))
    path = tmp_path / "classes.edgesd"
    bundle = export_bundle(checkpoint, path, ExportRequest(("onnx",), solver="unipc", steps=3, goldens=3, seed=2**63 - 1))
    assert bundle.manifest.labelled
    outcome, _ = outcome_of(wasm, bundle, QUICK)
    assert outcome.evidence is not None
    for golden, found in zip(bundle.golden.trajectories, outcome.evidence, strict=True):
        assert found.features is not None
        assert snr_db(golden.predictions, found.forced) > LEAST_DB
        assert snr_db(golden.final, found.last) > LEAST_DB
        assert snr_db(golden.features, found.features) > LEAST_DB
        assert found.image is None
    assert outcome.measurement is not None
    assert outcome.measurement.decoder_ms == ()


def test_several_denoisers_share_their_weights(wasm: BrowserConnection, tiny_checkpoint: Checkpoint, tmp_path: Path) -> None:
    """8 bits in two groups of steps: one program each, their weights in a file beside; as good as on the host."""
    tiny_checkpoint.save(tmp_path / "tiny.safetensors")
    settings = ("--bits", 8, "--groups", 2, "--steps", 4, "--trajectories", 2, "--iterations", 0, "--ranges", "minmax")
    succeeded("quantize", tmp_path / "tiny.safetensors", *settings, "--target", "onnx", "-o", tmp_path / "groups")
    bundle = open_bundle(tmp_path / "groups" / "groups.edgesd")
    assert bundle.plan.header.programs == ("denoiser", "denoiser.1")
    assert "weights.bin" in bundle.manifest.files
    outcome, _ = outcome_of(wasm, bundle, QUICK)
    assert outcome.evidence is not None
    host = gather(bundle, find_runtime("onnxruntime"), 1)
    for golden, found, other in zip(bundle.golden.trajectories, outcome.evidence, host, strict=True):
        ours, theirs = snr_db(golden.predictions, found.forced), snr_db(golden.predictions, other.forced)
        assert ours > theirs - 3, (ours, theirs)


# Bundles that are not what they should be


def copied(bundle: Bundle, folder: Path) -> Bundle:
    """A copy that was opened while it was whole."""
    shutil.copytree(bundle.path, folder / "copy.edgesd")
    return Bundle(folder / "copy.edgesd", bundle.manifest, bundle.plan, bundle.golden)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "name", ["denoiser.onnx", "decoder.onnx", "temporal.onnx", "golden.safetensors", "plan.safetensors", MANIFEST]
)
def test_a_flipped_bit_is_refused_by_the_page(name: str, wasm: BrowserConnection, bundle: Bundle, tmp_path: Path) -> None:
    copy = copied(bundle, tmp_path)
    flip(copy.path / name)
    wasm.push(copy, QUICK)
    with pytest.raises(EdgeSDError, match=f"{name} (has changed since it was exported|is not whole)") as refused:
        wasm.run()
    assert refused.value.hint == "copy or export the bundle again"


def test_a_file_that_is_gone_or_longer_is_refused(wasm: BrowserConnection, bundle: Bundle, tmp_path: Path) -> None:
    copy = copied(bundle, tmp_path)
    with (copy.path / "denoiser.onnx").open("ab") as file:
        file.write(b"more")
    wasm.push(copy, QUICK)
    with pytest.raises(EdgeSDError, match=r"denoiser\.onnx has changed since it was exported"):
        wasm.run()
    (copy.path / "denoiser.onnx").unlink()
    with pytest.raises(EdgeSDError, match=r"denoiser\.onnx cannot be fetched"):
        wasm.run()


def test_another_bundle_in_its_place_is_refused(wasm: BrowserConnection, bundle: Bundle, tmp_path: Path) -> None:
    """Whole by itself, but not the one that was pushed."""
    copy = copied(bundle, tmp_path)
    other = bundle.manifest.model_copy(update={"name": "other"}).sealed()
    copy = Bundle(copy.path, other, copy.plan, copy.golden)
    wasm.push(copy, QUICK)
    with pytest.raises(EdgeSDError, match="another bundle than the one that is served"):
        wasm.run()


def test_what_a_browser_cannot_do_is_refused_beforehand(wasm: BrowserConnection, bundle: Bundle) -> None:
    with pytest.raises(UsageError, match="onnxruntime' does not run in a browser"):
        wasm.push(bundle, QUICK.model_copy(update={"runtime": "onnxruntime"}))
    with pytest.raises(UsageError, match="memory and processors cannot be set"):
        wasm.push(bundle, QUICK.model_copy(update={"memory_mib": 64}))
    programs = tuple(program for program in bundle.manifest.programs if program.target != "onnx")
    without = Bundle(bundle.path, bundle.manifest.model_copy(update={"programs": programs}), bundle.plan, bundle.golden)
    assert wasm.runtimes(without) == ()
    with pytest.raises(EdgeSDError, match="holds no denoiser for onnx"):
        wasm.push(without, QUICK)
    with pytest.raises(UsageError, match="wasm or webgpu"):
        Browser().open("webgl")


# Ends that nobody wishes for


def in_the_middle(connection: BrowserConnection, bundle: Bundle, do: Callable[[], None], job: Job = ENDLESS) -> EdgeSDError:
    """Run a job, do something when its sustained part has begun, and return the error that this ends in."""
    connection.push(bundle, job)
    threads = []

    def observe(done: int, total: int, note: str) -> None:
        if note == "sustained" and not threads:
            threads.append(threading.Thread(target=do))
            threads[0].start()

    with pytest.raises(EdgeSDError) as caught:
        connection.run(observe)
    threads[0].join()
    return caught.value


def test_a_browser_that_is_killed_is_an_error_of_the_device(wasm: BrowserConnection, bundle: Bundle) -> None:
    error = in_the_middle(wasm, bundle, lambda: [process.kill() for process in browsers("browser")] and None)
    assert isinstance(error, DeviceError)
    assert "the browser ended with signal 9" in error.message
    outcome, _ = outcome_of(wasm, bundle, QUICK.model_copy(update={"iterations": 0}))  # and the next job is as any other
    check_evidence(outcome, bundle)


def test_a_page_whose_process_is_killed_is_an_error_of_the_device(wasm: BrowserConnection, bundle: Bundle) -> None:
    error = in_the_middle(wasm, bundle, lambda: [process.kill() for process in browsers("renderer")] and None)
    assert isinstance(error, DeviceError)
    assert "the browser lost the page's process" in error.message


def test_a_browser_that_falls_silent_is_an_error_of_the_device(wasm: BrowserConnection, bundle: Bundle) -> None:
    error = in_the_middle(wasm, bundle, lambda: [process.suspend() for process in browsers("renderer")] and None)
    assert isinstance(error, DeviceError)
    assert "said nothing for 20 s" in error.message


def test_ctrl_c_in_the_middle_leaves_nothing(wasm: BrowserConnection, bundle: Bundle) -> None:
    wasm.push(bundle, ENDLESS)

    def observe(done: int, total: int, note: str) -> None:
        if note == "timing":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        wasm.run(observe)


def test_the_browser_ends_with_the_process_that_started_it(bundle: Bundle, tmp_path: Path) -> None:
    """Even where that is killed outright: nobody is left to remove the profile, but nothing runs on."""
    code = (
        "import sys; from pathlib import Path\n"
        "from edge_sd.bundle import open_bundle\n"
        "from edge_sd.devices import Job\n"
        "from edge_sd.devices.browser import Browser\n"
        "with Browser().open('') as connection:\n"
        "    connection.push(open_bundle(Path(sys.argv[1])), Job.model_validate_json(sys.argv[2]))\n"
        "    connection.run(lambda done, total, note: print(note, flush=True))\n"
    )
    arguments = [sys.executable, "-c", code, str(bundle.path), ENDLESS.model_dump_json()]
    environment = {**os.environ, "TMPDIR": tempfile.gettempdir()}
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, cwd=tmp_path, env=environment) as process:
        assert process.stdout
        assert "timing\n" in process.stdout
        assert browsers()
        process.kill()
    ends = time.monotonic() + 20
    while browsers() and time.monotonic() < ends:
        time.sleep(0.2)
    assert not browsers()
    for left in Path(tempfile.gettempdir()).iterdir():
        shutil.rmtree(left)


def test_a_program_that_is_no_browser_is_an_error_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "browser"
    script.write_text("#!/bin/sh\necho no display here >&2\nexit 3\n")
    script.chmod(0o755)
    monkeypatch.setenv(VARIABLE, str(script))
    with pytest.raises(DeviceError, match="the browser ended with exit code 3; it last said: no display here"):
        Browser().open("wasm")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "nothing"))
    assert find() is None
    with pytest.raises(InstallationError, match="no browser of the Chromium family") as missing:
        find_device("browser:wasm")
    assert VARIABLE in missing.value.hint
