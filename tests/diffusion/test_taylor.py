"""The parts of a step of the unified solver: φ against its integral, finite differences against polynomials."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sd.diffusion._taylor import derivative_weights, phi


@pytest.mark.parametrize("z", [-12.0, -1.0, -0.99, -1e-3, 0.0, 1e-9, 0.3, 1.0, 9.0])
@pytest.mark.parametrize("k", range(1, 6))
def test_phi_is_its_integral(k: int, z: float) -> None:
    nodes, shares = np.polynomial.legendre.leggauss(40)
    u = (nodes + 1) / 2
    assert phi(k, z) == pytest.approx(shares @ (np.exp((1 - u) * z) * u ** (k - 1)) / 2 / math.factorial(k - 1), rel=1e-12)


@given(st.lists(st.integers(-20, 20), min_size=1, max_size=7, unique=True), st.lists(st.floats(-2, 2), min_size=7, max_size=7))
def test_derivatives_of_a_polynomial_are_exact(nodes: list[int], coefficients: list[float]) -> None:
    polynomial = np.polynomial.Polynomial(coefficients[: len(nodes)])
    scaled = np.array(nodes) / 10
    weights = derivative_weights(scaled.tolist())
    for k, row in enumerate(weights):
        size = np.abs(row) @ np.abs(polynomial(scaled)) + 1
        assert abs(row @ polynomial(scaled) - polynomial.deriv(k)(0.0)) <= 1e-11 * size


def test_close_points_keep_their_digits() -> None:
    """f(λ) = λ² at 0, −1e-8 and −1: elimination alone would leave half of the digits of f''."""
    nodes = np.array([0.0, -1e-8, -1.0])
    assert derivative_weights(nodes.tolist())[2] @ nodes**2 == pytest.approx(2, rel=1e-14)
