"""The tensors of diffusers' UNet2DModel → those of SpectralUNet.

Ours differs in where things are kept: the blocks' time layers are the rows of one, `project`, in the order in which the blocks
run; q, k and v are one 1×1 convolution; and the sinusoid has its cosines first, for which the columns of the first time layer
change places where they came last.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from edge_sd.errors import EdgeSDError
from edge_sd.foreign.unet import UNet2DConfig
from edge_sd.models.config import ModelConfig


@dataclass(frozen=True)
class Part:
    """A piece of the network under its two names."""

    kind: Literal["layer", "block", "attention"]
    ours: str
    theirs: str


def parts(config: ModelConfig) -> Iterator[Part]:
    """The pieces of a U-Net, in the order in which they run; `config` has no gating and no context."""
    attends = [2**level in config.attention for level in range(config.levels)]
    block = config.resample == "block"

    def layer(ours: str, theirs: str, i: int, attention: bool) -> Iterator[Part]:
        yield Part("block", f"{ours}.block", f"{theirs}.resnets.{i}")
        if attention:
            yield Part("attention", f"{ours}.attention", f"{theirs}.attentions.{i}")

    yield Part("layer", "conv_in", "conv_in")
    place = 0
    for level in range(config.levels):
        for i in range(config.blocks):
            yield from layer(f"down.{place}", f"down_blocks.{level}", i, attends[level])
            place += 1
        if level < config.levels - 1:
            theirs = f"down_blocks.{level}.downsamplers.0"
            yield Part("block", f"down.{place}", theirs) if block else Part("layer", f"down.{place}", f"{theirs}.conv")
            place += 1
    yield from layer("middle.0", "mid_block", 0, True)
    yield Part("block", "middle.1.block", "mid_block.resnets.1")
    place = 0
    for j, level in enumerate(reversed(range(config.levels))):
        for i in range(config.blocks + 1):
            yield from layer(f"up.{place}", f"up_blocks.{j}", i, attends[level])
            place += 1
        if level:
            theirs = f"up_blocks.{j}.upsamplers.0"
            yield Part("block", f"up.{place}", theirs) if block else Part("layer", f"up.{place}.conv", f"{theirs}.conv")
            place += 1
    yield Part("layer", "norm_out", "conv_norm_out")
    yield Part("layer", "conv_out", "conv_out")
    yield Part("layer", "temporal_net.hidden", "time_embedding.linear_1")
    yield Part("layer", "temporal_net.out", "time_embedding.linear_2")


def map_weights(
    weights: Mapping[str, np.ndarray], theirs: UNet2DConfig, config: ModelConfig, source: Path
) -> dict[str, np.ndarray]:
    """Rename, join and reorder the tensors of a UNet2DModel (`theirs`; `config` is its translation), float32.

    Raises:
        EdgeSDError: a tensor is missing, has another shape than the configuration gives it, or is unknown; it is named.
    """
    import torch

    from edge_sd.models.unet import SpectralUNet

    with torch.device("meta"):
        expected = {name: tuple(tensor.shape) for name, tensor in SpectralUNet(config).state_dict().items()}
    left = dict(weights)

    def take(name: str, shape: tuple[int, ...]) -> np.ndarray:
        if name not in left:
            raise EdgeSDError(f"{source}: the tensor {name} is missing", "does config.json belong to these weights?")
        value = left.pop(name)
        if value.shape != shape:
            raise EdgeSDError(
                f"{source}: tensor {name} is {value.shape}, config.json makes it {shape}",
                "does config.json belong to these weights?",
            )
        return value

    out: dict[str, np.ndarray] = {}
    rows: dict[str, list[np.ndarray]] = {"weight": [], "bias": []}
    for part in parts(config):
        for end in ("weight", "bias"):
            if part.kind == "layer":
                out[f"{part.ours}.{end}"] = take(f"{part.theirs}.{end}", expected[f"{part.ours}.{end}"])
            elif part.kind == "block":
                for name, other in (("norm1",) * 2, ("conv1",) * 2, ("norm2",) * 2, ("conv2",) * 2, ("skip", "conv_shortcut")):
                    ours = f"{part.ours}.{name}.{end}"
                    if ours in expected:
                        out[ours] = take(f"{part.theirs}.{other}.{end}", expected[ours])
                width = len(out[f"{part.ours}.conv1.{end}"]) * (2 if config.scale_shift else 1)
                row = (width, 4 * config.width) if end == "weight" else (width,)
                rows[end].append(take(f"{part.theirs}.time_emb_proj.{end}", row))
            else:
                ours = f"{part.ours}.norm.{end}"
                out[ours] = take(f"{part.theirs}.group_norm.{end}", expected[ours])
                channels = expected[ours][0]
                linear = (channels, channels) if end == "weight" else (channels,)
                qkv = [take(f"{part.theirs}.{name}.{end}", linear) for name in ("to_q", "to_k", "to_v")]
                for name, value in (("qkv", np.concatenate(qkv)), ("out", take(f"{part.theirs}.to_out.0.{end}", linear))):
                    out[f"{part.ours}.{name}.{end}"] = value.reshape(expected[f"{part.ours}.{name}.{end}"])
    for end, values in rows.items():
        out[f"temporal_net.project.{end}"] = np.concatenate(values)
    if config.num_classes is not None:
        out["temporal_net.classes.weight"] = take("class_embedding.weight", expected["temporal_net.classes.weight"])
    if not theirs.flip_sin_to_cos:
        sines, cosines, odd = np.split(out["temporal_net.hidden.weight"], [config.width // 2, config.width // 2 * 2], axis=1)
        out["temporal_net.hidden.weight"] = np.concatenate([cosines, sines, odd], axis=1)
    if left:
        others = f" and {len(left) - 1} more" if len(left) > 1 else ""
        raise EdgeSDError(
            f"{source} holds the tensor {min(left)}{others}, which SpectralUNet has no counterpart for",
            "does config.json belong to these weights?",
        )
    return out
