"""Folders of pipelines become checkpoints, with where they came from; broken ones and pickles are refused."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from edge_sd.autoencoder import AutoencoderFile
from edge_sd.checkpoint import Checkpoint, Provenance, load_checkpoint
from edge_sd.diffusion import NoiseSchedule
from edge_sd.errors import EdgeSDError
from edge_sd.foreign import load_foreign, refuse_other_latents
from edge_sd.models.autoencoder import Autoencoder, AutoencoderConfig

MakeTheirs = Callable[..., diffusers.UNet2DModel]

WEIGHTS = "diffusion_pytorch_model.safetensors"


def test_a_bare_model_gets_a_schedule_that_is_said_to_be_assumed(folder: Path) -> None:
    foreign = load_foreign(folder)
    header = foreign.checkpoint.header
    assert foreign.decoder is None
    assert (header.noise_schedule, header.prediction) == (NoiseSchedule(), "epsilon")
    assert (header.provenance.made_by, header.provenance.data) == ("import", "")
    assert header.provenance.settings["class"] == "UNet2DModel"
    assert "assumed" in header.provenance.settings["scheduler"]


@pytest.mark.parametrize("name", ["DDPM", "DDIM"])
def test_a_pipeline(name: str, make_theirs: MakeTheirs, tmp_path: Path) -> None:
    scheduler = getattr(diffusers, f"{name}Scheduler")(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
    getattr(diffusers, f"{name}Pipeline")(unet=make_theirs(), scheduler=scheduler).save_pretrained(tmp_path)
    header = load_foreign(tmp_path).checkpoint.header
    assert (header.noise_schedule.kind, header.prediction) == ("cosine", "v")
    assert header.provenance.settings["pipeline"] == f"{name}Pipeline"
    assert header.provenance.settings["scheduler"]["beta_schedule"] == "squaredcos_cap_v2"


def test_a_pipeline_whose_parts_lie_in_one_folder(make_theirs: MakeTheirs, tmp_path: Path) -> None:
    """As the first ones on the Hub."""
    make_theirs().save_pretrained(tmp_path)
    diffusers.DDPMScheduler(beta_end=0.01).save_pretrained(tmp_path)
    (tmp_path / "model_index.json").write_text('{"_class_name": "DDPMPipeline"}')
    assert load_foreign(tmp_path).checkpoint.header.noise_schedule.beta_end == 0.01


@torch.no_grad()
def test_latent_diffusion(make_ldm: Callable[[int], Path]) -> None:
    foreign = load_foreign(make_ldm(4))
    assert foreign.checkpoint.header.model.in_channels == 4
    assert foreign.decoder is not None
    assert foreign.decoder.header.architecture == "VQModel"
    assert foreign.decoder.build()(torch.zeros(1, 4, 16, 16)).shape == (1, 3, 32, 32)


def test_parts_that_do_not_belong_together(make_ldm: Callable[[int], Path]) -> None:
    with pytest.raises(EdgeSDError, match="the denoiser makes 3 channels, its VQModel takes 4"):
        load_foreign(make_ldm(3))


@pytest.fixture
def make_ldm(make_theirs: MakeTheirs, tmp_path: Path) -> Callable[[int], Path]:
    """The denoiser's channels → the folder of an LDMPipeline whose decoder takes 4."""

    def make(channels: int) -> Path:
        make_theirs(in_channels=channels, out_channels=channels).save_pretrained(tmp_path / "unet")
        diffusers.DDIMScheduler().save_pretrained(tmp_path / "scheduler")
        diffusers.VQModel(
            latent_channels=4, block_out_channels=(8, 8), norm_num_groups=4, num_vq_embeddings=16,
            down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        ).save_pretrained(tmp_path / "vqvae")  # fmt: skip
        (tmp_path / "model_index.json").write_text('{"_class_name": "LDMPipeline"}')
        return tmp_path

    return make


def test_it_survives_our_own_file(folder: Path, tmp_path: Path) -> None:
    checkpoint = load_foreign(folder).checkpoint
    checkpoint.save(tmp_path / "model.safetensors")
    again = load_checkpoint(tmp_path / "model.safetensors")
    assert again.header == checkpoint.header
    for name, value in checkpoint.weights.items():
        np.testing.assert_array_equal(again.weights[name], value)


# What is refused


@pytest.mark.parametrize("suffix", ["bin", "pt", "ckpt"])
def test_pickles_are_never_opened(suffix: str, folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / f"diffusion_pytorch_model.{suffix}").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(EdgeSDError, match=rf"pickle only \(diffusion_pytorch_model\.{suffix}\)") as caught:
        load_foreign(folder)
    assert "safe_serialization=True" in caught.value.hint


@pytest.mark.parametrize("length", [0, 4, 100, -1])
def test_truncated_weights(length: int, folder: Path) -> None:
    path = folder / WEIGHTS
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(EdgeSDError, match="not a whole safetensors file"):
        load_foreign(folder)


def _two_variants(folder: Path) -> None:
    for name in ("fp16", "ema"):
        shutil.copy(folder / WEIGHTS, folder / f"diffusion_pytorch_model.{name}.safetensors")
    (folder / WEIGHTS).unlink()


def _index(folder: Path, content: Any) -> None:
    (folder / WEIGHTS).unlink()
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(content))


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), f"holds no {WEIGHTS}"),
    "weights are a folder": (lambda folder: ((folder / WEIGHTS).unlink(), (folder / WEIGHTS).mkdir()), "is not a file"),
    "two variants": (_two_variants, "several variants: diffusion_pytorch_model.ema.safetensors, diffusion_pytorch_model.fp16"),
    "no configuration": (lambda folder: (folder / "config.json").unlink(), "cannot read .*config.json"),
    "half a configuration": (lambda folder: (folder / "config.json").write_text('{"_class_name": "UNet'), "is not JSON"),
    "a list": (lambda folder: (folder / "config.json").write_text("[]"), "holds no JSON object"),
    "bytes": (lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe\xff"), "is not JSON"),
    "an index of nothing": (lambda folder: _index(folder, {}), "weight_map"),
    "an index that leads away": (lambda folder: _index(folder, {"weight_map": {"a": "../a.safetensors"}}), "names '../a.safe"),
    "an index of pickles": (lambda folder: _index(folder, {"weight_map": {"a": "a.bin"}}), "names 'a.bin'"),
    "another pipeline": (
        lambda folder: (folder / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}'),
        "StableDiffusionPipeline has no counterpart",
    ),
    "a pipeline without a scheduler": (
        lambda folder: (folder / "model_index.json").write_text('{"_class_name": "DDPMPipeline"}'),
        "scheduler_config.json does not exist",
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_broken_folder(damage: str, folder: Path) -> None:
    do, complaint = DAMAGE[damage]
    do(folder)
    with pytest.raises(EdgeSDError, match=complaint):
        load_foreign(folder)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(EdgeSDError, match=re.escape(f"{tmp_path / 'none'} does not exist")):
        load_foreign(tmp_path / "none")
    (tmp_path / "file").touch()
    with pytest.raises(EdgeSDError, match="is not a folder"):
        load_foreign(tmp_path / "file")


def test_a_decoder_for_a_denoiser_of_pixels(tiny_checkpoint: Checkpoint) -> None:
    provenance = tiny_checkpoint.header.provenance.model_copy(update={"made_by": "train", "parents": {}})
    header = tiny_checkpoint.header.model_copy(update={"provenance": provenance})
    decoder = AutoencoderFile.of(Autoencoder(AutoencoderConfig()), Provenance(made_by="train-autoencoder")).decoder()
    with pytest.raises(EdgeSDError, match="trained on pixels"):
        refuse_other_latents(Checkpoint(header, tiny_checkpoint.weights), decoder)
