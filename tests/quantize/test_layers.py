"""Points and layers against NumPy and torch's own fake quantization."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from edge_sd.models.attention_forms import Attend
from edge_sd.models.blocks import ConvDown
from edge_sd.models.stepped import select
from edge_sd.models.unet import SpectralUNet
from edge_sd.quantize.form import quantizable_form
from edge_sd.quantize.grid import (
    ActivationGrid,
    WeightGrid,
    activation_grid,
    restored_weight,
    rounded_weight,
    symmetric_grid,
    weight_scales,
)
from edge_sd.quantize.layers import (
    Point,
    QuantizedConv,
    QuantizedLayer,
    QuantizedLinear,
    layers_of,
    points_of,
    quantizable,
)

MakeModel = Callable[..., SpectralUNet]


def point_of(*grids: ActivationGrid, symmetric: bool = False) -> Point:
    point = Point(symmetric=symmetric)
    point.grids = grids
    return point


def numpys(x: np.ndarray, grid: ActivationGrid) -> np.ndarray:
    """Quantized and back, in double precision, half to even."""
    integers = np.clip(np.rint(x.astype(np.float64) / grid.scale) + grid.zero_point, 0, 2**grid.bits - 1)
    return (integers - grid.zero_point) * grid.scale


# Points


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("symmetric", [False, True])
def test_halves_go_to_the_even(bits: int, symmetric: bool) -> None:
    """A scale of 1/4 is exact: every eighth is a tie or a number of the grid."""
    grid = ActivationGrid(bits, 0.25, 2 ** (bits - 1) if symmetric else 37)
    x = np.arange(-2 * 2**bits, 2 * 2**bits, dtype=np.float32) / 8
    found = point_of(grid, symmetric=symmetric)(torch.from_numpy(x))
    np.testing.assert_array_equal(found.numpy(), numpys(x, grid))
    assert found.min() == grid.range[0]
    assert found.max() == grid.range[1]


@given(
    st.lists(st.floats(-40, 40, width=32), min_size=1, max_size=40),
    st.tuples(st.floats(-30, 0), st.floats(0.01, 30)),
    st.sampled_from([8, 16]),
    st.booleans(),
)
def test_a_point_is_numpys_quantization(values: list[float], ends: tuple[float, float], bits: int, symmetric: bool) -> None:
    grid = (symmetric_grid if symmetric else activation_grid)(*ends, bits)
    x = np.array(values, dtype=np.float32)
    found = point_of(grid, symmetric=symmetric)(torch.from_numpy(x)).numpy().astype(np.float64)
    expected = numpys(x, grid)
    share = np.abs(x.astype(np.float64) / grid.scale)
    near_a_tie = np.abs(share - np.floor(share) - 0.5) < 1e-6 * np.maximum(share, 1)  # where single precision may go either way
    tolerance = 1e-6 * np.abs(expected) + np.where(near_a_tie, grid.scale * (1 + 1e-6), 0)
    assert (np.abs(found - expected) <= tolerance + 1e-12).all()


@pytest.mark.parametrize("symmetric", [False, True])
def test_a_point_is_torchs_fake_quantization(symmetric: bool) -> None:
    grid = symmetric_grid(-1.3, 2.1, 8) if symmetric else activation_grid(-1.3, 2.1, 8)
    x = torch.randn(10_000, generator=torch.Generator().manual_seed(0))
    expected = torch.fake_quantize_per_tensor_affine(x, grid.scale, grid.zero_point, 0, 255)
    torch.testing.assert_close(point_of(grid, symmetric=symmetric)(x), expected, rtol=0, atol=0)


def test_without_a_grid_all_goes_through() -> None:
    x, seen = torch.randn(5), []
    point = Point()
    point.observe = seen.append
    assert point(x) is x
    assert seen == [x]


def test_a_point_is_that_of_the_program() -> None:
    point = point_of(activation_grid(-1, 1, 8), activation_grid(-10, 10, 8))
    x = torch.randn(101, generator=torch.Generator().manual_seed(0)) * 8
    seen = []
    for program in (1, 0, 1):
        select(nn.Sequential(point), program)
        seen.append(point(x))
        np.testing.assert_allclose(seen[-1].numpy(), numpys(x.numpy(), point.grids[program]), rtol=1e-5, atol=1e-6)
    assert torch.equal(seen[0], seen[2])
    assert not torch.equal(seen[0], seen[1])


# Batches that mix programs


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("heads", [1, 3])
def test_a_mixed_batch_is_each_sample_under_its_own_program(heads: int, symmetric: bool, bits: int) -> None:
    """Up to single precision at ties: one multiplies by 1/scale, the other divides."""
    make = symmetric_grid if symmetric else activation_grid
    point = point_of(make(-1, 2, bits), make(-3, 1.5, bits), make(-9, 9, bits), symmetric=symmetric)
    programs = torch.tensor([2, 0, 1, 0])
    x = torch.randn(4 * heads, 5, 7, generator=torch.Generator().manual_seed(0)) * 3
    expected = []
    for index, program in enumerate(programs.tolist()):
        select(point, program)
        expected.append(point(x[index * heads : (index + 1) * heads]))
    point.programs = programs
    found = point(x)
    steps = torch.tensor([point.grids[program].scale for program in programs.tolist()]).repeat_interleave(heads)
    error = (found - torch.cat(expected)).abs() / steps[:, None, None]
    assert error.max() < 1 + 1e-3
    assert (error > 0.01).float().mean() < (1e-3 if bits == 8 else 1e-2)


@pytest.mark.parametrize("symmetric", [False, True])
def test_the_gradient_is_that_of_the_identity_inside_of_the_range(symmetric: bool) -> None:
    """As torch's own straight-through estimator; outside, where moving x changes nothing, it is 0."""
    grid = symmetric_grid(-1, 1, 8) if symmetric else activation_grid(-0.5, 1, 8)
    x = torch.linspace(-2, 2, 257)[None].repeat(2, 1).requires_grad_()
    point = point_of(grid, symmetric=symmetric)
    point.programs = torch.tensor([0, 0])
    point(x).sum().backward()
    assert x.grad is not None
    reference = torch.linspace(-2, 2, 257)[None].repeat(2, 1).requires_grad_()
    torch.fake_quantize_per_tensor_affine(reference, grid.scale, grid.zero_point, 0, 255).sum().backward()
    assert reference.grad is not None
    # torch counts what rounds to the ends as inside, half a step more than the clamp before the rounding.
    ends = torch.tensor(grid.range)
    at_the_edge = (x.detach()[..., None] - ends).abs().amin(-1) < grid.scale
    torch.testing.assert_close(x.grad[~at_the_edge], reference.grad[~at_the_edge])
    assert set(x.grad[~at_the_edge].round(decimals=5).tolist()) == {0.0, 1.0}


# Layers


def quantized(source: nn.Conv2d | nn.Linear, grid: WeightGrid) -> tuple[QuantizedLayer, torch.Tensor]:
    """The layer with its weights in integers, and the weights that these stand for."""
    layer = QuantizedConv(source) if isinstance(source, nn.Conv2d) else QuantizedLinear(source)
    scales = weight_scales(source.weight, grid)
    codes = rounded_weight(source.weight, scales, grid)
    layer.store(codes, scales, grid)
    return layer, restored_weight(codes, scales)


CASES: dict[str, tuple[Callable[[], nn.Conv2d | nn.Linear], tuple[int, ...]]] = {
    "3x3": (lambda: nn.Conv2d(8, 6, 3, padding=1), (2, 8, 6, 6)),
    "1x1 without bias": (lambda: nn.Conv2d(8, 6, 1, bias=False), (2, 8, 6, 6)),
    "down": (lambda: ConvDown(8), (2, 8, 6, 6)),
    "down, padded at the end": (lambda: ConvDown(8, "end"), (2, 8, 6, 6)),
    "linear": (lambda: nn.Linear(8, 6), (5, 8)),
    "linear of tokens": (lambda: nn.Linear(8, 6, bias=False), (2, 5, 8)),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group", [None, 4, 8])
@torch.no_grad()
def test_a_layer_computes_with_its_restored_weights(case: str, bits: int, group: int | None) -> None:
    torch.manual_seed(0)
    source, shape = CASES[case][0](), CASES[case][1]
    layer, weight = quantized(source, WeightGrid(bits=bits, group=group))
    assert layer.weight is None
    assert layer.shape == tuple(weight.shape)
    torch.testing.assert_close(layer.weights(), weight, rtol=0, atol=0)
    x = torch.randn(shape)
    source.weight.copy_(weight)
    torch.testing.assert_close(layer(x), source(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_until_then_it_is_the_float_layer(case: str) -> None:
    torch.manual_seed(0)
    source, shape = CASES[case][0](), CASES[case][1]
    x = torch.randn(shape)
    layer = quantizable(nn.Sequential(source))[0]  # type: ignore[index]
    assert isinstance(layer, QuantizedLayer)
    torch.testing.assert_close(layer(x), source(x), rtol=0, atol=0)


@torch.no_grad()
def test_one_scale_a_channel_is_torchs_fake_quantization() -> None:
    torch.manual_seed(0)
    source = nn.Conv2d(8, 6, 3)
    for bits in (4, 8):
        grid = WeightGrid(bits=bits, method="minmax")
        layer, _ = quantized(source, grid)
        scales = weight_scales(source.weight, grid)[:, 0]
        expected = torch.fake_quantize_per_channel_affine(
            source.weight, scales, torch.zeros(6, dtype=torch.int32), 0, grid.low, grid.high
        )
        torch.testing.assert_close(layer.weights(), expected, rtol=0, atol=1e-7)


@given(st.integers(1, 5), st.integers(1, 4), st.integers(2, 4), st.integers(2, 8))
@settings(max_examples=30)
@torch.no_grad()
def test_a_group_is_a_convolution_of_its_own(out: int, groups: int, group: int, bits: int) -> None:
    """A layer of groups is the sum of layers of a group's channels."""
    torch.manual_seed(out)
    source = nn.Conv2d(groups * group, out, 1, bias=False)
    layer, _ = quantized(source, WeightGrid(bits=bits, group=group))
    x = torch.randn(1, groups * group, 3, 3)
    parts = []
    for index in range(groups):
        channels = slice(index * group, (index + 1) * group)
        part = nn.Conv2d(group, out, 1, bias=False)
        part.weight.copy_(source.weight[:, channels])
        parts.append(quantized(part, WeightGrid(bits=bits))[0](x[:, channels]))
    torch.testing.assert_close(layer(x), sum(parts), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_input_and_output_lie_on_their_grids() -> None:
    torch.manual_seed(0)
    source = nn.Conv2d(3, 4, 3, padding=1)
    layer, weight = quantized(source, WeightGrid(bits=4))
    layer.input.grids, layer.output.grids = (activation_grid(-2, 2, 8),), (activation_grid(-1, 1.5, 8),)
    x = torch.randn(1, 3, 6, 6)
    given = torch.from_numpy(numpys(x.numpy(), layer.input.grids[0]))
    inner = F.conv2d(given, weight.double(), source.bias.double(), padding=1)  # type: ignore[union-attr]
    expected = numpys(inner.numpy(), layer.output.grids[0])
    off = np.abs(layer(x).numpy() - expected) / layer.output.grids[0].scale
    assert off.max() < 1.01
    assert (off > 0.01).mean() < 0.01


# What of a model becomes one


def test_every_convolution_and_linear_layer_but_fixed_filters(make_model: MakeModel) -> None:
    form = quantizable_form(make_model(attention=(1,)))
    rest = {name for name, part in form.named_modules() if type(part) in (nn.Conv2d, ConvDown, nn.Linear)}
    assert {name.partition(".")[0] for name in rest} == {"temporal_net"}
    layers = layers_of(form)
    assert all(layer.weight is not None and not layer.weight.requires_grad for layer in layers.values())
    kernels = [name for name, _ in form.named_parameters() if "kernels" in name]
    assert len(kernels) == 4  # haar's
    assert list(points_of(form)) == [name for name, part in form.named_modules() if isinstance(part, Point)]


def test_points_of_attention(make_model: MakeModel) -> None:
    """Two factors of each product; the right ones symmetric. What q, k and v are made of is one tensor and so one point."""
    form = quantizable_form(make_model(attention=(1,)))
    points, attends = points_of(form), {name: part for name, part in form.named_modules() if isinstance(part, Attend)}
    assert attends
    for name in attends:
        kinds = {place: points[f"{name}.{place}"].symmetric for place in Attend.PLACES}
        assert kinds == {"queries": False, "keys": True, "values": True, "probabilities": False}
        attention = name.removesuffix(".attend")
        layers = layers_of(form)
        shared = {id(layers[f"{attention}.{layer}"].input) for layer in ("q", "k", "v")}
        assert len(shared) == (1 if isinstance(layers[f"{attention}.q"], QuantizedLinear) else 3)
