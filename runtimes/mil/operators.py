"""The registry of operators, and what one is called with.

An operator is a function from `Arguments` to its output (or a tuple of them), registered under its name in MIL. It computes in
float32, whatever the program's floats are: the evaluator rounds what it returns to the type that the program declares. Integers
come as int64. Once, when a program is loaded, every operator is called with tensors of the device "meta", which have a shape and
no numbers: what decides a shape must be a constant.
"""

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module

import torch
from torch import Tensor

from edge_sd.runtimes.mil.program import Operation
from edge_sd.runtimes.mil.types import TensorType

# A tensor, or the text of a mode.
Value = Tensor | str
Kernel = Callable[["Arguments"], Tensor | tuple[Tensor, ...]]

_KERNELS: dict[str, Kernel] = {}
_GROUPS = ("elementwise", "activation", "shape", "index", "reduce", "nn", "resize", "quantization")


class Arguments:
    """The arguments of one call, by parameter.

    Attributes:
        output: declared type of the (first) output.
    """

    def __init__(self, operation: Operation, values: Mapping[str, Value], *, meta: bool) -> None:
        self._inputs, self._values, self._meta = operation.inputs, values, meta
        self.output: TensorType = operation.outputs[0][1]

    def __contains__(self, name: str) -> bool:
        return bool(self._inputs.get(name))

    def tensors(self, name: str) -> list[Tensor]:
        """All values of a parameter that takes several."""
        if name not in self:
            raise ValueError(f"its {name} is missing")
        found = [self._values[value] for value in self._inputs[name]]
        if any(isinstance(value, str) for value in found):
            raise ValueError(f"its {name} is text")
        return [value.to("meta") if self._meta else value for value in found if isinstance(value, Tensor)]

    def tensor(self, name: str) -> Tensor:
        found = self.tensors(name)
        if len(found) != 1:
            raise ValueError(f"its {name} has {len(found)} values")
        return found[0]

    def optional(self, name: str) -> Tensor | None:
        return self.tensor(name) if name in self else None

    def text(self, name: str, default: str | None = None) -> str:
        value = self._constant(name, default)
        if not isinstance(value, str):
            raise ValueError(f"its {name} is no text")
        return value

    def integers(self, name: str, default: Sequence[int] | None = None) -> list[int]:
        return [int(number) for number in self._numbers(name, default)]

    def integer(self, name: str, default: int | None = None) -> int:
        (value,) = self.integers(name, None if default is None else [default])
        return value

    def flags(self, name: str, default: Sequence[bool] | None = None) -> list[bool]:
        return [bool(number) for number in self._numbers(name, default)]

    def flag(self, name: str, default: bool | None = None) -> bool:
        (value,) = self.flags(name, None if default is None else [default])
        return value

    def number(self, name: str, default: float | None = None) -> float:
        (value,) = self._numbers(name, None if default is None else [default])
        return float(value)

    def _numbers(self, name: str, default: Sequence[float] | None) -> list[float]:
        value = self._constant(name, default)
        if isinstance(value, Tensor):
            numbers: list[float] = value.reshape(-1).tolist()
            return numbers
        if isinstance(value, str):
            raise ValueError(f"its {name} is text")
        return list(value)

    def _constant(self, name: str, default: str | Sequence[float] | None) -> Value | Sequence[float]:
        if name not in self:
            if default is None:
                raise ValueError(f"its {name} is missing")
            return default
        found = [self._values[value] for value in self._inputs[name]]
        if any(isinstance(value, Tensor) and value.is_meta for value in found):
            raise ValueError(f"its {name} is no constant, and decides how it is computed")
        if len(found) == 1:
            return found[0]
        return torch.cat([value.reshape(-1) for value in found if isinstance(value, Tensor)])


def operator(name: str) -> Callable[[Kernel], Kernel]:
    """Register an operator under its name in MIL."""

    def register(kernel: Kernel) -> Kernel:
        _KERNELS[name] = kernel
        return kernel

    return register


def operators() -> dict[str, Kernel]:
    """Every operator by its name in MIL, `const` and the unpacking `constexpr_*` aside."""
    for group in _GROUPS:
        import_module(f"edge_sd.runtimes.mil.ops_{group}")
    return _KERNELS


def unfolded(x: Tensor, axis: int) -> int:
    """An axis counted from the front, (−rank … rank − 1) → (0 … rank − 1).

    Raises:
        ValueError: x has no such axis.
    """
    if not -x.ndim <= axis < x.ndim:
        raise ValueError(f"axis {axis} of {x.ndim} dimensions")
    return axis % x.ndim
