"""A UNet2DModel read from its folder predicts what diffusers' predicts; what has no counterpart is named."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from edge_sd.errors import EdgeSDError
from edge_sd.foreign import load_foreign
from edge_sd.foreign.unet import UNet2DConfig, read_unet_config
from edge_sd.models import PRESETS
from edge_sd.models.count import count

MakeTheirs = Callable[..., diffusers.UNet2DModel]

WEIGHTS = "diffusion_pytorch_model.safetensors"
FOUR = ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D")
FOUR_UP = ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D")

# As google/ddpm-cifar10-32 and CompVis/ldm-celebahq-256 are configured, at their widths.
CIFAR10: dict[str, Any] = {
    "sample_size": 32, "block_out_channels": (128, 256, 256, 256), "layers_per_block": 2, "norm_eps": 1e-6, "freq_shift": 1,
    "flip_sin_to_cos": False, "downsample_padding": 0, "attention_head_dim": None, "norm_num_groups": 32,
    "down_block_types": FOUR, "up_block_types": FOUR_UP,
}  # fmt: skip
CELEBAHQ: dict[str, Any] = {
    "sample_size": 64, "block_out_channels": (224, 448, 672, 896), "layers_per_block": 2, "attention_head_dim": 32,
    "norm_num_groups": 32, "down_block_types": ("DownBlock2D", *("AttnDownBlock2D",) * 3),
    "up_block_types": (*("AttnUpBlock2D",) * 3, "UpBlock2D"),
}  # fmt: skip

KINDS: dict[str, dict[str, Any]] = {
    "small": {},
    "sines first": {"flip_sin_to_cos": False},
    "sines first, odd width": {
        "flip_sin_to_cos": False, "block_out_channels": (15, 30), "norm_num_groups": 5, "attention_head_dim": 5,
    },
    "frequencies shifted": {"freq_shift": 1},
    "padded at the end": {"downsample_padding": 0},
    "another epsilon": {"norm_eps": 1e-2},
    "one head": {"attention_head_dim": None},
    "heads of 16": {"attention_head_dim": 16},
    "classes": {"num_class_embeds": 5},
    "scale and shift": {"resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 4},
    "one level": {"block_out_channels": (16,), "down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)},
    "attention everywhere": {"down_block_types": ("AttnDownBlock2D",) * 2, "up_block_types": ("AttnUpBlock2D",) * 2},
    "resampling in blocks": {
        "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "upsample_type": "resnet",
    },
    "resampling in blocks with attention": {
        "down_block_types": ("AttnDownBlock2D", "DownBlock2D"), "up_block_types": ("ResnetUpsampleBlock2D", "AttnUpBlock2D"),
        "downsample_type": "resnet",
    },
    "an old prefix": {"down_block_types": ("UNetResDownBlock2D", "UNetResAttnDownBlock2D")},
    "a list for a size": {"sample_size": [16, 16]},
    "swish": {"act_fn": "swish"},
    "DDPM, slim": {**CIFAR10, "sample_size": 16, "block_out_channels": (32, 64, 64, 64)},
    "LDM, slim": {**CELEBAHQ, "sample_size": 16, "block_out_channels": (32, 64, 96, 128)},
}  # fmt: skip


def edit(folder: Path, **changes: Any) -> None:
    """Change a folder's config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def inputs(theirs: diffusers.UNet2DModel) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """x, t and, where there are classes, y."""
    x = torch.randn(4, theirs.config.in_channels, 16, 16, generator=torch.Generator().manual_seed(1))
    y = torch.tensor([0, 4, 2, 2]) if theirs.config.num_class_embeds else None
    return x, torch.tensor([0.0, 1.0, 500.0, 999.0]), y


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_it_predicts_what_diffusers_predicts(kind: str, make_theirs: MakeTheirs, tmp_path: Path) -> None:
    theirs = make_theirs(**KINDS[kind])
    theirs.save_pretrained(tmp_path)
    ours = load_foreign(tmp_path).checkpoint.build()
    x, t, y = inputs(theirs)
    expected = theirs(x, t, class_labels=y).sample
    assert expected.std() > 0.1
    torch.testing.assert_close(ours(x, t, y), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("config", [CIFAR10, CELEBAHQ])
def test_the_published_configurations(config: dict[str, Any]) -> None:
    """As many parameters as diffusers' own, and where LDM is LDM, the preset's configuration."""
    with torch.device("meta"):
        theirs = diffusers.UNet2DModel(**config)
    _, ours = read_unet_config(config, Path("config.json"))
    assert count(ours).parameters == sum(parameter.numel() for parameter in theirs.parameters())
    if config is CELEBAHQ:
        assert ours == PRESETS["ffhq-ldm"].config


def test_defaults_are_those_of_diffusers() -> None:
    with torch.device("meta"):
        theirs = dict(diffusers.UNet2DModel().config)
    ours = UNet2DConfig().model_dump()
    assert {name: theirs[name] for name in ours} == ours
    assert {name for name in theirs if not name.startswith("_")} == set(ours)


# Files that differ in form only


@torch.no_grad()
def test_half_precision_and_old_names(make_theirs: MakeTheirs, tmp_path: Path) -> None:
    theirs = make_theirs()
    theirs.half().float().save_pretrained(tmp_path)
    expected = load_foreign(tmp_path).checkpoint
    weights = load_file(tmp_path / WEIGHTS)
    for new, old in {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}.items():
        weights = {name.replace(f".{new}.", f".{old}."): value for name, value in weights.items()}
    assert any(".proj_attn." in name for name in weights)
    (tmp_path / WEIGHTS).unlink()
    halves = {name: value.astype(np.float16) for name, value in weights.items()}
    save_file(halves, tmp_path / "diffusion_pytorch_model.fp16.safetensors")
    found = load_foreign(tmp_path).checkpoint
    assert found.header.digest == expected.header.digest
    assert {value.dtype for value in found.weights.values()} == {np.dtype(np.float32)}


def test_bfloat16(make_theirs: MakeTheirs, tmp_path: Path) -> None:
    make_theirs().bfloat16().save_pretrained(tmp_path)
    weights = load_foreign(tmp_path).checkpoint.weights
    assert {value.dtype for value in weights.values()} == {np.dtype(np.float32)}


def test_weights_in_several_files(folder: Path, make_theirs: MakeTheirs, tmp_path: Path) -> None:
    make_theirs().save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    assert load_foreign(tmp_path / "shards").checkpoint.header.digest == load_foreign(folder).checkpoint.header.digest
    next((tmp_path / "shards").glob("*.safetensors")).unlink()
    with pytest.raises(EdgeSDError, match="does not exist"):
        load_foreign(tmp_path / "shards")


# What is refused


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        (
            {"down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"]},
            "config.json: down_block_types holds 'CrossAttnDownBlock2D', which SpectralUNet has no counterpart for",
        ),
        ({"up_block_types": ["SkipUpBlock2D", "UpBlock2D"]}, "up_block_types holds 'SkipUpBlock2D'"),
        ({"down_block_types": ["DownBlock2D"]}, "1 down_block_types and 2 up_block_types for 2 block_out_channels"),
        ({"down_block_types": ["AttnDownBlock2D", "DownBlock2D"]}, "attention is at other levels on the way up"),
        ({"down_block_types": ["ResnetDownsampleBlock2D", "AttnDownBlock2D"]}, "some levels are left by a convolution"),
        ({"mid_block_type": None}, "mid_block_type is None"),
        ({"mid_block_scale_factor": 1.4}, "mid_block_scale_factor is 1.4"),
        ({"center_input_sample": True}, "center_input_sample is True"),
        ({"time_embedding_type": "fourier"}, "time_embedding_type is 'fourier'"),
        ({"time_embedding_dim": 16}, "time_embedding_dim is 16"),
        ({"act_fn": "gelu"}, "act_fn is 'gelu'"),
        ({"downsample_padding": 2}, "downsample_padding is 2"),
        ({"downsample_type": "pool"}, "downsample_type is 'pool'"),
        ({"upsample_type": "pool"}, "upsample_type is 'pool'"),
        ({"resnet_time_scale_shift": "spatial"}, "resnet_time_scale_shift is 'spatial'"),
        ({"resnet_time_scale_shift": "scale_shift"}, "attn_norm_num_groups is None beside norm_num_groups 4"),
        ({"attn_norm_num_groups": 2}, "attn_norm_num_groups is 2 beside norm_num_groups 4"),
        ({"add_attention": False}, "add_attention is False"),
        ({"class_embed_type": "timestep"}, "class_embed_type is 'timestep'"),
        ({"sample_size": None}, "sample_size is null"),
        ({"sample_size": [16, 32]}, "sample_size is 16×32"),
        ({"sample_size": 15}, "image_size 15 cannot be halved"),
        ({"out_channels": 6}, "out_channels is 6 for in_channels 3"),
        ({"block_out_channels": [16, 24]}, "block_out_channels holds 24, no multiple of the first, 16"),
        ({"attention_head_dim": 7}, "32 channels cannot be split into heads"),
        ({"norm_num_groups": 5}, "16 channels cannot be split into 5 norm groups"),
        ({"freq_shift": 8}, "embedding_shift 8 leaves none of the 8 frequencies"),
        ({"in_channels": "three"}, "in_channels"),
        ({"encoder_hid_dim": 5}, "encoder_hid_dim"),
        ({"_class_name": "UNet2DConditionModel"}, "UNet2DConditionModel has no counterpart"),
        ({"_class_name": None}, "has no _class_name"),
    ],
)
def test_a_setting_without_a_counterpart_is_named(changes: dict[str, Any], complaint: str, folder: Path) -> None:
    edit(folder, **changes)
    with pytest.raises(EdgeSDError, match=re.escape(complaint)):
        load_foreign(folder)


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("conv_in.bias", None, "the tensor conv_in.bias is missing"),
        ("class_embedding.weight", np.zeros((5, 64), np.float32), "holds the tensor class_embedding.weight, which"),
        ("conv_in.weight", np.zeros((16, 3, 5, 5), np.float32), "weight is (16, 3, 5, 5), config.json makes it (16, 3, 3, 3)"),
        ("mid_block.attentions.0.to_k.bias", np.zeros(31, np.float32), "to_k.bias is (31,), config.json makes it (32,)"),
        ("mid_block.resnets.0.time_emb_proj.bias", np.zeros(64, np.float32), "time_emb_proj.bias is (64,)"),
        ("conv_in.bias", np.full(16, np.nan, np.float32), "tensor conv_in.bias holds a NaN or an infinity"),
        ("conv_in.bias", np.full(16, np.inf, np.float32), "tensor conv_in.bias holds a NaN or an infinity"),
        ("conv_in.bias", np.zeros(16, np.int8), "tensor conv_in.bias is of torch.int8"),
    ],
)  # fmt: skip
def test_a_tensor_that_does_not_fit_is_named(name: str, value: np.ndarray | None, complaint: str, folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    weights.pop(name, None)
    if value is not None:
        weights[name] = value
    save_file(weights, folder / WEIGHTS)
    with pytest.raises(EdgeSDError, match=re.escape(complaint)):
        load_foreign(folder)
