"""The checkpoint as a file: it comes back to the bit and builds the same model; each kind of damage is refused and named."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from pydantic import ValidationError
from safetensors.numpy import load_file, save_file

from edge_sd.checkpoint import Checkpoint, Provenance, load_checkpoint, versions
from edge_sd.diffusion import SCHEDULES, NoiseSchedule, compile_plan
from edge_sd.errors import EdgeSDError
from edge_sd.files import HEADER, tensors_digest, write_tensors
from edge_sd.models.unet import SpectralUNet

MakeModel = Callable[..., SpectralUNet]


@pytest.fixture
def file(tiny_checkpoint: Checkpoint, tmp_path: Path) -> Path:
    tiny_checkpoint.save(tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def refused(path: Path, complaint: str) -> None:
    with pytest.raises(EdgeSDError, match=complaint) as caught:
        load_checkpoint(path)
    assert str(path) in caught.value.message


def rewrite(path: Path, change: Callable[[dict[str, np.ndarray]], Any], *, honest: bool) -> None:
    """Change the weights and write them again, `honest` with the digest that they have now."""
    weights, header = load_file(path), load_checkpoint(path).header
    change(weights)
    write_tensors(path, weights, header.model_copy(update={"digest": tensors_digest(weights)}) if honest else header)


# Round trip


def test_a_checkpoint_comes_back_to_the_bit(file: Path, tiny_checkpoint: Checkpoint) -> None:
    read = load_checkpoint(file)
    assert read.header == tiny_checkpoint.header
    assert read.weights.keys() == tiny_checkpoint.weights.keys()
    for name, value in tiny_checkpoint.weights.items():
        assert read.weights[name].dtype == np.float32
        np.testing.assert_array_equal(read.weights[name], value)
    read.save(file.with_name("again"))
    assert file.with_name("again").read_bytes() == file.read_bytes()


@torch.no_grad()
def test_the_model_that_is_built_computes_what_the_first_one_did(file: Path, make_model: MakeModel) -> None:
    built, first = load_checkpoint(file).build(), make_model()
    assert not built.training
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([3.0, 700.0])
    out = built(x, t)
    assert out.abs().max() > 0.1
    torch.testing.assert_close(out, first(x, t), rtol=0, atol=0)


def test_a_checkpoint_is_no_window_onto_the_model(make_model: MakeModel) -> None:
    """Neither the model it was taken of nor one it has built can change it: its digest is a promise."""
    model = make_model()
    checkpoint = Checkpoint.of(model, NoiseSchedule(), "v", Provenance(made_by="train"))
    with torch.no_grad():
        for parameter in [*model.parameters(), *checkpoint.build().parameters()]:
            parameter.zero_()
    assert tensors_digest(checkpoint.weights) == checkpoint.header.digest


def test_weights_are_kept_as_float32(make_model: MakeModel) -> None:
    checkpoint = Checkpoint.of(make_model().bfloat16(), NoiseSchedule(), "v", Provenance(made_by="train"))
    assert {value.dtype for value in checkpoint.weights.values()} == {np.dtype(np.float32)}
    checkpoint.build()


@pytest.mark.parametrize("prediction", ["epsilon", "v", "x0"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_any_schedule_and_prediction_comes_back(schedule: str, prediction: Any, make_model: MakeModel, tmp_path: Path) -> None:
    provenance = Provenance(made_by="train", settings={"train": {"betas": [0.9, 0.99]}}, versions=versions())
    before = Checkpoint.of(make_model(), SCHEDULES[schedule], prediction, provenance)
    before.save(tmp_path / "model")
    assert load_checkpoint(tmp_path / "model").header == before.header


# Damage


@pytest.mark.parametrize("kept", [0, 1, 7, 8, 9, 200, 0.5, -4, -1])
def test_a_file_that_was_cut_short(kept: float, file: Path) -> None:
    data = file.read_bytes()
    file.write_bytes(data[: int(kept * len(data)) if isinstance(kept, float) else kept])
    refused(file, "is not a whole safetensors file")


def test_a_file_that_goes_on(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"\0")
    refused(file, "is not a whole safetensors file")


@pytest.mark.parametrize("where", [0.4, 0.6, 0.99])
def test_one_bit_of_the_weights(where: float, file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[int(where * len(data)) // 4 * 4] ^= 1  # the lowest bit of some float's mantissa
    file.write_bytes(data)
    refused(file, "have changed since they were written")


@pytest.mark.parametrize("change", ["renamed", "swapped", "dropped", "reshaped", "retyped"])
def test_weights_that_are_not_those_of_the_digest(change: str, file: Path) -> None:
    def damage(weights: dict[str, np.ndarray]) -> None:
        one, other = "middle.0.block.conv1.weight", "middle.1.block.conv1.weight"
        if change == "renamed":
            weights["middle.0.block.conv3.weight"] = weights.pop(one)
        elif change == "swapped":
            weights[one], weights[other] = weights[other], weights[one]
        elif change == "dropped":
            del weights[one]
        elif change == "reshaped":
            weights[one] = weights[one].reshape(-1)
        else:
            weights[one] = weights[one].view(np.int32)

    rewrite(file, damage, honest=False)
    refused(file, "have changed since they were written")


def test_a_text_file(file: Path) -> None:
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    refused(file, "is not a whole safetensors file")


def test_a_safetensors_file_of_somebody_else(file: Path) -> None:
    save_file({"weight": np.zeros(3, dtype=np.float32)}, file)
    refused(file, "not one of edge-sd")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_a_model_of_somebody_else_in_half_precision(dtype: torch.dtype, file: Path) -> None:
    """What most published models are; NumPy has no type for the last two."""
    safetensors.torch.save_file({"weight": torch.zeros(3).to(dtype)}, file)
    refused(file, re.escape(str(file)))


def test_a_file_of_ours_that_is_something_else(file: Path) -> None:
    compile_plan(NoiseSchedule(), 5).save(file)
    refused(file, "is not a valid CheckpointHeader: model: Field required")


@pytest.mark.parametrize(
    ("field", "value"),
    [("schema_version", "1"), ("kind", "state"), ("prediction", "score"), ("digest", None), ("noise_schedule", 7), ("color", 1)],
)
def test_a_header_that_cannot_be_meant(field: str, value: Any, file: Path) -> None:
    header = load_checkpoint(file).header.model_dump(mode="json")
    save_file(load_file(file), file, metadata={HEADER: json.dumps({**header, field: value})})
    refused(file, f"is not a valid CheckpointHeader: {field}")


@pytest.mark.parametrize(("version", "remedy"), [(2, "pip install --upgrade edge-sd"), (0, "make it again")])
def test_another_schema_version_is_no_damage(version: int, remedy: str, file: Path) -> None:
    header = load_checkpoint(file).header.model_dump(mode="json")
    save_file(load_file(file), file, metadata={HEADER: json.dumps({**header, "schema_version": version, "novelty": 1})})
    refused(file, rf"model\.safetensors has schema version {version}, this edge-sd reads version 1 .try: .*{remedy}")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000, "\x00", '{"model": {"width": NaN}}'])
def test_a_header_that_is_no_json(text: str, file: Path) -> None:
    save_file(load_file(file), file, metadata={HEADER: text})
    refused(file, "is not a valid CheckpointHeader")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite(bad: float, file: Path) -> None:
    def damage(weights: dict[str, np.ndarray]) -> None:
        weights["conv_in.bias"][3] = bad

    rewrite(file, damage, honest=True)
    refused(file, "tensor conv_in.bias holds a NaN or an infinity")


def test_what_is_no_file(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere.safetensors", "does not exist")
    refused(tmp_path, "is not a file")


# A sound file whose weights are another model's


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"width": 16}, r"conv_in\.bias is \(8,\), expected \(16,\)"),
        ({"gating": False}, r"down\.1\.bias is None, expected \(8,\)"),
        ({"blocks": 2}, "is .*, expected"),
        ({"scale_shift": True}, r"temporal_net\.project\.bias is \(104,\), expected \(208,\)"),
    ],
)
def test_weights_that_do_not_fit_the_configuration(changes: dict[str, Any], named: str, file: Path) -> None:
    checkpoint = load_checkpoint(file)
    model = checkpoint.header.model.model_copy(update=changes)
    misfit = Checkpoint(checkpoint.header.model_copy(update={"model": model}), checkpoint.weights)
    with pytest.raises(EdgeSDError, match=f"weights do not fit the model: .*{named}"):
        misfit.build()


def test_a_weight_too_many_or_too_few_is_named(tiny_checkpoint: Checkpoint) -> None:
    weights = dict(tiny_checkpoint.weights)
    shape = weights.pop("conv_out.bias").shape
    with pytest.raises(EdgeSDError, match=re.escape(f"conv_out.bias is None, expected {shape}")):
        Checkpoint(tiny_checkpoint.header, weights).build()
    with pytest.raises(EdgeSDError, match=r"aligner is \(2,\), expected None"):
        Checkpoint(tiny_checkpoint.header, {**tiny_checkpoint.weights, "aligner": np.zeros(2)}).build()


# Provenance


@pytest.mark.parametrize("changes", [{"steps": -1}, {"images_seen": -1}, {"made_by": None}, {"colour": "red"}])
def test_a_provenance_that_cannot_be_meant(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(changes))):
        Provenance(**{"made_by": "train", **changes})


def test_versions_name_what_computes() -> None:
    found = versions()
    assert {"python", "edge-sd", "torch", "numpy", "onnxruntime"} <= found.keys()
    assert found["torch"] == torch.__version__
    assert all(re.match(r"\d+\.\d+", value) for value in found.values())
