"""Precision and recall where they are known: equal sets, disjoint sets, a mode that is missing, and by brute force."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sd.errors import EdgeSDError, UsageError
from edge_sd.evaluation import precision_recall


def brute(real: np.ndarray, generated: np.ndarray, k: int) -> tuple[float, float]:
    """The definition, one pair at a time."""

    def inside(points: np.ndarray, centres: np.ndarray) -> float:
        radii = [
            np.sort([np.linalg.norm(c - other) for j, other in enumerate(centres) if j != i])[k - 1]
            for i, c in enumerate(centres)
        ]
        return float(np.mean([any(np.linalg.norm(p - c) <= r for c, r in zip(centres, radii, strict=True)) for p in points]))

    return inside(generated, real), inside(real, generated)


def values(real: np.ndarray, generated: np.ndarray, k: int = 3) -> tuple[float, float]:
    precision, recall = precision_recall(real, generated, k)
    return precision.value, recall.value


@given(st.integers(0, 2**32), st.integers(5, 25), st.integers(5, 25), st.integers(1, 4), st.floats(0, 2))
def test_they_are_their_definition_by_brute_force(seed: int, n: int, m: int, k: int, shift: float) -> None:
    rng = np.random.default_rng(seed)
    real, generated = rng.standard_normal((n, 3)), rng.standard_normal((m, 3)) + shift
    assert values(real, generated, k) == pytest.approx(brute(real, generated, k))
    assert values(generated, real, k) == pytest.approx(brute(real, generated, k)[::-1])  # each is the other, turned round


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_of_equal_sets_both_are_one(offset: float) -> None:
    """Also far from the origin, where squares lose digits, and where points coincide."""
    points = np.random.default_rng(0).standard_normal((60, 16)) + offset
    assert values(points, points) == (1, 1)
    doubled = np.repeat(points, 5, axis=0)  # more copies than neighbours: every radius is 0
    assert values(doubled, doubled[::-1]) == (1, 1)


def test_of_sets_far_apart_both_are_nothing() -> None:
    rng = np.random.default_rng(0)
    assert values(rng.standard_normal((50, 8)), rng.standard_normal((50, 8)) + 100) == (0, 0)


def test_a_missing_mode_costs_recall_and_not_precision() -> None:
    rng = np.random.default_rng(0)
    cat, dog = rng.standard_normal((200, 4)), rng.standard_normal((200, 4)) + 50
    precision, recall = values(np.concatenate([cat, dog]), rng.standard_normal((400, 4)))
    assert precision > 0.9
    assert recall == pytest.approx(0.5, abs=0.05)


def test_it_goes_through_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    real, generated = rng.standard_normal((70, 5)), rng.standard_normal((50, 5)) + 0.5
    whole = values(real, generated)
    monkeypatch.setattr("edge_sd.evaluation.manifold._BLOCK", 13)
    assert values(real, generated) == whole


def test_its_error_is_that_of_a_share() -> None:
    rng = np.random.default_rng(0)
    precision, _ = precision_recall(rng.standard_normal((100, 5)), rng.standard_normal((100, 5)) + 1)
    assert precision.standard_error == pytest.approx(np.sqrt(precision.value * (1 - precision.value) / 100))


@pytest.mark.parametrize("n", [1, 2, 3])
def test_no_more_images_than_neighbours_is_an_error(n: int) -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(UsageError, match="at least 4"):
        precision_recall(rng.standard_normal((10, 2)), rng.standard_normal((n, 2)))


def test_wrong_arguments_are_refused() -> None:
    points = np.random.default_rng(0).standard_normal((10, 2))
    with pytest.raises(UsageError, match="0-th"):
        precision_recall(points, points, 0)
    with pytest.raises(EdgeSDError, match="widths 2 and 1"):
        precision_recall(points, points[:, :1])
