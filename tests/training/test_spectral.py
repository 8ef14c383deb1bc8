"""The frequency term against NumPy in float64, its bounds, and Parseval's theorem where all weights are one."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from edge_sd.data import ImageData
from edge_sd.training import DistillConfig
from edge_sd.training.spectral import frequency_distance, frequency_weights

configs = st.builds(DistillConfig, alpha=st.floats(-4, 0), omega_floor=st.floats(1e-3, 2), omega_max=st.floats(1, 100))


def images(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32))


def reference(x0: np.ndarray, config: DistillConfig) -> np.ndarray:
    """ω from images that have the size already, as the docstring has it."""
    weights = []
    for image in x0.astype(np.float64):
        magnitude = np.mean([np.abs(np.fft.fft2(channel, norm="ortho")) for channel in image], axis=0)
        omega = (magnitude / magnitude.mean() + config.omega_floor) ** config.alpha
        weights.append(np.minimum(omega / omega.mean(), config.omega_max))
    return np.stack(weights)[:, None]


@pytest.mark.parametrize("changes", [{}, {"alpha": -2.5}, {"alpha": -0.5, "omega_max": 1.5}, {"omega_floor": 1.0}])
def test_omega_is_the_reference(changes: dict[str, Any], tiny_data: ImageData) -> None:
    config = DistillConfig(**changes)
    x0 = torch.from_numpy(tiny_data.pixels[:4] / np.float32(127.5) - 1)
    np.testing.assert_allclose(frequency_weights(x0, (16, 16), config).numpy(), reference(x0.numpy(), config), rtol=1e-4)


def test_omega_of_a_smaller_map_is_that_of_the_image_made_smaller(tiny_data: ImageData) -> None:
    x0 = torch.from_numpy(tiny_data.pixels[:4] / 127.5 - 1)
    small = F.interpolate(x0, size=(8, 4), mode="bilinear", antialias=True).numpy()
    omega = frequency_weights(x0.float(), (8, 4), DistillConfig())
    assert omega.shape == (4, 1, 8, 4)
    np.testing.assert_allclose(omega.numpy(), reference(small, DistillConfig()), rtol=1e-3)


@given(configs, st.integers(1, 3), st.integers(1, 3), st.tuples(st.integers(1, 17), st.integers(1, 17)), st.integers(0, 2**32))
def test_omega_keeps_its_bounds(config: DistillConfig, batch: int, channels: int, size: tuple[int, int], seed: int) -> None:
    omega = frequency_weights(images(batch, channels, 12, 12, seed=seed), size, config)
    assert omega.shape == (batch, 1, *size)
    assert omega.dtype == torch.float32
    assert (omega > 0).all()
    assert omega.max().item() <= config.omega_max * (1 + 1e-6)
    assert omega.mean((-2, -1)).max().item() <= 1 + 1e-4


@given(configs, st.sampled_from([0.0, 1.0, -1.0, 1e-30, 0.3]))
def test_a_constant_image_does_not_blow_up(config: DistillConfig, value: float) -> None:
    omega = frequency_weights(torch.full((2, 3, 8, 8), value), (8, 8), config)
    assert torch.isfinite(omega).all()
    assert omega.max().item() <= config.omega_max * (1 + 1e-6)
    assert omega.mean().item() <= 1 + 1e-4


@pytest.mark.parametrize("omega_floor", [1e-3, 1e-6, 1e-10, 1e-30])
def test_no_floor_that_is_allowed_makes_omega_a_nan(omega_floor: float) -> None:
    try:
        config = DistillConfig(alpha=-4, omega_floor=omega_floor)
    except ValidationError:
        return
    assert torch.isfinite(frequency_weights(torch.ones(1, 3, 8, 8), (8, 8), config)).all()


def test_what_is_weak_in_the_image_weighs_more(tiny_data: ImageData) -> None:
    x0 = torch.from_numpy(tiny_data.pixels / np.float32(127.5) - 1)
    omega = frequency_weights(x0, (16, 16), DistillConfig(alpha=-1)).mean(0)[0]
    assert omega[8, 8] > 4 * omega[0, 1]
    assert omega[8, 0] > omega[0, 1]
    torch.testing.assert_close(omega, omega.flip(0, 1).roll((1, 1), (0, 1)), rtol=1e-3, atol=0)  # |F(−k)| = |F(k)|


def test_alpha_zero_weighs_all_alike_and_then_parseval_holds() -> None:
    x0, difference = images(3, 3, 16, 16), images(3, 5, 8, 12, seed=1)
    omega = frequency_weights(x0, (8, 12), DistillConfig(alpha=0))
    torch.testing.assert_close(omega, torch.ones(3, 1, 8, 12))
    torch.testing.assert_close(frequency_distance(difference, omega), difference.square().mean())


def test_the_distance_is_the_weighted_sum_of_coefficients() -> None:
    difference, omega = images(2, 3, 6, 8), images(2, 1, 6, 8, seed=1).abs()
    spectrum = np.fft.fft2(difference.double().numpy(), norm="ortho")
    expected = np.mean(omega.numpy() * np.abs(spectrum) ** 2)
    assert frequency_distance(difference, omega).item() == pytest.approx(expected, rel=1e-5)


def test_the_distance_has_a_gradient_and_omega_has_none() -> None:
    x0, difference = images(2, 3, 8, 8).requires_grad_(), images(2, 3, 8, 8, seed=1).requires_grad_()
    omega = frequency_weights(x0, (8, 8), DistillConfig(alpha=0))
    assert not omega.requires_grad
    frequency_distance(difference, omega).backward()
    torch.testing.assert_close(difference.grad, 2 * difference.detach() / difference.numel())  # as of the mean square


def test_bfloat16_features_are_compared_in_float32() -> None:
    difference = images(1, 2, 8, 8).bfloat16()
    omega = torch.ones(1, 1, 8, 8)
    assert frequency_distance(difference, omega).dtype == torch.float32
    torch.testing.assert_close(frequency_distance(difference, omega), frequency_distance(difference.float(), omega))
    assert frequency_weights(difference, (8, 8), DistillConfig()).dtype == torch.float32
