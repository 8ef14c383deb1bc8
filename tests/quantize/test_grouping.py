"""The cut of steps against all cuts there are."""

from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_sd.errors import UsageError
from edge_sd.quantize.grouping import Ranges, group_cost, knee, partition


def ranges_of(high: np.ndarray) -> Ranges:
    high = np.asarray(high, dtype=np.float64)
    high = high[:, None] if high.ndim == 1 else high
    return Ranges(tuple(f"t{n}" for n in range(high.shape[1])), -high, high, high**2 / 3)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0.01, 100), min_size=2, max_size=9), st.integers(1, 4))
def test_no_other_cut_is_cheaper(widths: list[float], groups: int) -> None:
    cost = group_cost(ranges_of(np.array(widths)))
    groups = min(groups, len(widths))
    starts, found = partition(cost, groups)
    assert starts[0] == 0
    assert len(starts) == groups

    def total(inner: tuple[int, ...]) -> float:
        ends = (0, *inner, len(widths))
        return float(sum(cost[a, b] for a, b in pairwise(ends)))

    assert found == pytest.approx(total(tuple(starts[1:])))
    assert found <= min(map(total, combinations(range(1, len(widths)), groups - 1))) * (1 + 1e-12)


def test_the_cost_of_a_group_is_its_noise() -> None:
    """Two steps of widths 2 and 20 on one grid: 20²·(1/p₁ + 1/p₂)."""
    cost = group_cost(Ranges(("x",), np.array([[-1.0], [-10]]), np.array([[1.0], [10]]), np.array([[2.0], [50]])))
    assert cost[0, 2] == pytest.approx(400 * (1 / 2 + 1 / 50))
    assert cost[0, 1] == pytest.approx(4 / 2)
    assert np.isinf(cost[1, 1])


def test_a_range_that_leaves_zero_out_is_widened_to_it() -> None:
    cost = group_cost(Ranges(("x",), np.array([[3.0]]), np.array([[5.0]]), np.array([[16.0]])))
    assert cost[0, 1] == pytest.approx(25 / 16)


def test_two_regimes_make_two_groups_and_a_still_tensor_one() -> None:
    for widths, expected in (([1.0] * 6 + [30.0] * 4, [0, 6]), ([1.0] * 10, [0])):
        cost = group_cost(ranges_of(np.array(widths)))
        cuts = [partition(cost, groups) for groups in (1, 2, 3)]
        assert cuts[knee([error for _, error in cuts]) - 1][0] == expected


def test_the_knee_is_where_one_more_group_stops_paying() -> None:
    assert knee([1.0]) == 1
    assert knee([1.0, 0.95, 0.92]) == 1
    assert knee([1.0, 0.98, 0.8, 0.79]) == 3
    assert knee([1.0, 0.5, 0.46, 0.47]) == 2
    assert knee([1.0, 0.5, 0.25, 0.125]) == 4


def test_more_groups_than_steps() -> None:
    with pytest.raises(UsageError, match="cannot be cut"):
        partition(group_cost(ranges_of(np.array([1.0, 2.0]))), 3)
