"""The models that come with the package: small, whole, with their decoder and their card, and used where none is given."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

from edge_sd.checkpoint import Checkpoint, load_checkpoint
from edge_sd.cli.main import main
from edge_sd.diffusion import compile_plan
from edge_sd.errors import EdgeSDError
from edge_sd.foreign import open_model
from edge_sd.pretrained import CARD, DEFAULT, SHIPPED, model_path
from edge_sd.pretrained.__main__ import ship
from edge_sd.sampling import decode, sample_model


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr("sys.argv", ["edge-sd", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code in (0, None)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_model_draws_images_of_64_pixels(name: str) -> None:
    found = open_model(model_path(name))
    header = found.checkpoint.header
    assert found.decoder is not None
    plan = compile_plan(header.noise_schedule, 4, solver="dpmpp", prediction=header.prediction)
    images = decode(found.decoder, sample_model(found.checkpoint.build(), plan, count=2))
    assert images.shape == (2, 3, 64, 64)
    # Emoji stand on white: their corners are it, which nothing but these weights knows.
    assert images[:, :, :3, :3].mean() > 0.8
    assert images.std() > 0.2


def test_the_student_is_gated_small_and_made_of_the_teacher_beside_it() -> None:
    path = model_path(DEFAULT)
    assert path.stat().st_size <= 8_000_000
    with safe_open(path, framework="numpy") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"F16"}  # noqa: SIM118
    student, teacher = (load_checkpoint(SHIPPED[name]).header for name in ("emoji64", "emoji64-teacher"))
    assert student.model.gating
    assert not teacher.model.gating
    assert student.provenance.made_by == "distill"
    assert student.provenance.parents["autoencoder"] == teacher.provenance.parents["autoencoder"]
    assert student.provenance.parents["teacher"] == teacher.provenance.parents["float32"]


def test_the_card_names_data_licence_and_command() -> None:
    text = CARD.read_text()
    for needed in ("noto-emoji", "Apache", "edge-sd run docs/emoji64.yaml", "MobileNet-KID"):
        assert needed in text
    assert (CARD.parent / "LICENSE.apache").is_file()


def test_a_name_is_a_shipped_model_unless_something_here_is_called_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert model_path("emoji64") == SHIPPED["emoji64"]
    assert model_path("other.safetensors") == Path("other.safetensors")
    Path("emoji64").mkdir()
    assert model_path("emoji64") == Path("emoji64")


def test_without_a_model_sample_draws_and_export_exports_emoji(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run(monkeypatch, "sample", "-n", "4", "--steps", "3")
    with Image.open("grid.png") as sheet:
        assert sheet.size == (129, 129)
    run(monkeypatch, "export", "--target", "onnx", "--steps", "2", "--goldens", "1")
    run(monkeypatch, "sample", "emoji64.edgesd", "-n", "1", "-o", "one.png")
    with Image.open("one.png") as image:
        assert image.size == (64, 64)


# How they are stored


def test_a_rounded_checkpoint_is_stored_in_half_the_bytes_and_comes_back_the_same(
    tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    rounded = tiny_checkpoint.rounded()
    rounded.save(tmp_path / "half.safetensors", half=True)
    rounded.save(tmp_path / "whole.safetensors")
    half, whole = (load_checkpoint(tmp_path / f"{name}.safetensors") for name in ("half", "whole"))
    assert half.header == whole.header == rounded.header
    for name, value in rounded.weights.items():
        assert half.weights[name].dtype == np.float32
        np.testing.assert_array_equal(half.weights[name], value)
        np.testing.assert_allclose(value, tiny_checkpoint.weights[name], rtol=2**-11, atol=2**-24)
    sizes = [(tmp_path / f"{name}.safetensors").stat().st_size for name in ("half", "whole")]
    assert sizes[0] < 0.7 * sizes[1]


def test_weights_that_were_not_rounded_are_not_stored_as_halves(tiny_checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not rounded"):
        tiny_checkpoint.save(tmp_path / "half.safetensors", half=True)
    assert not list(tmp_path.iterdir())


def test_a_half_that_was_changed_is_noticed(tiny_checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "half.safetensors"
    tiny_checkpoint.rounded().save(path, half=True)
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes(data)
    with pytest.raises(EdgeSDError, match="changed since"):
        load_checkpoint(path)


def test_a_run_becomes_a_folder_that_can_be_shipped(tmp_path: Path) -> None:
    source = model_path(DEFAULT).parent
    for role in ("teacher", "student"):
        (tmp_path / "run" / role).mkdir(parents=True)
        shutil.copy(source / f"{role}.safetensors", tmp_path / "run" / role / "checkpoint.safetensors")
    shutil.copy(source / "decoder.safetensors", tmp_path / "run" / "student")
    (tmp_path / "run" / "autoencoder").mkdir()
    shutil.copy(source / "autoencoder.safetensors", tmp_path / "run" / "autoencoder")
    files = ship(tmp_path / "run", tmp_path / "shipped")
    assert {file.name for file in files} == {f"{name}.safetensors" for name in ("teacher", "student", "decoder", "autoencoder")}
    for file in files:
        if file.name in ("teacher.safetensors", "student.safetensors"):
            assert load_checkpoint(file).header.digest == load_checkpoint(source / file.name).header.digest
        else:
            assert file.read_bytes() == (source / file.name).read_bytes()
