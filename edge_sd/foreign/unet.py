"""The configuration of diffusers' UNet2DModel → ours, or the name of what has no counterpart.

Both are the U-Net of DDPM (2006.11239) and latent diffusion (2112.10752).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PositiveInt, ValidationError, field_validator

from edge_sd.errors import EdgeSDError
from edge_sd.foreign.weights import settings_of
from edge_sd.models.config import ModelConfig
from edge_sd.validation import Record, first_fault


class UNet2DConfig(Record):
    """The settings of a `UNet2DModel`, with its defaults (diffusers 0.42)."""

    sample_size: PositiveInt | tuple[PositiveInt, PositiveInt] | None = None
    in_channels: PositiveInt = 3
    out_channels: PositiveInt = 3
    center_input_sample: bool = False
    time_embedding_type: str = "positional"
    time_embedding_dim: PositiveInt | None = None
    freq_shift: int = Field(default=0, ge=0)
    flip_sin_to_cos: bool = True
    down_block_types: tuple[str, ...] = ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D")
    mid_block_type: str | None = "UNetMidBlock2D"
    up_block_types: tuple[str, ...] = ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D")
    block_out_channels: tuple[PositiveInt, ...] = Field(default=(224, 448, 672, 896), min_length=1)
    layers_per_block: PositiveInt = 2
    mid_block_scale_factor: float = 1
    downsample_padding: int = 1
    downsample_type: str | None = "conv"
    upsample_type: str | None = "conv"
    dropout: float = 0.0
    act_fn: str = "silu"
    attention_head_dim: PositiveInt | None = 8
    norm_num_groups: PositiveInt = 32
    attn_norm_num_groups: PositiveInt | None = None
    norm_eps: float = 1e-5
    resnet_time_scale_shift: str = "default"
    add_attention: bool = True
    class_embed_type: str | None = None
    num_class_embeds: PositiveInt | None = None
    num_train_timesteps: int | None = None  # of a learnt embedding of time only

    @field_validator("down_block_types", "up_block_types")
    @classmethod
    def _without_prefix(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(name.removeprefix("UNetRes") for name in names)  # as diffusers reads them


# Setting → the values that SpectralUNet has a counterpart for.
_SUPPORTED: dict[str, tuple[Any, ...]] = {
    "center_input_sample": (False,),
    "time_embedding_type": ("positional",),
    "mid_block_type": ("UNetMidBlock2D",),
    "mid_block_scale_factor": (1,),
    "downsample_padding": (1, 0),
    "downsample_type": ("conv", "resnet", None),
    "upsample_type": ("conv", "resnet", None),
    "act_fn": ("silu", "swish"),
    "resnet_time_scale_shift": ("default", "scale_shift"),
    "add_attention": (True,),
    "class_embed_type": (None,),
}
_DOWN = ("DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D")
_UP = ("UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D")


def read_unet_config(values: Mapping[str, Any], source: Path) -> tuple[UNet2DConfig, ModelConfig]:
    """Translate what a UNet2DModel's `config.json` (`source`, for the messages) holds.

    Raises:
        EdgeSDError: a setting that SpectralUNet has no counterpart for, by name, or a value that cannot be.
    """
    theirs = settings_of(UNet2DConfig, values, source)

    def refuse(what: str, hint: str) -> EdgeSDError:
        return EdgeSDError(f"{source}: {what}, which SpectralUNet has no counterpart for", hint)

    for field, supported in _SUPPORTED.items():
        if (value := getattr(theirs, field)) not in supported:
            raise refuse(f"{field} is {value!r}", f"it has {', '.join(map(repr, supported))}")
    for field, known in (("down_block_types", _DOWN), ("up_block_types", _UP)):
        for name in getattr(theirs, field):
            if name not in known:
                raise refuse(f"{field} holds {name!r}", f"it has {', '.join(known)}")
    width, levels = theirs.block_out_channels[0], len(theirs.block_out_channels)
    if not len(theirs.down_block_types) == len(theirs.up_block_types) == levels:
        raise EdgeSDError(
            f"{source}: {len(theirs.down_block_types)} down_block_types and {len(theirs.up_block_types)} up_block_types for "
            f"{levels} block_out_channels",
            "compare it with what diffusers writes for this class",
        )
    size = theirs.sample_size
    if size is None:
        raise refuse("sample_size is null", "give the height and width that it was trained with")
    if isinstance(size, tuple):
        if size[0] != size[1]:
            raise refuse(f"sample_size is {size[0]}×{size[1]}", "it has squares")
        size = size[0]
    if theirs.in_channels != theirs.out_channels:
        raise refuse(
            f"out_channels is {theirs.out_channels} for in_channels {theirs.in_channels} (a learnt variance, a condition)",
            "it predicts as many channels as it takes",
        )
    for channels in theirs.block_out_channels:
        if channels % width:
            raise refuse(f"block_out_channels holds {channels}, no multiple of the first, {width}", "it has multiples")
    if theirs.time_embedding_dim not in (None, 4 * width):
        raise refuse(f"time_embedding_dim is {theirs.time_embedding_dim}", f"it has {4 * width}")
    attention = [name.startswith("Attn") for name in theirs.down_block_types]
    if attention != [name.startswith("Attn") for name in reversed(theirs.up_block_types)]:
        raise refuse("attention is at other levels on the way up than on the way down", "it has it at the same levels")
    middle_norm = theirs.norm_num_groups if theirs.resnet_time_scale_shift == "default" else None
    if (theirs.attn_norm_num_groups or middle_norm) != theirs.norm_num_groups:
        raise refuse(
            f"attn_norm_num_groups is {theirs.attn_norm_num_groups} beside norm_num_groups {theirs.norm_num_groups} and "
            f"resnet_time_scale_shift {theirs.resnet_time_scale_shift!r}",
            "it has norm_num_groups in every norm",
        )
    ways = {_resampling(name, theirs.downsample_type) for name in theirs.down_block_types[:-1]}
    ways |= {_resampling(name, theirs.upsample_type) for name in theirs.up_block_types[:-1]}
    if len(ways) > 1:
        raise refuse("some levels are left by a convolution and some by a residual block", "it has one way for all of them")
    ours = {
        "image_size": size,
        "in_channels": theirs.in_channels,
        "out_channels": theirs.out_channels,
        "width": width,
        "multipliers": tuple(channels // width for channels in theirs.block_out_channels),
        "blocks": theirs.layers_per_block,
        "attention": tuple(2**level for level in range(levels) if attention[level]),
        "head_channels": theirs.attention_head_dim,
        "heads": 1 if theirs.attention_head_dim is None else None,
        "resample": ways.pop() if ways else "conv",
        "scale_shift": theirs.resnet_time_scale_shift == "scale_shift",
        "norm_groups": theirs.norm_num_groups,
        "norm_eps": theirs.norm_eps,
        "embedding_shift": theirs.freq_shift,
        "down_padding": "both" if theirs.downsample_padding else "end",
        "dropout": theirs.dropout,
        "num_classes": theirs.num_class_embeds,
    }
    try:
        return theirs, ModelConfig.model_validate(ours)
    except ValidationError as error:
        raise EdgeSDError(f"{source}: {first_fault(error)}", "compare it with what diffusers writes for this class") from error


def _resampling(block: str, kind: str | None) -> Literal["conv", "block"]:
    """How a block type leaves its level; only those with attention heed `downsample_type` and `upsample_type`."""
    if block.startswith("Attn"):
        return "block" if kind == "resnet" else "conv"
    return "block" if block.startswith("Resnet") else "conv"
