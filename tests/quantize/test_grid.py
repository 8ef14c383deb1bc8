"""Grids against NumPy, closed forms and their own bounds."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edge_sd.errors import UsageError
from edge_sd.quantize.grid import (
    ActivationGrid,
    WeightGrid,
    activation_grid,
    expand_scales,
    restored_weight,
    rounded_weight,
    search_activation_grid,
    weight_scales,
)

ranges = st.tuples(st.floats(-1e4, 1e4), st.floats(-1e4, 1e4)).map(lambda pair: (min(pair), max(pair)))


@given(ranges, st.sampled_from([8, 16]))
def test_an_activation_grid_holds_zero_and_its_ends(ends: tuple[float, float], bits: int) -> None:
    grid = activation_grid(*ends, bits)
    assert 0 <= grid.zero_point <= grid.high
    assert grid.quantized(torch.zeros(1, dtype=torch.float64)).item() == 0
    x = torch.tensor(ends, dtype=torch.float64)
    # Half a step for rounding, half for the zero point's own.
    assert (grid.quantized(x) - x).abs().max() <= grid.scale * (1 + 1e-9)


@given(st.lists(st.floats(-50, 50, width=32), min_size=2, max_size=40), st.sampled_from([8, 16]))
def test_integers_are_numpys(values: list[float], bits: int) -> None:
    x = np.array(values, dtype=np.float64)
    grid = activation_grid(x.min(), x.max(), bits)
    wanted = np.clip(np.rint(x / grid.scale) + grid.zero_point, 0, 2**bits - 1)
    np.testing.assert_array_equal(grid.integers(torch.from_numpy(x)).numpy(), wanted)


def test_the_error_of_uniform_numbers_is_the_textbooks() -> None:
    """A step of width s has mean square error s²/12."""
    x = torch.linspace(-1, 3, 1_000_001, dtype=torch.float64)
    grid = search_activation_grid(x, 8, "minmax")
    assert grid.scale == pytest.approx(4 / 255)
    assert (grid.quantized(x) - x).square().mean().item() == pytest.approx(grid.scale**2 / 12, rel=1e-2)


def test_mse_and_percentile_leave_out_what_is_far_away() -> None:
    x = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    x[:100] *= 10  # heavy tails
    errors = {}
    for method in ("minmax", "percentile", "mse"):
        grid = search_activation_grid(x, 8, method)  # type: ignore[arg-type]
        errors[method] = (
            (grid.quantized(x) - x).abs().pow(2.4).mean().item(),
            (grid.quantized(x[100:]) - x[100:]).square().mean().item(),
        )
    assert errors["mse"][0] <= min(error for error, _ in errors.values())  # what it looks for
    assert errors["percentile"][1] < errors["minmax"][1]  # what it is for: the bulk


@pytest.mark.parametrize(("low", "high"), [(float("nan"), 1), (0, float("inf")), (2, 1)])
def test_no_grid_for_what_is_no_range(low: float, high: float) -> None:
    with pytest.raises(UsageError, match="no range"):
        activation_grid(low, high, 8)


def test_a_tensor_of_zeros_is_exact() -> None:
    assert search_activation_grid(torch.zeros(5), 8, "mse") == ActivationGrid(8, 1.0, 0)


# Weights


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("group", [None, 4, 16])
@pytest.mark.parametrize("method", ["minmax", "mse"])
def test_weights_come_back_within_half_a_step(bits: int, group: int | None, method: str) -> None:
    weight = torch.randn(8, 16, 3, 3, generator=torch.Generator().manual_seed(bits))
    grid = WeightGrid(bits=bits, group=group, method=method)  # type: ignore[arg-type]
    scales = weight_scales(weight, grid)
    assert scales.shape == (8, 1 if group in (None, 16) else 16 // group)
    integers = rounded_weight(weight, scales, grid)
    assert integers.dtype == torch.int8
    assert grid.low <= integers.min() <= integers.max() <= grid.high
    error = (restored_weight(integers, scales) - weight).abs()
    inside = (integers > grid.low) & (integers < grid.high)
    assert (error <= expand_scales(scales, weight) / 2 * (1 + 1e-5))[inside].all()
    if method == "minmax":
        assert (error <= expand_scales(scales, weight) / 2 * (1 + 1e-5)).all()


def test_the_search_is_never_worse_than_the_whole_range_and_groups_never_worse_than_channels() -> None:
    weight = torch.randn(16, 32, 3, 3, generator=torch.Generator().manual_seed(0)) ** 3

    def error(**settings: object) -> float:
        grid = WeightGrid(bits=4, **settings)  # type: ignore[arg-type]
        scales = weight_scales(weight, grid)
        return (restored_weight(rounded_weight(weight, scales, grid), scales) - weight).abs().pow(2.4).sum().item()

    assert error(method="mse") < error(method="minmax")
    assert error(method="mse", group=8) < error(method="mse")


def test_a_group_is_its_own_layer() -> None:
    """Scales of two groups are those of the halves alone."""
    weight = torch.randn(4, 8, 1, 1, generator=torch.Generator().manual_seed(0))
    grid = WeightGrid(bits=4)
    halves = torch.cat([weight_scales(half.contiguous(), grid) for half in weight.split(4, dim=1)], dim=1)
    torch.testing.assert_close(weight_scales(weight, WeightGrid(bits=4, group=4)), halves)


def test_zeros_stay_zeros_and_the_infinite_is_refused() -> None:
    grid = WeightGrid(bits=4)
    zeros = torch.zeros(2, 4, 1, 1)
    assert (restored_weight(rounded_weight(zeros, weight_scales(zeros, grid), grid), weight_scales(zeros, grid)) == 0).all()
    with pytest.raises(UsageError, match="not finite"):
        weight_scales(torch.full((2, 4, 1, 1), float("nan")), grid)
    with pytest.raises(UsageError, match="groups of 3"):
        weight_scales(zeros, WeightGrid(bits=4, group=3))


@pytest.mark.parametrize("bits", [1, 9])
def test_bits_that_no_format_has(bits: int) -> None:
    with pytest.raises(ValueError, match="bits"):
        WeightGrid(bits=bits)
