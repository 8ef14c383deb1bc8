"""The U-Net: its two halves make the whole, its parts equal closed forms, and as LDM it equals diffusers' weight for weight."""

import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import nn

from edge_sd.errors import UsageError
from edge_sd.models import ModelConfig
from edge_sd.models.blocks import ResBlock, SelfAttention, SpatialTransformer, TokenAttention, sinusoid
from edge_sd.models.unet import SpectralUNet, UNetLayer, Unit

MakeModel = Callable[..., SpectralUNet]

# name → (changes to the tiny configuration, whether it takes a class, whether it takes a context)
KINDS: dict[str, tuple[dict[str, Any], bool, bool]] = {
    "gated": ({}, False, False),
    "plain": ({"gating": False}, False, False),
    "gated with db2": ({"wavelet": "db2"}, False, False),
    "resampling in blocks": ({"gating": False, "resample": "block", "scale_shift": True}, False, False),
    "gated resampling in blocks": ({"resample": "block", "scale_shift": True}, False, False),
    "number of heads": ({"heads": 4, "head_channels": None, "attention": (1, 2)}, False, False),
    "one level": ({"multipliers": (2,)}, False, False),
    "three levels": ({"multipliers": (1, 2, 3), "blocks": 2, "attention": (2, 4)}, False, False),
    "other channels": ({"in_channels": 4, "out_channels": 2}, False, False),
    "class added": ({"num_classes": 5}, True, False),
    "class as context": ({"num_classes": 5, "class_conditioning": "context", "context_dim": 6, "context_tokens": 2}, True, False),
    "context": ({"context_dim": 6, "context_tokens": 3, "transformer_depth": 2}, False, True),
    "class added and context": ({"num_classes": 5, "context_dim": 6, "context_tokens": 3}, True, True),
}


def inputs(kind: str, model: SpectralUNet, batch: int = 3) -> tuple[torch.Tensor, ...]:
    """x, t, y, context, as far as the model takes them."""
    config, generator = model.config, torch.Generator().manual_seed(0)
    x = torch.randn(batch, *config.sample_shape, generator=generator)
    t = torch.rand(batch, generator=generator) * 999
    y = torch.arange(batch) % 5 if KINDS[kind][1] else None
    context = torch.randn(batch, config.context_tokens, config.context_dim, generator=generator) if KINDS[kind][2] else None
    return x, t, y, context


# The two halves


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_forward_is_denoise_after_temporal(kind: str, make_model: MakeModel) -> None:
    model = make_model(**KINDS[kind][0])
    x, t, y, context = inputs(kind, model)
    features = model.temporal(t, y, context)
    assert features.shape == (len(x), model.feature_width)
    out = model(x, t, y, context)
    assert out.shape == (len(x), model.config.out_channels, *x.shape[2:])
    torch.testing.assert_close(out, model.denoise(x, features), rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_each_image_of_a_batch_is_computed_by_itself(kind: str, make_model: MakeModel) -> None:
    model = make_model(**KINDS[kind][0])
    batch = inputs(kind, model)
    together = model(*batch)
    for i in range(len(together)):
        alone = model(*(value if value is None else value[i : i + 1] for value in batch))
        torch.testing.assert_close(alone[0], together[i], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_everything_that_is_given_matters(kind: str, make_model: MakeModel) -> None:
    """Each of x, t, y and context alone changes the prediction; every single feature does too."""
    model = make_model(**KINDS[kind][0])
    x, t, y, context = inputs(kind, model)
    out = model(x, t, y, context)
    changed = [(x + 1, t, y, context), (x, t + 1, y, context)]
    changed += [(x, t, (y + 1) % 5, context)] if y is not None else []
    changed += [(x, t, y, context + 1)] if context is not None else []
    for other in changed:
        assert not torch.allclose(model(*other), out, atol=1e-6)

    features = model.temporal(t, y, context)[:1].requires_grad_()
    with torch.enable_grad():
        model.denoise(x[:1], features).square().sum().backward()
    assert features.grad is not None
    assert features.grad.all()


@torch.no_grad()
def test_the_program_holds_no_time(make_model: MakeModel) -> None:
    """The same features give the same bits, whatever becomes of the time layers."""
    model = make_model()
    x, t, *_ = inputs("gated", model)
    features = model.temporal(t)
    before = model.denoise(x, features)
    for parameter in model.temporal_net.parameters():
        parameter.fill_(torch.nan)
    torch.testing.assert_close(model.denoise(x, features), before, rtol=0, atol=0)


def test_feature_width_by_hand(make_model: MakeModel) -> None:
    # Residual blocks: down 8, 16; middle 16, 16; up 16, 16, 8, 8.
    assert make_model().feature_width == 8 + 16 + 16 + 16 + 16 + 16 + 8 + 8
    assert make_model(scale_shift=True).feature_width == 2 * 104
    # Two more residual blocks, which resample: 8 on the way down, 16 on the way up.
    assert make_model(resample="block").feature_width == 104 + 8 + 16
    assert make_model(context_dim=6, context_tokens=3).feature_width == 104 + 18
    assert make_model(num_classes=5).feature_width == 104


@torch.no_grad()
def test_context_is_the_end_of_the_features(make_model: MakeModel) -> None:
    model = make_model(context_dim=6, context_tokens=3)
    _, t, _, context = inputs("context", model)
    torch.testing.assert_close(model.temporal(t, None, context)[:, -18:], context.flatten(1))


@torch.no_grad()
def test_a_class_is_the_context_of_its_embedding(make_model: MakeModel) -> None:
    model = make_model(**KINDS["class as context"][0])
    x, t, y, _ = inputs("class as context", model)
    tokens = model.temporal_net.classes.weight[y].view(3, 2, 6)
    torch.testing.assert_close(model(x, t, y), model(x, t, y, tokens))


@torch.no_grad()
def test_taps_are_named_by_where_and_how_wide(make_model: MakeModel) -> None:
    model = make_model()
    x, t, *_ = inputs("gated", model)
    out, taps = model.denoise_with_taps(x, model.temporal(t))
    shapes = {name: tuple(tap.shape[1:]) for name, tap in taps.items()}
    assert shapes == {
        "encoder 16": (8, 16, 16),
        "encoder 8": (16, 8, 8),
        "middle": (16, 8, 8),
        "decoder 8": (16, 8, 8),
        "decoder 16": (8, 16, 16),
    }
    torch.testing.assert_close(out, model.conv_out(nn.functional.silu(model.norm_out(taps["decoder 16"]))), rtol=0, atol=0)


@torch.no_grad()
def test_other_sizes_than_its_own_as_long_as_they_can_be_halved(make_model: MakeModel) -> None:
    model = make_model()
    features = model.temporal(torch.tensor([3.0]))
    assert model.denoise(torch.zeros(1, 3, 8, 12), features).shape == (1, 3, 8, 12)


# Part by part


def walked(model: SpectralUNet, x: torch.Tensor, features: torch.Tensor, change: str = "") -> tuple[list[Unit], torch.Tensor]:
    """Every part of a walk, and the prediction; of the part `change` the output is doubled."""
    walk, units = model.walk(x, features), []
    unit = next(walk)
    while True:
        units.append(unit)
        out = unit.module(*unit.inputs)
        try:
            unit = walk.send(2 * out if unit.name == change else out)
        except StopIteration as end:
            return units, end.value


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_walk_is_denoise(kind: str, make_model: MakeModel) -> None:
    model = make_model(**KINDS[kind][0])
    x, t, y, context = inputs(kind, model)
    features = model.temporal(t, y, context)
    units, out = walked(model, x, features)
    torch.testing.assert_close(out, model.denoise(x, features), rtol=0, atol=0)
    assert [unit.name for unit in units] == model.unit_names()
    assert len(set(model.unit_names())) == len(units)
    modules = dict(model.named_modules())
    assert all(unit.module is modules[unit.name] for unit in units)


@torch.no_grad()
def test_a_walk_passes_every_weight_but_the_last_norms(make_model: MakeModel) -> None:
    """What is learnt part by part is the whole denoiser: norm_out alone lies between two parts."""
    model = make_model()
    units, _ = walked(model, torch.randn(1, 3, 16, 16), torch.randn(1, model.feature_width))
    passed = {id(parameter) for unit in units for parameter in unit.module.parameters()}
    left = {name for name, parameter in model.named_parameters() if id(parameter) not in passed}
    assert {name.partition(".")[0] for name in left} == {"norm_out", "temporal_net"}


@torch.no_grad()
def test_a_walk_goes_on_with_what_it_is_sent(make_model: MakeModel) -> None:
    model = make_model()
    x, features = torch.randn(2, 3, 16, 16), torch.randn(2, model.feature_width)
    _, out = walked(model, x, features)
    for name in model.unit_names():
        _, other = walked(model, x, features, change=name)
        assert not torch.allclose(other, out, atol=1e-5), name
    torch.testing.assert_close(walked(model, x, features, change="conv_out")[1], 2 * out, rtol=0, atol=0)


# What is refused


@pytest.mark.parametrize("size", [(16, 15), (15, 16), (7, 7)])
def test_a_sample_that_cannot_be_halved_is_named(size: tuple[int, int], make_model: MakeModel) -> None:
    model = make_model(gating=False)
    with pytest.raises(UsageError, match=re.escape(f"{size[0]}×{size[1]} cannot be halved 1 times")):
        model.denoise(torch.zeros(1, 3, *size), torch.zeros(1, model.feature_width))


def test_classes_and_contexts_that_are_missing_or_unwanted(make_model: MakeModel) -> None:
    t, y = torch.tensor([3.0]), torch.tensor([1])
    with pytest.raises(UsageError, match="needs a class"):
        make_model(num_classes=5).temporal(t)
    with pytest.raises(UsageError, match="knows no classes"):
        make_model().temporal(t, y)
    with pytest.raises(UsageError, match="context of 3 tokens of 6"):
        make_model(context_dim=6, context_tokens=3).temporal(t)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"image_size": 17}, "17 cannot be halved 1 times.*a multiple of 2 can"),
        ({"image_size": 18, "multipliers": (1, 2, 2)}, "18 cannot be halved 2 times.*a multiple of 4 can"),
        ({"norm_groups": 3}, "8 channels cannot be split into 3 norm groups"),
        ({"head_channels": 3}, "16 channels cannot be split into heads"),
        ({"heads": 2}, "either heads or head_channels"),
        ({"head_channels": None}, "either heads or head_channels"),
        ({"class_conditioning": "context", "num_classes": 5}, "needs num_classes and context_dim"),
        ({"class_conditioning": "context", "context_dim": 5}, "needs num_classes and context_dim"),
        ({"multipliers": ()}, "multipliers"),
        ({"width": 0}, "width"),
        ({"dropout": 1.0}, "dropout"),
        ({"resample": "pool"}, "resample"),
        ({"depth": 3}, "depth"),
    ],
)
def test_a_configuration_that_cannot_be_built(changes: dict[str, Any], complaint: str, tiny_config: ModelConfig) -> None:
    with pytest.raises(ValidationError, match=complaint):
        ModelConfig.model_validate({**tiny_config.model_dump(), **changes})


def test_a_configuration_cannot_be_changed_afterwards(tiny_config: ModelConfig) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        tiny_config.width = 16  # type: ignore[misc]


# Its parts


def softmax_attention(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """(N, d), (M, d), (M, d) → (N, d), one head."""
    scores = np.exp(q @ k.T / math.sqrt(q.shape[-1]))
    return scores / scores.sum(-1, keepdims=True) @ v


@torch.no_grad()
def test_self_attention_is_softmax_attention() -> None:
    torch.manual_seed(0)
    attention = SelfAttention(12, groups=3, heads=None, head_channels=4).double()
    attention.out.reset_parameters()
    x = torch.randn(2, 12, 3, 5, dtype=torch.float64)
    normed = attention.norm(x).flatten(2).transpose(1, 2).numpy()  # (B, tokens, C)
    qkv = normed @ attention.qkv.weight[:, :, 0, 0].numpy().T + attention.qkv.bias.numpy()
    heads = [[softmax_attention(*(y[:, 12 * i + 4 * h : 12 * i + 4 * h + 4] for i in range(3))) for h in range(3)] for y in qkv]
    mixed = np.concatenate(np.array(heads).transpose(1, 0, 2, 3), axis=-1)
    expected = x.numpy() + (mixed @ attention.out.weight[:, :, 0, 0].numpy().T + attention.out.bias.numpy()).transpose(
        0, 2, 1
    ).reshape(x.shape)
    np.testing.assert_allclose(attention(x).numpy(), expected, rtol=0, atol=1e-12)


@torch.no_grad()
def test_token_attention_is_softmax_attention_over_the_context() -> None:
    torch.manual_seed(0)
    attention = TokenAttention(8, heads=2, context_dim=6).double()
    x, context = torch.randn(2, 5, 8, dtype=torch.float64), torch.randn(2, 3, 6, dtype=torch.float64)
    weight = {name: getattr(attention, name).weight.numpy().T for name in ("q", "k", "v", "out")}
    for i in range(2):
        q, k, v = x[i].numpy() @ weight["q"], context[i].numpy() @ weight["k"], context[i].numpy() @ weight["v"]
        mixed = np.concatenate([softmax_attention(q[:, h], k[:, h], v[:, h]) for h in (slice(0, 4), slice(4, 8))], axis=-1)
        expected = mixed @ weight["out"] + attention.out.bias.numpy()
        np.testing.assert_allclose(attention(x, context)[i].numpy(), expected, rtol=0, atol=1e-12)


@given(st.lists(st.floats(0, 999), min_size=1, max_size=4), st.integers(2, 33))
def test_sinusoid_is_cosines_then_sines(times: list[float], width: int) -> None:
    embedding = sinusoid(torch.tensor(times, dtype=torch.float64), width)
    half = width // 2
    for t, row in zip(times, embedding.tolist(), strict=True):
        angles = [t * 10_000 ** (-i / half) for i in range(half)]
        assert row == pytest.approx([*map(math.cos, angles), *map(math.sin, angles)] + [0.0] * (width % 2), abs=1e-9)


# diffusers' U-Net with the same weights


def pairs(ours: SpectralUNet, theirs: nn.Module) -> Iterator[tuple[nn.Module, nn.Module]]:
    """Blocks that do the same, in the order in which they run."""
    mine: list[nn.Module] = []
    for layer in [*ours.down, *ours.middle, *ours.up]:
        mine += [layer.block, layer.attention] if isinstance(layer, UNetLayer) else [layer]
    other: list[nn.Module | None] = []
    for part in [*theirs.down_blocks, theirs.mid_block, *theirs.up_blocks]:
        attentions = list(getattr(part, "attentions", []))
        for i, resnet in enumerate(part.resnets):
            other += [resnet, attentions[i] if i < len(attentions) else None]
        other += [*(getattr(part, "downsamplers", None) or []), *(getattr(part, "upsamplers", None) or [])]
    return zip(mine, other, strict=True)


def same(weight: nn.Module, other: nn.Module) -> None:
    """Take over one layer; a 1×1 convolution may stand for a linear layer."""
    for mine, theirs in zip(weight.parameters(), other.parameters(), strict=True):
        theirs.copy_(mine.reshape(theirs.shape))


def take_over(ours: SpectralUNet, theirs: nn.Module) -> None:
    same(ours.conv_in, theirs.conv_in)
    same(ours.norm_out, theirs.conv_norm_out)
    same(ours.conv_out, theirs.conv_out)
    same(ours.temporal_net.hidden, theirs.time_embedding.linear_1)
    same(ours.temporal_net.out, theirs.time_embedding.linear_2)
    if ours.config.num_classes:
        same(ours.temporal_net.classes, theirs.class_embedding)
    column = 0
    for mine, other in pairs(ours, theirs):
        if isinstance(mine, ResBlock):
            for name in ("norm1", "conv1", "norm2", "conv2"):
                same(getattr(mine, name), getattr(other, name))
            if isinstance(mine.skip, nn.Conv2d):
                same(mine.skip, other.conv_shortcut)
            rows = slice(column, column + mine.feature_width)
            other.time_emb_proj.weight.copy_(ours.temporal_net.project.weight[rows])
            other.time_emb_proj.bias.copy_(ours.temporal_net.project.bias[rows])
            column = rows.stop
        elif isinstance(mine, SelfAttention):
            same(mine.norm, other.group_norm)
            same(mine.out, other.to_out[0])
            for i, name in enumerate(("to_q", "to_k", "to_v")):
                getattr(other, name).weight.copy_(mine.qkv.weight[:, :, 0, 0].chunk(3)[i])
                getattr(other, name).bias.copy_(mine.qkv.bias.chunk(3)[i])
        elif mine is not None:
            same(mine, other)
    assert column == ours.temporal_net.project.out_features


@pytest.mark.parametrize("changes", [{}, {"num_classes": 5}, {"scale_shift": True}, {"resample": "block", "scale_shift": True}])
@torch.no_grad()
def test_ldm_is_diffusers_unet(changes: dict[str, Any], make_model: MakeModel) -> None:
    block = changes.get("resample") == "block"  # diffusers' blocks that resample inside have no attention
    ours = make_model(gating=False, multipliers=(1, 2, 3), blocks=2, attention=() if block else (2,), **changes)
    theirs = diffusers.UNet2DModel(
        sample_size=16,
        block_out_channels=(8, 16, 24),
        down_block_types=("ResnetDownsampleBlock2D",) * 2 + ("DownBlock2D",)
        if block
        else ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        up_block_types=(*("ResnetUpsampleBlock2D",) * 2, "UpBlock2D") if block else ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
        norm_num_groups=4,
        attn_norm_num_groups=4,
        downsample_padding=1,
        resnet_time_scale_shift="scale_shift" if "scale_shift" in changes else "default",
        num_class_embeds=changes.get("num_classes"),
    ).eval()
    take_over(ours, theirs)
    x, t, y, _ = inputs("class added" if "num_classes" in changes else "plain", ours)
    expected = theirs(x, t, class_labels=y).sample
    assert expected.std() > 0.1
    torch.testing.assert_close(ours(x, t, y), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_transformer_is_diffusers() -> None:
    torch.manual_seed(0)
    ours = SpatialTransformer(16, groups=4, heads=2, head_channels=None, context_dim=6, depth=2)
    ours.proj_out.reset_parameters()
    theirs = Transformer2DModel(2, 8, in_channels=16, num_layers=2, norm_num_groups=4, cross_attention_dim=6).eval()
    for name in ("norm", "proj_in", "proj_out"):
        same(getattr(ours, name), getattr(theirs, name))
    for mine, other in zip(ours.layers, theirs.transformer_blocks, strict=True):
        for name in ("norm1", "norm2", "norm3"):
            same(getattr(mine, name), getattr(other, name))
        for attention, reference in ((mine.attention, other.attn1), (mine.cross_attention, other.attn2)):
            for name in ("q", "k", "v"):
                same(getattr(attention, name), getattr(reference, f"to_{name}"))
            same(attention.out, reference.to_out[0])
        same(mine.gate_in, other.ff.net[0].proj)
        same(mine.gate_out, other.ff.net[2])
    x, context = torch.randn(2, 16, 4, 6), torch.randn(2, 3, 6)
    torch.testing.assert_close(ours(x, context), theirs(x, context, return_dict=False)[0], rtol=1e-5, atol=1e-5)
