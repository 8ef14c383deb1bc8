"""Operators that look at one element at a time: arithmetic with broadcasting, comparisons, functions of one variable, casts."""

from collections.abc import Callable

import torch
from torch import Tensor

from edge_sd.runtimes.mil.operators import Arguments, operator

Binary = Callable[[Tensor, Tensor], Tensor]
Unary = Callable[[Tensor], Tensor]


def _divided(x: Tensor, y: Tensor) -> Tensor:
    return torch.div(x, y, rounding_mode=None if x.is_floating_point() else "trunc")


BINARY: dict[str, Binary] = {
    "add": torch.add, "sub": torch.sub, "mul": torch.mul, "real_div": _divided, "floor_div": torch.floor_divide,
    "mod": torch.remainder, "pow": torch.pow, "maximum": torch.maximum, "minimum": torch.minimum,
    "equal": torch.eq, "not_equal": torch.ne, "greater": torch.gt, "greater_equal": torch.ge,
    "less": torch.lt, "less_equal": torch.le,
    "logical_and": torch.logical_and, "logical_or": torch.logical_or, "logical_xor": torch.logical_xor,
}  # fmt: skip
UNARY: dict[str, Unary] = {
    "abs": torch.abs, "acos": torch.acos, "asin": torch.asin, "atan": torch.atan, "atanh": torch.atanh, "ceil": torch.ceil,
    "cos": torch.cos, "cosh": torch.cosh, "erf": torch.erf, "exp": torch.exp, "exp2": torch.exp2, "floor": torch.floor,
    "identity": torch.clone, "logical_not": torch.logical_not, "round": torch.round, "sign": torch.sign, "sin": torch.sin,
    "sinh": torch.sinh, "sqrt": torch.sqrt, "square": torch.square, "tan": torch.tan, "tanh": torch.tanh,
}  # fmt: skip


def _binary(name: str, function: Binary) -> None:
    operator(name)(lambda a: function(a.tensor("x"), a.tensor("y")))


def _unary(name: str, function: Unary) -> None:
    operator(name)(lambda a: function(a.tensor("x")))


for _name, _function in BINARY.items():
    _binary(_name, _function)
for _name, _one in UNARY.items():
    _unary(_name, _one)


# Those with a small number beside, which keeps them off their poles.


@operator("inverse")
def inverse(a: Arguments) -> Tensor:
    return 1 / (a.tensor("x") + a.number("epsilon", 1e-4))


@operator("log")
def log(a: Arguments) -> Tensor:
    return torch.log(a.tensor("x") + a.number("epsilon", 1e-45))


@operator("rsqrt")
def rsqrt(a: Arguments) -> Tensor:
    return torch.rsqrt(a.tensor("x") + a.number("epsilon", 1e-12))


@operator("clip")
def clip(a: Arguments) -> Tensor:
    return a.tensor("x").clamp(a.number("alpha"), a.number("beta"))


@operator("threshold")
def threshold(a: Arguments) -> Tensor:
    """The larger of x and alpha."""
    return a.tensor("x").clamp(min=a.number("alpha"))


@operator("select")
def select(a: Arguments) -> Tensor:
    return torch.where(a.tensor("cond"), a.tensor("a"), a.tensor("b"))


@operator("cast")
def cast(a: Arguments) -> Tensor:
    """To the declared type: toward zero where that is an integer; any number but zero is true."""
    x, wanted, kind = a.tensor("x"), a.text("dtype"), a.output.kind
    if a.output.dtype != {"fp16": "float16", "fp32": "float32"}.get(wanted, wanted):
        raise ValueError(f"it casts to {wanted} and declares {a.output.dtype}")
    if kind == "bool":
        return x != 0
    return x.float() if kind == "float" else x.to(torch.int64)  # torch drops the fraction
