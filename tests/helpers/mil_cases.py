"""A MIL operator, what goes in, and what PyTorch or NumPy make of the same in float64: the form of the evaluator's tests."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from edge_sd.quiet import quiet
from edge_sd.runtimes.mil import Evaluator
from edge_sd.runtimes.mil.operators import operators

with quiet():
    from coremltools.converters.mil import Builder

Evaluate = Callable[..., tuple[Evaluator, dict[str, np.ndarray]]]
mb, f32 = Builder, np.float32
_RNG = np.random.default_rng(7)


def normal(*shape: int) -> np.ndarray:
    return _RNG.normal(size=shape).astype(f32)


def uniform(low: float, high: float, *shape: int) -> np.ndarray:
    return _RNG.uniform(low, high, size=shape).astype(f32)


def integers(low: int, high: int, *shape: int) -> np.ndarray:
    return _RNG.integers(low, high, size=shape).astype(np.int32)


def t(value: np.ndarray) -> torch.Tensor:
    """As torch's doubles (integers stay integers)."""
    return torch.from_numpy(value.astype(np.float64 if value.dtype.kind == "f" else np.int64))


@dataclass
class Case:
    """`body` of the inputs in MIL, `expected` of the same in float64."""

    operator: str
    body: Callable[..., Any]
    inputs: tuple[np.ndarray, ...]
    expected: Callable[..., Any]
    system: str = "iOS17"

    def check(self, evaluate: Evaluate) -> None:
        """Save the program, evaluate it, compare."""
        evaluator, outputs = evaluate(self.body, self.inputs, self.system)
        assert self.operator in evaluator.operators.values()
        (found,) = outputs.values()
        expected = np.asarray(self.expected(*(x.astype(np.float64) if x.dtype.kind == "f" else x for x in self.inputs)))
        assert found.shape == expected.shape
        assert found.dtype in (np.float32, np.int32)
        np.testing.assert_allclose(found, expected, rtol=4e-6, atol=2e-6)


class Cases(list[Case]):
    """The cases of one test file."""

    def case(
        self, operator: str, body: Callable[..., Any], inputs: Any, expected: Callable[..., Any], system: str = "iOS17"
    ) -> None:
        self.append(Case(operator, body, inputs if isinstance(inputs, tuple) else (inputs,), expected, system))

    def unary(self, operator: str, x: np.ndarray, expected: Callable[..., Any], system: str = "iOS17", **parameters: Any) -> None:
        """Of an operator whose one tensor is called x, the rest being constants."""
        self.case(operator, lambda x0: getattr(mb, operator)(x=x0, **parameters), x, expected, system)

    def assert_complete(self, *groups: str) -> None:
        """Every operator of the evaluator's files ops_GROUP.py has a case here."""
        modules = {f"edge_sd.runtimes.mil.ops_{group}" for group in groups}
        wanted = {name for name, kernel in operators().items() if kernel.__module__ in modules}
        assert wanted
        assert {one.operator for one in self} == wanted
