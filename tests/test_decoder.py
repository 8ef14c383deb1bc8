"""Decoders draw what diffusers' draw, from its folder and from our file, and can be exported."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from edge_sd.decoder import image_shape, load_decoder
from edge_sd.errors import EdgeSDError, InstallationError
from edge_sd.models.latent import nearest

WEIGHTS = "diffusion_pytorch_model.safetensors"
TWO: dict[str, Any] = {
    "block_out_channels": (8, 16), "norm_num_groups": 4,
    "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2,
}  # fmt: skip
TINY: dict[str, Any] = {
    "encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8),
    "num_encoder_blocks": (1, 1), "num_decoder_blocks": (1, 1),
}  # fmt: skip

# name → (class, settings)
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "tiny": ("AutoencoderTiny", {**TINY, "latent_channels": 6}),
    "tiny, scaled": ("AutoencoderTiny", {**TINY, "scaling_factor": 1.5, "shift_factor": 0.2}),
    "KL": ("AutoencoderKL", TWO),
    "KL, shifted, bare": ("AutoencoderKL", {**TWO, "shift_factor": 0.3, "scaling_factor": 2.0, "use_post_quant_conv": False}),
    "KL without attention": ("AutoencoderKL", {**TWO, "mid_block_add_attention": False}),
    "VQ": ("VQModel", {**TWO, "num_vq_embeddings": 50}),
    "VQ with a narrow codebook": ("VQModel", {**TWO, "latent_channels": 4, "vq_embed_dim": 2, "scaling_factor": 1.0}),
}


def make(kind: str) -> torch.nn.Module:
    """diffusers' autoencoder with weights that hide nothing."""
    name, settings = KINDS[kind]
    torch.manual_seed(0)
    model = getattr(diffusers, name)(**settings).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if parameter.ndim == 1 or path.startswith("quantize"):
                parameter.add_(torch.randn(parameter.shape, generator=generator) / 2)
    return model


def latents(theirs: torch.nn.Module) -> torch.Tensor:
    config = theirs.config
    channels = config.get("vq_embed_dim") or config["latent_channels"]
    return torch.randn(2, channels, 4, 4, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_it_draws_what_diffusers_draws(kind: str, tmp_path: Path) -> None:
    theirs = make(kind)
    theirs.save_pretrained(tmp_path / "theirs")
    x = latents(theirs)
    shift = theirs.config.get("shift_factor") or 0.0
    expected = theirs.decode(x / theirs.config["scaling_factor"] + shift).sample
    assert expected.std() > 0.05

    decoder = load_decoder(tmp_path / "theirs")
    assert not any(name.startswith(("encoder", "quant_conv")) for name in decoder.weights)
    torch.testing.assert_close(decoder.build()(x), expected, rtol=0, atol=1e-5)
    assert image_shape(decoder, tuple(x.shape[1:])) == tuple(expected.shape[1:])

    decoder.save(tmp_path / "decoder.safetensors")
    again = load_decoder(tmp_path / "decoder.safetensors")
    assert again.header == decoder.header
    torch.testing.assert_close(again.build()(x), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_it_can_be_exported(kind: str, tmp_path: Path) -> None:
    theirs = make(kind)
    theirs.save_pretrained(tmp_path)
    module, x = load_decoder(tmp_path).build(), latents(theirs)[:1]
    program = torch.export.export(module, (x,))
    torch.testing.assert_close(program.module()(x), module(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["KL", "VQ", "tiny"])
def test_where_the_configuration_is_silent_diffusers_decides(kind: str, tmp_path: Path) -> None:
    theirs = make(kind)
    theirs.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["scaling_factor"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert load_decoder(tmp_path).header.latent_scale == theirs.config["scaling_factor"]


@torch.no_grad()
def test_old_names_of_attention(tmp_path: Path) -> None:
    make("KL").save_pretrained(tmp_path)
    expected = load_decoder(tmp_path).header.digest
    weights = load_file(tmp_path / WEIGHTS)
    for new, old in {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}.items():
        weights = {name.replace(f".{new}.", f".{old}."): value for name, value in weights.items()}
    save_file(weights, tmp_path / WEIGHTS)
    assert load_decoder(tmp_path).header.digest == expected


def test_nearest_by_hand() -> None:
    codebook = torch.tensor([[0.0, 0.0], [1.0, 1.0], [-2.0, 0.0]])
    z = torch.tensor([[0.9, 0.4, -1.2], [0.8, 0.1, -0.5]])[None, :, :, None]  # (1, 2, 3, 1)
    torch.testing.assert_close(nearest(z, codebook)[0, :, :, 0], codebook[[1, 0, 2]].t())


# What is refused


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"_class_name": "AsymmetricAutoencoderKL"}, "AsymmetricAutoencoderKL is an autoencoder that has no counterpart"),
        ({"latents_mean": [0.0] * 4}, "latents_mean is [0.0, 0.0, 0.0, 0.0]"),
        ({"norm_type": "spatial"}, "norm_type is 'spatial'"),
        ({"scaling_factor": 0}, "latent_scale"),
        ({"scaling_factor": "big"}, "latent_scale"),
        ({"latent_channels": [4]}, "config has [4] latent channels"),
    ],
)
def test_a_setting_that_is_not_known_is_named(changes: dict[str, Any], complaint: str, tmp_path: Path) -> None:
    make("KL").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(EdgeSDError, match=re.escape(complaint)):
        load_decoder(tmp_path)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"block_out_channels": [8, 8]}, "tensor decoder.conv_in.bias is (8,) there, and is (16,) here"),
        ({"norm_num_groups": 3}, "diffusers makes no AutoencoderKL of this configuration"),
        ({"up_block_types": ["UpBlock3D", "UpBlock3D"]}, "diffusers makes no AutoencoderKL of this configuration"),
        ({"use_post_quant_conv": False}, "tensor post_quant_conv.bias has no place there, and is (4,) here"),
    ],
)
def test_weights_and_configuration_that_do_not_fit(changes: dict[str, Any], complaint: str, tmp_path: Path) -> None:
    make("KL").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(EdgeSDError, match=re.escape(complaint)):
        load_decoder(tmp_path).build()


def test_tensors_that_are_unknown_missing_or_not_finite(tmp_path: Path) -> None:
    make("tiny").save_pretrained(tmp_path)
    weights = load_file(tmp_path / WEIGHTS)
    first = min(name for name in weights if name.startswith("decoder."))
    save_file({**weights, "loss.weight": np.zeros(3, np.float32)}, tmp_path / WEIGHTS)
    with pytest.raises(EdgeSDError, match=r"holds the tensor loss\.weight, which is unknown"):
        load_decoder(tmp_path)
    save_file({**weights, first: np.full_like(weights[first], np.nan)}, tmp_path / WEIGHTS)
    with pytest.raises(EdgeSDError, match=f"{re.escape(first)} holds a NaN"):
        load_decoder(tmp_path)
    save_file({name: value for name, value in weights.items() if name != first}, tmp_path / WEIGHTS)
    with pytest.raises(EdgeSDError, match=rf"{re.escape(first)} is \(.*\) there, and missing here"):
        load_decoder(tmp_path).build()


def test_our_file_when_it_is_broken(tmp_path: Path) -> None:
    make("tiny").save_pretrained(tmp_path / "theirs")
    decoder, path = load_decoder(tmp_path / "theirs"), tmp_path / "decoder.safetensors"
    decoder.save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-7])
    with pytest.raises(EdgeSDError, match="not a whole safetensors file"):
        load_decoder(path)
    path.write_bytes(whole[:-4] + bytes(4))
    with pytest.raises(EdgeSDError, match="have changed"):
        load_decoder(path)
    with pytest.raises(EdgeSDError, match="does not exist"):
        load_decoder(tmp_path / "none")


def test_latents_of_another_decoder(tmp_path: Path) -> None:
    make("KL").save_pretrained(tmp_path)
    with pytest.raises(EdgeSDError, match="takes 4 latent channels, these are 3"):
        image_shape(load_decoder(tmp_path), (3, 4, 4))


def test_without_diffusers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make("KL").save_pretrained(tmp_path)
    decoder = load_decoder(tmp_path)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(InstallationError, match="needs diffusers"):
        decoder.build()
