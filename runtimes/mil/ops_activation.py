"""Activations."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from edge_sd.runtimes.mil.operators import Arguments, operator, unfolded

SIMPLE: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "relu6": F.relu6,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "softsign": F.softsign,
}


def _simple(name: str) -> None:
    operator(name)(lambda a: SIMPLE[name](a.tensor("x")))


for _name in SIMPLE:
    _simple(_name)


@operator("softplus")
def softplus(a: Arguments) -> Tensor:
    """log(1 + eˣ), exact for large x too, where torch's own takes x itself."""
    x = a.tensor("x")
    return torch.logaddexp(x, torch.zeros_like(x))


@operator("gelu")
def gelu(a: Arguments) -> Tensor:
    x, mode = a.tensor("x"), a.text("mode", "EXACT")
    if mode == "EXACT":
        return F.gelu(x)
    if mode == "TANH_APPROXIMATION":
        return F.gelu(x, approximate="tanh")
    if mode == "SIGMOID_APPROXIMATION":
        return x * torch.sigmoid(1.702 * x)
    raise ValueError(f"its mode is {mode}")


@operator("softmax")
def softmax(a: Arguments) -> Tensor:
    x = a.tensor("x")
    return torch.softmax(x, unfolded(x, a.integer("axis", -1)))


@operator("elu")
def elu(a: Arguments) -> Tensor:
    x = a.tensor("x")
    return torch.where(x > 0, x, a.number("alpha") * torch.expm1(x))


@operator("leaky_relu")
def leaky_relu(a: Arguments) -> Tensor:
    return F.leaky_relu(a.tensor("x"), a.number("alpha"))


@operator("prelu")
def prelu(a: Arguments) -> Tensor:
    """x (B, C, …), a slope for each channel."""
    x = a.tensor("x")
    return torch.where(x >= 0, x, _by_channel(a, "alpha", x) * x)


@operator("clamped_relu")
def clamped_relu(a: Arguments) -> Tensor:
    return F.leaky_relu(a.tensor("x"), a.number("alpha")).clamp(max=a.number("beta"))


@operator("thresholded_relu")
def thresholded_relu(a: Arguments) -> Tensor:
    x = a.tensor("x")
    return torch.where(x >= a.number("alpha"), x, torch.zeros_like(x))


@operator("linear_activation")
def linear_activation(a: Arguments) -> Tensor:
    return a.number("alpha") * a.tensor("x") + a.number("beta")


@operator("scaled_tanh")
def scaled_tanh(a: Arguments) -> Tensor:
    return a.number("alpha") * torch.tanh(a.number("beta") * a.tensor("x"))


@operator("sigmoid_hard")
def sigmoid_hard(a: Arguments) -> Tensor:
    return (a.number("alpha") * a.tensor("x") + a.number("beta")).clamp(0, 1)


@operator("softplus_parametric")
def softplus_parametric(a: Arguments) -> Tensor:
    """x (B, C, …) → α·log(1 + e^(βx)), α and β for each channel."""
    x = a.tensor("x")
    inner = _by_channel(a, "beta", x) * x
    return _by_channel(a, "alpha", x) * torch.logaddexp(inner, torch.zeros_like(inner))


def _by_channel(a: Arguments, name: str, x: Tensor) -> Tensor:
    return a.tensor(name).reshape(-1, *[1] * (x.ndim - 2))
