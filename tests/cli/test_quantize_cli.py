"""`edge-sd quantize`: what it writes, that it goes on where it stopped, budgets, engines, and what it refuses."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from edge_sd.bundle import open_bundle
from edge_sd.bundle.bits import effective_bits
from edge_sd.checkpoint import Checkpoint, Provenance
from edge_sd.diffusion import SCHEDULES
from edge_sd.evaluation import snr_db
from edge_sd.models.unet import SpectralUNet
from edge_sd.quantize import _quantize, load_quantized, load_recipe
from edge_sd.report.quantization import QuantizationReport
from edge_sd.report.subjects import find_subject
from edge_sd.runtimes.parity import check_parity
from edge_sd.runtimes.values import values
from verbs import call, refused

MakeModel = Callable[..., SpectralUNet]
QUICK = ("--iterations", 3, "--trajectories", 2, "--steps", 4)


def saved(model: SpectralUNet, path: Path) -> Path:
    Checkpoint.of(model, SCHEDULES["cosine"], "v", Provenance(made_by="train")).save(path)
    return path


@pytest.fixture(scope="module")
def checkpoint(make_model: MakeModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(make_model(5, image_size=8), tmp_path_factory.mktemp("model") / "checkpoint.safetensors")


@pytest.fixture(scope="module")
def quantized(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """W4A8, two groups of steps, with its bundle."""
    out = tmp_path_factory.mktemp("quantized") / "w4a8"
    done = call("quantize", checkpoint, "--bits", 4, "--groups", 2, *QUICK, "-o", out)
    assert done.code == 0, done
    return out


def report_of(folder: Path) -> QuantizationReport:
    return QuantizationReport.model_validate_json((folder / "quantize.json").read_text())


def test_it_ends_in_a_bundle_that_is_smaller(quantized: Path) -> None:
    names = {path.name for path in quantized.iterdir()}
    assert names >= {
        "model.safetensors",
        "recipe.yaml",
        "quantize.json",
        "coverage.png",
        "calibration.safetensors",
        "w4a8.edgesd",
    }
    report, bundle = report_of(quantized), open_bundle(quantized / "w4a8.edgesd")
    assert len(report.starts) == 2
    assert bundle.plan.header.programs == ("denoiser", "denoiser.1")
    layers = bundle.program("onnx").layers
    assert {layer.stored for layer in layers} == {4.0, 8.0}
    assert {layer.computed for layer in layers if layer.requested_activations == 8} == {"int8"}
    assert effective_bits(layers) < 5.5
    assert report.effective_bits < 5.5
    assert len(report.quality.step_db) == 4
    assert {entry.point for entry in report.coverage} == {entry.point for entry in report.coverage if entry.clipped < 0.05}


def test_its_torch_runtime_is_the_simulation_bit_for_bit(quantized: Path) -> None:
    result, _ = check_parity(open_bundle(quantized / "w4a8.edgesd"), "torch")
    assert result.quantized
    assert result.worst_step.forced.value_db == 200.0


def test_its_onnx_program_as_it_is_written_is_the_simulation(quantized: Path) -> None:
    """At every step, and with activations of 8 bits: what differs when it is deployed is how fused integer kernels round."""
    bundle = open_bundle(quantized / "w4a8.edgesd")
    for golden in bundle.golden.trajectories:
        for row in range(len(bundle.plan)):
            program = bundle.plan.header.programs[int(bundle.plan.program[row])]
            inputs = (golden.samples[row : row + 1], golden.features[row : row + 1])
            computed = dict(values()["onnx"].of(bundle, program, inputs))
            assert snr_db(golden.predictions[row], computed["prediction"][0]) > 45


def test_onnxruntime_draws_what_the_simulation_draws(quantized: Path) -> None:
    result, _ = check_parity(open_bundle(quantized / "w4a8.edgesd"), "onnxruntime")
    assert result.passed, result.verdict
    quality = report_of(quantized).quality
    # Both are as far from full precision: rounding errors that differ in the last bit are of the size of the grid.
    assert result.worst_step.forced.value_db > quality.step_db[quality.worst_step]


@pytest.mark.parametrize("activations", ["16", "none"])
def test_without_8_bit_activations_the_deployed_program_is_the_simulation(
    checkpoint: Path, tmp_path: Path, activations: str
) -> None:
    done = call("quantize", checkpoint, "--bits", 4, "--act-bits", activations, "--groups", 1, *QUICK, "-o", tmp_path / "q")
    assert done.code == 0, done
    bundle = open_bundle(tmp_path / "q" / "q.edgesd")
    result, _ = check_parity(bundle, "onnxruntime")
    assert result.passed, result.verdict
    # Weights alone leave nothing that rounding could amplify: they are held to the noise floor, like a float program.
    assert result.quantized == (activations == "16")
    assert result.worst_step.forced.value_db > (45 if activations == "16" else 90)
    fell_back = {layer.fell_back for layer in bundle.program("onnx").layers if layer.requested_activations}
    assert fell_back == ({True} if activations == "16" else set())  # 16-bit activations are computed in float, and it says so


def test_the_same_command_finds_it_done_and_another_is_refused(quantized: Path, checkpoint: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in quantized.rglob("*") if path.is_file()}
    assert call("quantize", checkpoint, "--bits", 4, "--groups", 2, *QUICK, "-o", quantized).code == 0
    assert {path: path.stat().st_mtime_ns for path in quantized.rglob("*") if path.is_file()} == before
    refused(call("quantize", checkpoint, "--bits", 8, *QUICK, "-o", quantized), 2, "another quantization", "--overwrite")


def test_killed_it_goes_on_and_comes_to_the_same(
    checkpoint: Path, quantized: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("quantize", checkpoint, "--bits", 4, "--groups", 2, *QUICK, "--target", "none", "-o", tmp_path / "q")
    written: list[str] = []
    keep = _quantize._save_block

    def dying(folder: Path, key: str, result: Any) -> None:
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(result.name)
        keep(folder, key, result)

    monkeypatch.setattr(_quantize, "_save_block", dying)
    assert call(*arguments).code == 1
    assert not (tmp_path / "q" / "model.safetensors").exists()
    monkeypatch.undo()
    again: list[str] = []
    monkeypatch.setattr(_quantize, "_save_block", lambda folder, key, result: again.append(result.name))
    assert call(*arguments).code == 0
    assert not set(written) & set(again)
    digests = [load_quantized(folder / "model.safetensors").header.digest for folder in (quantized, tmp_path / "q")]
    assert digests[0] == digests[1]


def test_a_recipe_is_applied_to_other_weights(quantized: Path, make_model: MakeModel, tmp_path: Path) -> None:
    other = saved(make_model(9, image_size=8), tmp_path / "other.safetensors")
    lines = (quantized / "recipe.yaml").read_text().splitlines()
    layers = yaml.safe_load((quantized / "recipe.yaml").read_text())["layers"]
    assert len([line for line in lines if line.startswith("  ") and line.split(":")[0].strip() in layers]) == len(layers)
    done = call("quantize", other, "--recipe", quantized / "recipe.yaml", "--target", "none", "-o", tmp_path / "q")
    assert done.code == 0, done
    assert load_recipe(tmp_path / "q" / "recipe.yaml") == load_recipe(quantized / "recipe.yaml")


def test_a_recipe_of_another_model_is_refused(quantized: Path, make_model: MakeModel, tmp_path: Path) -> None:
    other = saved(make_model(9, image_size=16), tmp_path / "other.safetensors")
    done = call("quantize", other, "--recipe", quantized / "recipe.yaml", "-o", tmp_path / "q")
    refused(done, 2, "another model", "image_size")


def test_quantized_checkpoints_are_sampled_inspected_and_exported(quantized: Path, tmp_path: Path) -> None:
    model = quantized / "model.safetensors"
    assert "w4 a8" in call("inspect", model).out
    assert call("sample", model, "--steps", 4, "-n", 1, "-o", tmp_path / "a.png").code == 0
    refused(call("sample", model, "--steps", 5, "-n", 1, "-o", tmp_path / "b.png"), 2, "4 steps")
    assert call("export", model, "--target", "onnx", "-o", tmp_path / "again.edgesd").code == 0
    refused(call("export", model, "--target", "onnx", "--steps", 6, "-o", tmp_path / "six.edgesd"), 2, "4 steps")
    refused(call("plan", "swap", quantized / "w4a8.edgesd", "--steps", 3, "-o", tmp_path / "c.edgesd"), 2, "groups")
    refused(call("quantize", model, *QUICK, "-o", tmp_path / "d"), 2, "quantized already")


@pytest.mark.parametrize("budget", ["size<=9KB", "sqnr>=24dB"])
def test_a_budget_decides_the_bits(checkpoint: Path, tmp_path: Path, budget: str) -> None:
    done = call(
        "quantize",
        checkpoint,
        "--bits",
        4,
        "--act-bits",
        "none",
        "--budget",
        budget,
        *QUICK,
        "--target",
        "none",
        "-o",
        tmp_path / "q",
    )
    report = report_of(tmp_path / "q") if done.code == 0 else None
    if report is None:
        refused(done, 2, "smallest allocation") if budget.startswith("size") else refused(done, 1, "dB are reached")
        return
    (chosen,) = (point for point in report.front if point.chosen)
    assert [point.bytes for point in report.front] == sorted(point.bytes for point in report.front)
    if budget.startswith("size"):
        assert chosen.bytes <= 9e3
    else:
        assert report.quality.mean_db >= 24
    assert (tmp_path / "q" / "front.png").stat().st_size > 1000


def test_a_latency_budget_is_measured(checkpoint: Path, tmp_path: Path) -> None:
    done = call("quantize", checkpoint, "--bits", 8, "--budget", "latency<=50x", *QUICK, "--target", "none", "-o", tmp_path / "q")
    assert done.code == 0, done
    layers = load_recipe(tmp_path / "q" / "recipe.yaml").layers.values()
    assert not [layer for layer in layers if layer.input]  # so much time lets all of them stay in float
    assert 0 < report_of(tmp_path / "q").seconds["latency share"] <= 50


def test_nncf_is_an_engine(checkpoint: Path, tmp_path: Path) -> None:
    done = call("quantize", checkpoint, "--bits", 8, "--engine", "nncf", *QUICK, "-o", tmp_path / "q")
    assert done.code == 0, done
    bundle = open_bundle(tmp_path / "q" / "q.edgesd")
    assert bundle.program("onnx").options["engine"] == "nncf"
    assert report_of(tmp_path / "q").digest == bundle.manifest.digest
    assert find_subject(tmp_path / "q", "f", "").subject.quantization == report_of(tmp_path / "q")
    assert report_of(tmp_path / "q").quality.mean_db > 5
    refused(call("quantize", checkpoint, "--bits", 4, "--engine", "nncf", *QUICK, "-o", tmp_path / "r"), 2, "4")


def test_strict_bits_fails_where_a_target_falls_back(checkpoint: Path, tmp_path: Path) -> None:
    done = call("quantize", checkpoint, "--bits", 3, "--strict-bits", *QUICK, "-o", tmp_path / "q")
    refused(done, 1, "more bits than asked for", "w3")
    assert not (tmp_path / "q" / "q.edgesd").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--bits", 1), "1 bits"),
        (("--bits", 9), "9 bits"),
        (("--act-bits", 7), "7 bits"),
        (("--layer", "up.9.block.conv1=8"), "up.9.block.conv1"),
        (("--layer", "conv_in=many"), "conv_in=8"),
        (("--group", 5), "groups of 5"),
        (("--budget", "speed>=2"), "sqnr>=20dB"),
        (("--budget", "size<=1KB"), "smallest allocation"),
        (("--engine", "other"), "unknown engine"),
        (("--ranges", "guess"), "ranges"),
        (("--coverage", "some"), "coverage"),
        (("--target", "tflite"), "tflite"),
        (("--solver", "other"), "solver"),
        (("--recipe", "missing.yaml"), "missing.yaml"),
    ],
)
def test_what_cannot_be_meant_is_refused(checkpoint: Path, tmp_path: Path, arguments: tuple[object, ...], said: str) -> None:
    done = call("quantize", checkpoint, *QUICK, *arguments, "-o", tmp_path / "q")
    assert done.code in (1, 2), done
    refused(done, done.code, said)
    assert not (tmp_path / "q" / "model.safetensors").exists()


def test_calibration_inputs_of_another_model_are_refused(quantized: Path, make_model: MakeModel, tmp_path: Path) -> None:
    other = saved(make_model(9, image_size=8), tmp_path / "other.safetensors")
    done = call("quantize", other, *QUICK, "--calibration", quantized / "calibration.safetensors", "-o", tmp_path / "q")
    refused(done, 2, "another model")


def test_activations_that_are_not_finite_are_named(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model(5, image_size=8)
    with torch.no_grad():
        model.conv_out.weight.zero_()  # the trajectory stays finite, what is inside does not
        model.get_parameter("middle.0.block.conv2.weight").fill_(3e38)
    broken = saved(model, tmp_path / "broken.safetensors")
    done = call("quantize", broken, *QUICK, "-o", tmp_path / "q")
    assert done.code in (1, 2), done
    refused(done, done.code, "finite")


def test_it_prints_json(checkpoint: Path, quantized: Path) -> None:
    done = call("quantize", checkpoint, "--bits", 4, "--groups", 2, *QUICK, "-o", quantized, "--format", "json")
    assert json.loads(done.out)["kind"] == "quantization"
    assert np.isfinite(json.loads(done.out)["quality"]["final_psnr_db"])
