"""The C++ runner's runtimes: the same predictions and the same loop as Python's, its proof, and damage in words."""

import os
import random
import shutil
import struct
import subprocess
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from safetensors.numpy import load_file, save_file

from decoders import same_size_decoder
from edge_sd.bundle import Bundle, Golden, GoldenHeader, trace
from edge_sd.checkpoint import Checkpoint, Provenance
from edge_sd.decoder import Decoder
from edge_sd.devices import Measurement
from edge_sd.devices._measuring import ceiling
from edge_sd.diffusion import SCHEDULES, Plan, compile_plan
from edge_sd.errors import EdgeSDError
from edge_sd.evaluation import snr_db
from edge_sd.export import ExportRequest, export_bundle
from edge_sd.files import parse_model
from edge_sd.models.unet import SpectralUNet
from edge_sd.quantize._quantize import calibrate, quantize
from edge_sd.quantize.calibration import CalibrationRequest
from edge_sd.quantize.recipe import Recipe, default_layers
from edge_sd.quantize.reconstruction import ReconstructionSettings
from edge_sd.runtimes import find_runtime, load_denoiser
from edge_sd.runtimes._child import ChildSession, isolated
from edge_sd.runtimes._frames import encode_request
from edge_sd.runtimes._native import HOST, command
from edge_sd.runtimes.evidence import load_evidence
from edge_sd.runtimes.executorch_runner import ExecuTorchRunner, ExecuTorchRunnerAarch64, NativeRunner
from edge_sd.sampling import plan_features

SAME_DB = 200.0
RUNNERS = pytest.mark.parametrize("runner", [ExecuTorchRunner(), ExecuTorchRunnerAarch64()], ids=lambda runner: runner.name)
MakeModel = Callable[..., SpectralUNet]


@pytest.fixture(scope="module")
def model(make_model: MakeModel) -> SpectralUNet:
    return make_model(image_size=8)


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    return same_size_decoder(tmp_path_factory.mktemp("autoencoder"))


@pytest.fixture(scope="module")
def bundle(model: SpectralUNet, decoder: Decoder, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """In float: 4 steps, 2 trajectories, denoiser and decoder."""
    checkpoint = Checkpoint.of(model, SCHEDULES["cosine"], "v", Provenance(made_by="train"))
    path = tmp_path_factory.mktemp("runner") / "tiny.edgesd"
    return export_bundle(checkpoint, path, ExportRequest(("executorch",), steps=4, seed=5, goldens=2), decoder=decoder)


@pytest.fixture(scope="module")
def grouped(make_model: MakeModel, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """In 8 bits, rounded to nearest: two groups of steps, so two denoisers in one file."""
    folder = tmp_path_factory.mktemp("grouped")
    checkpoint = Checkpoint.of(make_model(2, image_size=8), SCHEDULES["ldm"], "epsilon", Provenance(made_by="train"))
    config = checkpoint.header.model
    recipe = Recipe(
        model=config, steps=4, groups=2, layers=default_layers(config, 8, 8),
        calibration=CalibrationRequest(trajectories=4), reconstruction=ReconstructionSettings(iterations=0),
    )  # fmt: skip
    calibration = calibrate(checkpoint, recipe, folder / "calibration.safetensors")
    quantized = quantize(checkpoint, recipe, calibration, folder / "blocks").checkpoint
    return export_bundle(quantized, folder / "grouped.edgesd", ExportRequest(("executorch",), steps=4, goldens=1))


def golden_of(bundle: Bundle, plan: Plan, seed: int) -> Golden:
    """What the Python bindings, on one thread, make of a plan: whoever equals them to the bit reads `SAME_DB`."""
    session = load_denoiser(find_runtime("executorch"), bundle, 1)
    trajectories = tuple(trace(plan, session, seed, index) for index in range(2))
    return Golden(GoldenHeader(seed=seed, reference="executorch"), trajectories)


def with_plan(bundle: Bundle, plan: Plan, seed: int, folder: Path) -> Bundle:
    """A bundle of the same programs with another plan, and goldens that the Python bindings drew."""
    path = shutil.copytree(bundle.path, folder / "other.edgesd")
    golden = golden_of(bundle, plan, seed)
    plan.save(path / "plan.safetensors")
    golden.save(path / "golden.safetensors")
    contracts = tuple(contract for contract in bundle.manifest.contracts if contract.program != "decoder")
    return Bundle(path, bundle.manifest.model_copy(update={"contracts": contracts}), plan, golden)


# The same as Python


@pytest.mark.parametrize(
    ("solver", "steps", "eta", "analytic"),
    [
        *(("ddim", 6, 0.0, False), ("ddim", 6, 1.0, False), ("ddpm", 5, 0.0, False), ("dpmpp", 7, 0.0, False)),
        *(("unipc", 6, 0.0, False), ("unipc", 6, 0.0, True)),
    ],
)
def test_predictions_and_loop_are_python_s_to_the_bit(
    solver: str, steps: int, eta: float, analytic: bool, bundle: Bundle, model: SpectralUNet, tmp_path: Path
) -> None:
    """One step and several, corrected, with fresh noise and without: the same library, on as many threads."""
    manifest = bundle.manifest
    bare = compile_plan(
        manifest.noise_schedule, prediction=manifest.prediction, solver=solver, steps=steps, eta=eta, analytic_first_step=analytic
    )
    plan = bare.with_features(plan_features(model, bare, None))
    assert plan.stochastic == (eta > 0 or solver == "ddpm")
    other = with_plan(bundle, plan, 2**40 + 3, tmp_path)
    path, proof = ExecuTorchRunner().prove(other, 1, tmp_path / "out" / "evidence.safetensors")
    assert [(step.teacher_forced_db, step.free_running_db) for step in proof.steps] == [(SAME_DB, SAME_DB)] * len(plan)
    assert proof.final_snr_db == SAME_DB
    found = load_file(path)
    for index, golden in enumerate(other.golden.trajectories):
        np.testing.assert_array_equal(found[f"{index}.forced"], golden.predictions)
        np.testing.assert_array_equal(found[f"{index}.free"], golden.samples)
        np.testing.assert_array_equal(found[f"{index}.last"], golden.final)


def test_emulated_arm_follows_a_stochastic_plan_from_the_same_noise(bundle: Bundle, model: SpectralUNet, tmp_path: Path) -> None:
    """Its kernels sum in another order; its noise and its loop are the same."""
    manifest = bundle.manifest
    bare = compile_plan(manifest.noise_schedule, prediction=manifest.prediction, solver="ddim", steps=6, eta=1.0)
    other = with_plan(bundle, bare.with_features(plan_features(model, bare, None)), 3, tmp_path)
    path, proof = ExecuTorchRunnerAarch64().prove(other, 1, tmp_path / "evidence.safetensors")
    found = load_file(path)
    np.testing.assert_array_equal(found["1.free"][0], other.golden.trajectories[1].samples[0])
    assert min(step.free_running_db for step in proof.steps) > 100


@RUNNERS
def test_several_programs_of_one_file_are_called_each_for_its_steps(
    runner: NativeRunner, grouped: Bundle, tmp_path: Path
) -> None:
    assert set(grouped.plan.program) == {0, 1}
    names = grouped.plan.header.programs
    session = isolated(runner, grouped, 1, names)
    assert isinstance(session, ChildSession)
    here = [find_runtime("executorch").load(grouped, 1, name) for name in names]
    golden = grouped.golden.trajectories[0]
    inputs = golden.samples[:1], golden.features[:1]
    answers = []
    for number in (0, 1, 0):
        session.select(number)
        answers.append(session(*inputs))
        assert snr_db(here[number](*inputs), answers[-1]) > (60 if runner.emulated else 199)
    np.testing.assert_array_equal(answers[0], answers[2])
    assert not np.array_equal(answers[0], answers[1])
    other = with_plan(grouped, grouped.plan, 1, tmp_path)
    _, proof = runner.prove(other, 1, tmp_path / "evidence.safetensors")
    least = min(step.teacher_forced_db for step in proof.steps)
    assert least > 60 if runner.emulated else least == SAME_DB


# The proof


@RUNNERS
def test_a_float_bundle_is_proved(runner: NativeRunner, bundle: Bundle, tmp_path: Path) -> None:
    path, proof = runner.prove(bundle, 1, tmp_path / "evidence.safetensors")
    rows, goldens = len(bundle.plan), bundle.golden.trajectories
    assert (len(proof.steps), proof.trajectories) == (rows, len(goldens))
    assert min(min(step.teacher_forced_db, step.free_running_db) for step in proof.steps) > 100
    assert proof.final_snr_db > 100
    assert proof.image_snr_db is not None
    assert proof.image_snr_db > 100
    assert len(proof.calls_ms) == 2 * rows * len(goldens)
    assert min(*proof.calls_ms, *proof.decoder_ms, proof.load_ms) > 0
    assert 2**20 < proof.peak_memory_bytes < 2**29
    found = load_file(path)
    shape = bundle.manifest.sample_shape
    for index, golden in enumerate(goldens):
        expected = {"forced": (rows, *shape), "free": (rows, *shape), "last": shape}
        assert golden.image is not None
        expected |= {"image": golden.image.shape, "drawn": golden.image.shape}
        assert {name: found.pop(f"{index}.{name}").shape for name in expected} == expected
    assert not found


def test_what_is_proved_is_what_the_evidence_says(bundle: Bundle, tmp_path: Path) -> None:
    """The figures, computed again from the tensors."""
    path, proof = ExecuTorchRunner().prove(bundle, 1, tmp_path / "evidence.safetensors")
    found, goldens = load_file(path), bundle.golden.trajectories
    header, evidence = load_evidence(path, bundle)
    assert (header.runtime, header.bundle_digest) == ("executorch-runner", bundle.manifest.digest)
    np.testing.assert_array_equal(evidence[1].forced, found["1.forced"])
    for step in proof.steps:
        forced = [snr_db(golden.predictions[step.row], found[f"{i}.forced"][step.row]) for i, golden in enumerate(goldens)]
        free = [snr_db(golden.samples[step.row], found[f"{i}.free"][step.row]) for i, golden in enumerate(goldens)]
        assert step.teacher_forced_db == pytest.approx(min(forced))
        assert step.free_running_db == pytest.approx(min(free))
    last = [snr_db(golden.final, found[f"{i}.last"]) for i, golden in enumerate(goldens)]
    images = [snr_db(golden.image, found[f"{i}.image"]) for i, golden in enumerate(goldens) if golden.image is not None]
    assert (proof.final_snr_db, proof.image_snr_db) == (pytest.approx(min(last)), pytest.approx(min(images)))


def test_another_seed_than_the_goldens_is_seen(bundle: Bundle, tmp_path: Path) -> None:
    other = replace(bundle, golden=replace(bundle.golden, header=GoldenHeader(seed=6, reference="torch")))
    _, proof = ExecuTorchRunner().prove(other, 1, tmp_path / "evidence.safetensors")
    assert proof.steps[0].free_running_db < 10
    assert min(step.teacher_forced_db for step in proof.steps) > 100


@RUNNERS
@pytest.mark.parametrize("name", ["with spaces.edgesd", 'it\'s "quoted".edgesd', "two\nlines: $HOME.edgesd", "-program.edgesd"])
def test_files_may_have_any_name(runner: NativeRunner, name: str, bundle: Bundle, tmp_path: Path) -> None:
    moved = replace(bundle, path=shutil.copytree(bundle.path, tmp_path / name))
    golden = bundle.golden.trajectories[0]
    prediction = runner.load(moved, 1)(golden.samples[:1], golden.features[:1])
    assert snr_db(golden.predictions[:1], prediction) > 100
    path, proof = runner.prove(moved, 1, tmp_path / name / "evidence of it.safetensors")
    assert proof.final_snr_db > 100
    assert path.is_file()
    (moved.path / bundle.program("executorch").file).write_bytes(b"")
    with pytest.raises(EdgeSDError, match="cannot load"):
        runner.load(moved, 1)


# Damage


def raw(words: list[str | Path]) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*command(HOST), *words], stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=60)


def prove(bundle: Bundle, folder: Path, **files: Path) -> subprocess.CompletedProcess[bytes]:
    """Mode prove on a bundle's files, some of them others."""
    program = files.get("program", bundle.path / bundle.program("executorch").file)
    return raw(
        [
            "prove", "--plan", files.get("plan", bundle.path / "plan.safetensors"),
            "--golden", files.get("golden", bundle.path / "golden.safetensors"), "--program", f"{program}:denoiser",
            "--seed", "5", "--header", "{}", "--output", folder / "out.safetensors", "--threads", "1",
        ]
    )  # fmt: skip


def damaged(data: bytes, number: int) -> bytes:
    """Cut short, or one bit turned: anywhere, or near the start, where formats keep their tables."""
    chosen = random.Random(number)
    if number % 3 == 0:
        return data[: chosen.randrange(len(data))]
    place = chosen.randrange(len(data) if number % 3 == 1 else min(len(data), 4096))
    return data[:place] + bytes([data[place] ^ 1 << chosen.randrange(8)]) + data[place + 1 :]


@pytest.mark.parametrize("kind", ["program", "plan", "golden"])
def test_a_damaged_file_ends_in_words_and_not_in_a_crash(kind: str, bundle: Bundle, tmp_path: Path) -> None:
    """A turned bit of a weight is another weight: that, the figures show, and the manifest's hashes."""
    names = {"program": bundle.program("executorch").file, "plan": "plan.safetensors", "golden": "golden.safetensors"}
    data = (bundle.path / names[kind]).read_bytes()
    refused = 0
    for number in range(45):
        (tmp_path / "damaged").write_bytes(damaged(data, number))
        done = prove(bundle, tmp_path, **{kind: tmp_path / "damaged"})
        said = done.stderr.decode(errors="replace")
        assert done.returncode in (0, 1), (number, said)
        if done.returncode:
            refused += 1
            assert "edgesd-runner: " in said
            assert "damaged" in said or "is not finite" in said
            assert not done.stdout
        else:
            assert number % 3
    assert refused >= 15


def with_header(header: str, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header.encode())) + header.encode() + data


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "cut short"),
        (struct.pack("<Q", 2**63), "cut short"),
        (with_header("[]"), "no '{'"),
        (with_header("{} x"), "something after"),
        (with_header('{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}', b"\0" * 8), "goes on"),
        (with_header('{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}', b"\0" * 4), "does not lie"),
        (with_header('{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}', b"\0" * 4), "does not lie"),
        (with_header('{"a": {"dtype": "F32", "shape": [4294967296, 4294967296], "data_offsets": [0, 0]}}'), "too large"),
        (with_header('{"a": {"dtype": "F33", "shape": [1], "data_offsets": [0, 4]}}', b"\0" * 4), "unknown dtype F33"),
        (with_header('{"a": {"dtype": "F32", "shape": [1], "data_offsets": [99999999999999999999, 4]}}'), "beyond 64 bits"),
        (with_header('{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}'), "no number"),
        (with_header('{"a": {"dtype": "F32", "data_offsets": [0, 4]}}', b"\0" * 4), "lacks"),
        (
            with_header(
                '{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "b": {"dtype": "F32", "shape": [1], '
                '"data_offsets": [0, 4]}}',
                b"\0" * 4,
            ),
            "overlap",
        ),
        (
            with_header(
                '{"a": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}, "a": {"dtype": "U8", "shape": [0], '
                '"data_offsets": [0, 0]}}'
            ),
            "twice",
        ),
        (with_header('{"\\ud800": 1}'), "half a character"),
        (with_header('{"a\\x": 1}'), "unknown escape"),
        (with_header('{"__metadata__": {"a": "\\u00e9\\ud83d\\ude00"}}'), "holds no tensor"),
    ],
)
def test_a_safetensors_file_that_does_not_add_up_is_refused(data: bytes, said: str, bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "plan.safetensors").write_bytes(data)
    done = prove(bundle, tmp_path, plan=tmp_path / "plan.safetensors")
    assert (done.returncode, done.stdout) == (1, b"")
    assert said in done.stderr.decode()
    assert "plan.safetensors" in done.stderr.decode()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"p": np.zeros(3)}, "tensor p is F64 (3), expected F64 (4)"),
        ({"p": np.zeros(4, np.float32)}, "tensor p is F32 (4), expected F64 (4)"),
        ({"c": np.full(4, np.nan)}, "tensor c is not finite"),
        ({"program": np.array([0, 0, 1, 0])}, "column program names 1, but 1 programs were given"),
        ({"speed": np.zeros(4)}, "columns that no plan has"),
    ],
)
def test_a_plan_that_is_none_is_refused(change: dict[str, Any], said: str, bundle: Bundle, tmp_path: Path) -> None:
    save_file({**load_file(bundle.path / "plan.safetensors"), **change}, tmp_path / "plan.safetensors")
    done = prove(bundle, tmp_path, plan=tmp_path / "plan.safetensors")
    assert done.returncode == 1
    assert said in done.stderr.decode()
    assert not (tmp_path / "out.safetensors").exists()


def test_a_prediction_that_is_not_finite_is_named_with_step_and_program(bundle: Bundle, tmp_path: Path) -> None:
    goldens = load_file(bundle.path / "golden.safetensors")
    goldens["1.samples"][2] = np.float32(3e38)
    save_file(goldens, tmp_path / "golden.safetensors")
    done = prove(bundle, tmp_path, golden=tmp_path / "golden.safetensors")
    assert done.returncode == 1
    assert "programs.pte:denoiser at step 2 is not finite" in done.stderr.decode()
    assert not (tmp_path / "out.safetensors").exists()


def test_evidence_that_cannot_be_written_is_named_and_leaves_what_was_there(bundle: Bundle, tiny_disk: Path) -> None:
    out = tiny_disk / "out.safetensors"
    out.write_bytes(b"before")
    (tiny_disk / "ballast").write_bytes(b"\0" * 56 * 1024)
    done = prove(bundle, tiny_disk)
    assert done.returncode == 1
    assert f"cannot write {out}: No space left on device" in done.stderr.decode()
    assert out.read_bytes() == b"before"
    assert {path.name for path in tiny_disk.iterdir()} == {"out.safetensors", "ballast"}


# Requests


def serve(bundle: Bundle, requests: bytes) -> subprocess.CompletedProcess[bytes]:
    program = f"{bundle.path / bundle.program('executorch').file}:denoiser"
    words = [*command(HOST), "serve", "--program", program, "--threads", "1"]
    return subprocess.run(words, input=requests, capture_output=True, check=False, timeout=60)


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ((0,), "ends in its middle"),
        ((0, 17), "17 tensors"),
        ((0, 1, 4, 0), "dtype 4"),
        ((0, 1, 6, 9), "9 dimensions"),
        ((0, 1, 6, 4, 65536, 65536, 65536, 65536), "too large"),
        ((0, 1, 6, 2, 65536, 65536), "too large"),
        ((0, 1, 6, 1, 100), "ends in its middle"),
    ],
)
def test_a_hostile_request_ends_the_runner_in_words(numbers: tuple[int, ...], said: str, bundle: Bundle) -> None:
    done = serve(bundle, struct.pack(f"<{len(numbers)}I", *numbers))
    assert done.returncode == 1
    assert said in done.stderr.decode()


def test_a_call_that_does_not_fit_is_refused_and_the_next_is_answered(bundle: Bundle) -> None:
    golden = bundle.golden.trajectories[0]
    session = ExecuTorchRunner().load(bundle, 1)
    for inputs, said in (
        ((golden.samples[:1],), "takes 2 tensors, not 1"),
        ((golden.samples[:2], golden.features[:1]), r"takes float32 \(1, 3, 8, 8\), not float32 \(2, 3, 8, 8\)"),
        ((golden.samples[:1].astype(np.int32), golden.features[:1]), r"not int32 \(1, 3, 8, 8\)"),
    ):
        with pytest.raises(EdgeSDError, match=said):
            session(*inputs)
    session.select(1)
    with pytest.raises(EdgeSDError, match="no program number 1"):
        session(golden.samples[:1], golden.features[:1])
    session.select(0)
    assert snr_db(golden.predictions[:1], session(golden.samples[:1], golden.features[:1])) > 100


def test_nothing_but_frames_is_on_standard_output(bundle: Bundle) -> None:
    golden = bundle.golden.trajectories[0]
    done = serve(bundle, encode_request(0, (golden.samples[:1], golden.features[:1])) * 3)
    assert done.returncode == 0
    _, length = struct.unpack("<2I", done.stdout[:8])
    frame = 4 * 7 + golden.predictions[:1].nbytes
    assert len(done.stdout) == 8 + length + 3 * frame


# Threads and memory


def test_it_runs_in_as_many_threads_as_it_is_told(bundle: Bundle) -> None:
    for threads in (1, 2, 3):
        session = ExecuTorchRunner().load(bundle, threads)
        assert isinstance(session, ChildSession)
        assert psutil.Process(session.process_id).num_threads() == threads


def test_a_runner_that_runs_out_of_memory_is_an_error_in_words(bundle: Bundle) -> None:
    """Its own limit stands for the machine's: enough to start, too little for one huge tensor."""
    program = f"{bundle.path / bundle.program('executorch').file}:denoiser"
    session = ChildSession(
        ["prlimit", f"--as={2**28}", *command(HOST), "serve", "--program", program, "--threads", "1"],
        runtime="executorch-runner", files="programs.pte", contracts=[bundle.manifest.contract()],
    )  # fmt: skip
    with pytest.raises(EdgeSDError, match=r"executorch-runner: .*programs\.pte ended with exit code 1; .*out of memory"):
        session(np.zeros((1, 3, 2**12, 2**13), np.float32), bundle.plan.features[:1])


def test_a_crash_inside_of_a_program_is_an_error_that_names_it(bundle: Bundle) -> None:
    session = ExecuTorchRunner().load(bundle, 1)
    assert isinstance(session, ChildSession)
    os.kill(session.process_id, 11)
    golden = bundle.golden.trajectories[0]
    with pytest.raises(EdgeSDError, match=r"programs\.pte ended with exit code 1; .*SIGSEGV while between calls"):
        session(golden.samples[:1], golden.features[:1])


# What it does by itself, for devices without Python


def test_it_proves_the_rows_of_time_features_of_each_class(make_model: MakeModel, tmp_path: Path) -> None:
    checkpoint = Checkpoint.of(make_model(image_size=8, num_classes=3), SCHEDULES["cosine"], "v", Provenance(made_by="train"))
    bundle = export_bundle(checkpoint, tmp_path / "classes.edgesd", ExportRequest(("executorch",), steps=3, seed=2, goldens=3))
    assert len(set(bundle.golden.header.labels)) > 1
    ExecuTorchRunner().prove(bundle, 1, tmp_path / "evidence.safetensors")
    _, evidence = load_evidence(tmp_path / "evidence.safetensors", bundle)
    for golden, found in zip(bundle.golden.trajectories, evidence, strict=True):
        assert found.features is not None
        assert snr_db(golden.features, found.features) > 100
    firsts = [found.features[0] for found in evidence if found.features is not None]
    assert not np.array_equal(firsts[0], firsts[1])


def measure(bundle: Bundle, *more: str) -> subprocess.CompletedProcess[bytes]:
    program = bundle.path / bundle.program("executorch").file
    return raw(
        [
            "measure", "--plan", bundle.path / "plan.safetensors", "--golden", bundle.path / "golden.safetensors",
            "--program", f"{program}:denoiser", "--decoder", f"{program}:decoder", "--seed", "5", *more,
        ]
    )  # fmt: skip


def test_it_measures_as_the_job_says(bundle: Bundle) -> None:
    few = ["--least-warmup", "3", "--most-warmup", "7", "--iterations", "9", "--images", "2"]
    done = measure(bundle, *few, "--ceiling", "0", "--minutes", "0.001", "--most-seconds", "20", "--threads", "1")
    assert done.returncode == 0, done.stderr
    found = parse_model(Measurement, done.stdout, "the runner")
    assert (len(found.samples_ms), len(found.image_ms), len(found.decoder_ms)) == (9, 2, 2)
    assert 6 <= len(found.warmup_ms) <= 7
    assert len(found.sustained) == 1
    assert found.sustained[0].p50_ms <= found.sustained[0].p90_ms
    assert found.ceiling_gflops is None
    assert min(found.image_ms) > 4 * min(found.samples_ms) * 0.5
    assert version("executorch").partition("+")[0] in found.runtime_version


def test_its_ceiling_is_no_less_than_a_matrix_product(bundle: Bundle) -> None:
    """The best of either, in turn: other work on the machine makes both less."""
    own, product = 0.0, 0.0
    for _ in range(8):
        done = measure(bundle, "--iterations", "3", "--images", "0", "--threads", "1")
        found = parse_model(Measurement, done.stdout, "the runner")
        assert found.ceiling_gflops is not None
        own, product = max(own, found.ceiling_gflops), max(product, ceiling(1)[0])
        if own > 0.5 * product:
            break
    assert own > 0.5 * product


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--iterations", "0"], "--iterations is a number from 1 to"),
        (["--least-warmup", "ten"], "--least-warmup is a number from 1 to"),
        (["--minutes", "-1"], "--minutes is a number from 0 on"),
        (["--minutes", "1e9"], "--minutes is a number from 0 on"),
        (["--most-seconds", "soon"], "--most-seconds is a number from 0 on"),
        (["--images", "1", "--images", "2"], "--images is given twice"),
        (["--speed", "1"], "unknown option --speed"),
    ],
)
def test_a_job_that_cannot_be_meant_is_refused(words: list[str], said: str, bundle: Bundle) -> None:
    done = measure(bundle, *words)
    assert done.returncode == 2
    assert said in done.stderr.decode()
    assert "usage: edgesd-runner" in done.stderr.decode()


def test_headers_and_labels_that_do_not_fit_are_refused(bundle: Bundle, tmp_path: Path) -> None:
    program = bundle.path / bundle.program("executorch").file
    shared = [
        "prove", "--plan", bundle.path / "plan.safetensors", "--golden", bundle.path / "golden.safetensors",
        "--program", f"{program}:denoiser", "--seed", "5", "--output", tmp_path / "out",
    ]  # fmt: skip
    for words, code, said in (
        ([], 2, "one of --header and --header-file is needed"),
        (["--header", "{}", "--header-file", "x"], 2, "one of --header and --header-file is needed"),
        (["--header-file", tmp_path / "none"], 1, "cannot read"),
        (["--header", "{}", "--label", "1"], 1, "there is not one label for each trajectory"),
    ):
        done = raw([*shared, *words])
        assert (done.returncode, said in done.stderr.decode()) == (code, True), done.stderr
    assert not (tmp_path / "out").exists()


def test_a_watched_job_ends_with_its_input(bundle: Bundle) -> None:
    """`raw` gives it none."""
    done = measure(bundle, "--minutes", "10", "--watch", "1")
    assert done.returncode == 1
    assert done.stdout == b""
