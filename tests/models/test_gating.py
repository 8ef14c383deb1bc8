"""Wavelet gating against its two equations, Σ_i g_i ⊙ DWT(x)_i and IDWT(g ⊙ expand(x)), computed with NumPy and PyWavelets."""

import numpy as np
import pytest
import pywt
import torch
import torch.nn.functional as F

from edge_sd.models.gating import SubbandGate, WaveletDown, WaveletUp
from edge_sd.models.wavelets import dwt2

CHANNELS = 6


def image(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape, dtype=np.float32))


def with_random_weights(module: torch.nn.Module) -> torch.nn.Module:
    """Weights of ±1 and more: the gates then range over most of (0, 1)."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(generator=generator)
    return module


def gates(gate: SubbandGate, x: np.ndarray) -> np.ndarray:
    """sigmoid(W₂·silu(W₁·mean(x) + b₁) + b₂) → (B, C, 4)."""
    w1, b1, w2, b2 = (p.detach().numpy() for p in (gate.hidden.weight, gate.hidden.bias, gate.out.weight, gate.out.bias))
    hidden = x.mean((2, 3)) @ w1.T + b1
    logits = hidden / (1 + np.exp(-hidden)) @ w2.T + b2
    return (1 / (1 + np.exp(-logits))).reshape(len(x), -1, 4)


def test_down_starts_as_average_pooling_with_a_trace_of_detail() -> None:
    x = image(2, CHANNELS, 8, 6)
    bands = dwt2(x).unflatten(1, (CHANNELS, 4))
    down = WaveletDown(CHANNELS, "haar")(x)
    torch.testing.assert_close(down, 0.5 * bands[:, :, 0] + 0.12 * bands[:, :, 1:].sum(2), rtol=0, atol=1e-6)
    torch.testing.assert_close(down - 0.12 * bands[:, :, 1:].sum(2), F.avg_pool2d(x, 2), rtol=0, atol=1e-6)


def test_up_without_detail_starts_as_pixel_doubling() -> None:
    up = WaveletUp(CHANNELS, "haar")
    with torch.no_grad():
        up.gate.out.bias.view(CHANNELS, 4)[:, 1:] = -100  # sigmoid: 4e-44
    x = image(2, CHANNELS, 3, 5)
    torch.testing.assert_close(up(x), F.interpolate(x, scale_factor=2.0, mode="nearest"), rtol=0, atol=1e-5)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("wavelet", ["haar", "db2", "bior2.2"])
def test_down_is_the_gated_sum_of_the_subbands(wavelet: str, training: bool) -> None:
    down = with_random_weights(WaveletDown(CHANNELS, wavelet)).train(training)
    x = image(3, CHANNELS, 8, 12)
    ca, details = pywt.dwt2(x.double().numpy(), wavelet, "periodization")
    g = gates(down.gate, x.double().numpy())
    expected = sum(g[:, :, i, None, None] * band for i, band in enumerate((ca, *details)))
    np.testing.assert_allclose(down(x).detach().numpy(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("wavelet", ["haar", "db2", "bior2.2"])
def test_up_is_the_inverse_of_the_gated_expansion(wavelet: str, training: bool) -> None:
    up = with_random_weights(WaveletUp(CHANNELS, wavelet)).train(training)
    x = image(3, CHANNELS, 4, 6)
    weight, bias = up.expand.weight.detach().double().numpy()[:, :, 0, 0], up.expand.bias.detach().double().numpy()
    expanded = np.einsum("oc,bchw->bohw", weight, x.double().numpy()) + bias[:, None, None]
    bands = expanded.reshape(3, CHANNELS, 4, 4, 6) * gates(up.gate, x.double().numpy())[..., None, None]
    expected = pywt.idwt2((bands[:, :, 0], tuple(bands[:, :, i] for i in (1, 2, 3))), wavelet, "periodization")
    np.testing.assert_allclose(up(x).detach().numpy(), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("channels", [1, 3, CHANNELS, 16])
def test_gates_start_constant_and_then_depend_on_the_image(channels: int) -> None:
    gate = SubbandGate(channels)
    x = image(2, channels, 4, 4)
    start = gate(x)
    assert start.shape == (2, 4 * channels, 1, 1)
    torch.testing.assert_close(
        start, torch.tensor([0.5, 0.12, 0.12, 0.12]).repeat(2, channels)[..., None, None], rtol=0, atol=1e-6
    )

    with_random_weights(gate)
    g = gate(x)
    assert (g > 0).all()
    assert (g < 1).all()
    assert (g[0] != g[1]).all()
    torch.testing.assert_close(gate(x[1:]), g[1:])  # each image by itself


def test_all_that_gating_learns_gets_a_gradient() -> None:
    """Also the hidden layer, as soon as the zero-initialised one above it has moved."""
    for module in (WaveletDown(CHANNELS, "haar"), WaveletUp(CHANNELS, "haar")):
        with_random_weights(module)(image(2, CHANNELS, 4, 4)).square().sum().backward()
        for name, parameter in module.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.any(), name
