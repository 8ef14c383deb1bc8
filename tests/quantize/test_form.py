"""The form that a model is quantized in: it denoises as the model does, and targets change nothing of it but its layout."""

import copy
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from edge_sd.export import DenoiserProgram, targets
from edge_sd.models.attention_forms import FoldedSelfAttention, TokenSelfAttention
from edge_sd.models.gating import WaveletUp
from edge_sd.models.rewrites import SplitConv, rewritten
from edge_sd.models.unet import SpectralUNet
from edge_sd.models.wavelet_forms import JoinedWaveletUp
from edge_sd.quantize.form import FEW_TOKENS, attention_tokens, quantizable_form
from edge_sd.quantize.grid import WeightGrid, activation_grid, rounded_weight, symmetric_grid, weight_scales
from edge_sd.quantize.layers import QuantizedConv, QuantizedLinear, layers_of, points_of

MakeModel = Callable[..., SpectralUNet]

MODELS: dict[str, dict[str, Any]] = {
    "gated": {"image_size": 8},
    "plain": {"image_size": 8, "gating": False},
    "Church": {"image_size": 8, "gating": False, "resample": "block", "scale_shift": True},
    "gated Church": {"image_size": 8, "resample": "block", "in_channels": 4, "out_channels": 4, "head_channels": 4},
    "padded at the end": {"image_size": 8, "gating": False, "down_padding": "end"},
    "class added": {"image_size": 8, "num_classes": 3},
    "classes as context": {
        "image_size": 8, "num_classes": 3, "class_conditioning": "context", "context_dim": 6, "context_tokens": 2,
    },
    "db2": {"image_size": 8, "wavelet": "db2"},
    "few and many tokens": {"image_size": 16, "attention": (1,), "head_channels": 4},
    "1024 tokens": {"image_size": 32, "multipliers": (1,), "attention": (1,), "gating": False},
}  # fmt: skip


def inputs(model: SpectralUNet, batch: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(batch, *model.config.sample_shape, generator=generator)
    return x, torch.randn(batch, model.feature_width, generator=generator)


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_it_denoises_as_the_model(name: str, make_model: MakeModel) -> None:
    model = make_model(**MODELS[name])
    x, features = inputs(model)
    expected = copy.deepcopy(model).double().denoise(x.double(), features.double())
    assert 0.05 < expected.std() < 20
    form = quantizable_form(model)
    torch.testing.assert_close(form.denoise(x, features).double(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_the_model_stays_as_it_is(name: str, make_model: MakeModel) -> None:
    model = make_model(**MODELS[name]).train()
    kinds = [(part, type(module)) for part, module in model.named_modules()]
    before = {part: value.clone() for part, value in model.state_dict().items()}
    form = quantizable_form(model)
    for parameter in form.parameters():
        parameter.fill_(float("nan"))  # nothing is shared
    assert [(part, type(module)) for part, module in model.named_modules()] == kinds
    assert all(torch.equal(value, before[part]) for part, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(parameter.requires_grad for parameter in form.parameters())
    assert model.training
    assert not any(part.training for part in form.modules())


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_time_is_left_alone(name: str, make_model: MakeModel) -> None:
    """TFMQ-DM: temporal features are the plan's, in full precision."""
    model = make_model(**MODELS[name])
    form = quantizable_form(model)
    kinds = [[(part, type(module)) for part, module in of.temporal_net.named_modules()] for of in (model, form)]
    assert kinds[0] == kinds[1]
    t = torch.rand(3) * 999
    y = torch.arange(3) if model.config.num_classes else None
    torch.testing.assert_close(form.temporal(t, y), model.temporal(t, y), rtol=0, atol=0)
    assert not [part for part in [*layers_of(form), *points_of(form)] if part.startswith("temporal")]


# Which form


def test_attention_over_few_tokens_is_folded_over_many_by_tokens(make_model: MakeModel) -> None:
    model = make_model(**MODELS["few and many tokens"])
    tokens = attention_tokens(model.config)
    assert tokens == {"down.0.attention": 256, "middle.0.attention": 64, "up.3.attention": 256, "up.4.attention": 256}
    assert FEW_TOKENS == 64
    parts = dict(quantizable_form(model).named_modules())
    for name, count in tokens.items():
        assert type(parts[name]) is (FoldedSelfAttention if count <= 64 else TokenSelfAttention)
        kind = QuantizedConv if count <= 64 else QuantizedLinear
        assert {type(parts[f"{name}.{layer}"]) for layer in ("q", "k", "v", "out")} == {kind}


def test_attention_tokens_of_no_attention(make_model: MakeModel) -> None:
    """Context makes transformers of them, which see tokens anyway."""
    assert attention_tokens(make_model(**MODELS["classes as context"]).config) == {}
    assert attention_tokens(make_model(attention=()).config).keys() == {"middle.0.attention"}


def test_every_skip_that_is_joined_is_split(make_model: MakeModel) -> None:
    form = quantizable_form(make_model())
    found = {name for name, part in form.named_modules() if isinstance(part, SplitConv)}
    assert found == {f"up.{index}.block.skip" for index in (0, 1, 3, 4)}
    assert all({f"{name}.first", f"{name}.second"} <= layers_of(form).keys() for name in found)


def test_only_haar_is_a_butterfly(make_model: MakeModel) -> None:
    kinds = [Counter(map(type, quantizable_form(make_model(wavelet=wavelet)).modules())) for wavelet in ("haar", "db2")]
    assert [(of[JoinedWaveletUp], of[WaveletUp]) for of in kinds] == [(1, 0), (0, 1)]


# Targets


def quantized(model: SpectralUNet) -> SpectralUNet:
    """Everything to integers, roughly: 4 bits a weight, 8 an activation."""
    form, grid = quantizable_form(model), WeightGrid(bits=4, method="minmax")
    for layer in layers_of(form).values():
        assert layer.weight is not None
        scales = weight_scales(layer.weight, grid)
        layer.store(rounded_weight(layer.weight, scales, grid), scales, grid)
    for point in points_of(form).values():
        point.grids = ((symmetric_grid if point.symmetric else activation_grid)(-4, 4, 8),)
    return form


@pytest.mark.parametrize("target", targets())
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_a_target_changes_nothing_but_the_layout(name: str, target: str, make_model: MakeModel) -> None:
    """Of a quantized model: a number rounded the other way would be a step off."""
    form = quantized(make_model(**MODELS[name]))
    program, values = DenoiserProgram(form), inputs(form, 1)
    result = rewritten(program, targets()[target].quantized_rewrites)
    expected, found = program(*values), result(*values)
    assert 0.02 < expected.std() < 20
    error = (found - expected).square().mean() / expected.square().mean()
    assert error < 1e-3  # norms are summed in another order: now and then a number falls on the other side of a tie
    codes = {layer: value for layer, value in result.state_dict().items() if layer.endswith((".codes", ".scales"))}
    before = program.state_dict()
    assert codes.keys() == {layer for layer in before if layer.endswith((".codes", ".scales"))}
    assert all(value.data_ptr() == before[layer].data_ptr() for layer, value in codes.items())
    assert not [part for part in result.modules() if type(part) is nn.Conv2d]
