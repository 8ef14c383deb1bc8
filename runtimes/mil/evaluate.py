"""A saved Core ML program, computed operator by operator in torch on the CPU.

What is computed: the semantics of MIL, in the numbers that the package holds on disk. An operator takes its inputs as they are
declared (weights unpacked), computes in float32, and what it returns is rounded to the type that the program declares for it:
to float16 where the program says fp16, once for each operator. Integers wrap around in their type.

What is not: the order in which a Neural Engine or a GPU adds up, accumulators narrower than float32, operators that Core ML's
compiler fuses (and rounds once where this rounds twice), and anything about time. Results are a "Core ML reference evaluation",
and no measurement of Core ML.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edge_sd.errors import EdgeSDError, UsageError
from edge_sd.runtimes.mil.constexpr import UNPACKERS
from edge_sd.runtimes.mil.program import Function, Operation, load_function
from edge_sd.runtimes.mil.types import TensorType, damaged

if TYPE_CHECKING:
    from torch import Tensor

    from edge_sd.runtimes.mil.operators import Value

LABEL = "Core ML reference evaluation"
# (operator, name of its output, value in the type that the program declares)
Observer = Callable[[str, str, NDArray[Any]], None]


class Evaluator:
    """One function of a package, loaded and checked.

    Attributes:
        function: what was read.
        inputs: name → type, in the program's order.
        outputs: the same.
        operators: name of every value that can be asked for → the operator that makes it; constants are made by `const`.
    """

    def __init__(self, function: Function) -> None:
        """Unpack the constants and check every operator's shapes, without computing anything that depends on an input.

        Raises:
            EdgeSDError: an operator cannot be evaluated as it is saved; it is named.
        """
        from edge_sd.runtimes.mil.operators import operators

        self.function, self._kernels = function, operators()
        self.operators = dict.fromkeys(function.constants, "const")
        self._types = {name: type_ for name, (_, type_) in function.constants.items()} | dict(function.inputs)
        self._constants: dict[str, Value] = {}
        self._steps: list[Operation] = []
        self._prepare()
        self.inputs = dict(function.inputs)
        self.outputs = {name: self._types[name] for name in function.outputs}
        self._last_use = {name: index for index, step in enumerate(self._steps) for name in _names(step)}

    def __call__(
        self, inputs: Mapping[str, NDArray[Any]], observe: Observer | None = None, wanted: Collection[str] | None = None
    ) -> dict[str, NDArray[Any]]:
        """Evaluate the function. => every output, in the type that the program declares

        Args:
            inputs: an array for each input, of its type and shape; NaN and infinities are numbers like others.
            observe: called with every value that is made of inputs, in the order in which they are made.
            wanted: names that `observe` is called for; all, if left out. Asking for few costs next to nothing.

        Raises:
            UsageError: an input is missing, unknown, or of another shape or type; a name is wanted that is none.
            EdgeSDError: an operator failed on these numbers; it is named.
        """
        if unknown := sorted(set(wanted or ()) - self.operators.keys()):
            raise UsageError(f"{self.function.path} makes no {', '.join(unknown)}", "Evaluator.operators names all there are")
        values: dict[str, Value] = {**self._constants, **self._given(inputs)}
        for operation, made in self._run(values):
            if observe is not None:
                for (name, type_), value in zip(operation.outputs, made, strict=True):
                    if wanted is None or name in wanted:
                        observe(operation.type, name, _to_numpy(value, type_))
        return {name: _to_numpy(values[name], type_) for name, type_ in self.outputs.items()}

    def values(self, inputs: Mapping[str, NDArray[Any]], names: Sequence[str]) -> dict[str, NDArray[Any]]:
        """Any values by name, inputs and constants (unpacked) included; nothing is computed that comes after the last of them.

        Raises:
            UsageError, EdgeSDError: as when it is called.
        """
        if unknown := sorted(set(names) - self.operators.keys() - self.inputs.keys()):
            raise UsageError(f"{self.function.path} makes no {', '.join(unknown)}", "Evaluator.operators names all there are")
        values: dict[str, Value] = {**self._constants, **self._given(inputs)}
        found = {name: _to_numpy(values[name], self._types[name]) for name in names if name in values}
        missing = set(names) - found.keys()
        for operation, made in self._run(values) if missing else ():
            for (name, type_), value in zip(operation.outputs, made, strict=True):
                if name in missing:
                    found[name] = _to_numpy(value, type_)
            missing -= found.keys()
            if not missing:
                break
        return {name: found[name] for name in names}

    def _prepare(self) -> None:
        """Run the program on shapes alone; what depends on no input is computed now and never again."""
        import torch

        function = self.function
        for name, (constant, _) in function.constants.items():
            self._constants[name] = constant if isinstance(constant, str) else _to_torch(constant)
        shapes: dict[str, Value] = dict(self._constants)
        for name, type_ in function.inputs.items():
            if type_.kind == "string":
                raise damaged(function.path, f"the input {name} is text")
            shapes[name] = torch.empty(type_.shape, dtype=_dtype(type_), device="meta")
        for operation in function.operations:
            self.operators |= {name: operation.type for name, _ in operation.outputs}
            self._types |= dict(operation.outputs)
            if operation.type in UNPACKERS:
                made: Sequence[Tensor] = self._unpacked(operation)
            else:
                made = self._computed(operation, shapes, meta=True)
                if not any(_is_meta(shapes[name]) for name in _names(operation)):
                    made = self._computed(operation, shapes, meta=False)
            fixed = not any(value.is_meta for value in made)
            for (name, _), value in zip(operation.outputs, made, strict=True):
                shapes[name] = value
                if fixed:
                    self._constants[name] = value
            if not fixed:
                self._steps.append(operation)

    def _run(self, values: "dict[str, Value]") -> "Iterator[tuple[Operation, list[Tensor]]]":
        """Compute one operator after another into `values`; what nobody needs any longer leaves it."""
        kept = {*self._constants, *self.outputs}
        for index, operation in enumerate(self._steps):
            made = self._computed(operation, values, meta=False)
            values |= {name: value for (name, _), value in zip(operation.outputs, made, strict=True)}
            for name in _names(operation):
                if self._last_use[name] == index and name not in kept:
                    values.pop(name, None)
            yield operation, made

    def _unpacked(self, operation: Operation) -> "list[Tensor]":
        import torch

        try:
            parameters = {}
            for parameter, (name,) in operation.inputs.items():
                value = self._constants[name]
                parameters[parameter] = _to_numpy(value, self._types[name]) if isinstance(value, torch.Tensor) else value
            made = [_to_torch(value) for value in UNPACKERS[operation.type](parameters)]
            return self._checked(operation, made)
        except (ValueError, IndexError, TypeError, KeyError, OverflowError, MemoryError) as error:
            raise self._failed(operation, error) from error

    def _computed(self, operation: Operation, values: "Mapping[str, Value]", *, meta: bool) -> "list[Tensor]":
        """Call an operator, and round what it returns to the declared types."""
        import torch

        from edge_sd.runtimes.mil.operators import Arguments

        try:
            with torch.no_grad():
                made = self._kernels[operation.type](Arguments(operation, values, meta=meta))
                return self._checked(operation, [made] if isinstance(made, torch.Tensor) else list(made))
        except Exception as error:  # torch's kernels raise whatever they stumble over
            raise self._failed(operation, error) from error

    def _checked(self, operation: Operation, made: "Sequence[Tensor]") -> "list[Tensor]":
        if len(made) != len(operation.outputs):
            raise ValueError(f"it makes {len(made)} values and declares {len(operation.outputs)}")
        return [_conform(value, type_) for value, (_, type_) in zip(made, operation.outputs, strict=True)]

    def _failed(self, operation: Operation, error: Exception) -> EdgeSDError:
        function, what = self.function, (str(error).strip().splitlines() or [type(error).__name__])[0]
        return EdgeSDError(
            f"{function.path}: {operation.type} {operation.outputs[0][0]} cannot be evaluated "
            f"(spec version {function.spec_version}): {what}",
            "copy or export the package again; if it stays, the operator is used in a way that is not evaluated here",
        )

    def _given(self, inputs: Mapping[str, NDArray[Any]]) -> "dict[str, Value]":
        if inputs.keys() != self.inputs.keys():
            raise UsageError(
                f"{self.function.path} takes the inputs {', '.join(self.inputs)}, not {', '.join(map(str, inputs))}",
                "give every input by its name",
            )
        given: dict[str, Value] = {}
        for name, type_ in self.inputs.items():
            value = np.asarray(inputs[name])
            if (value.shape, value.dtype.name) != (type_.shape, type_.dtype):
                raise UsageError(
                    f"the input {name} is {type_}, not {value.dtype.name}{list(value.shape)}", f"give an array of {type_}"
                )
            given[name] = _to_torch(value)
        return given


def load_evaluator(path: Path, entry: str = "") -> Evaluator:
    """Read one function of a package and make it ready.

    Args:
        path: NAME.mlpackage.
        entry: the function's name; "" is the package's default.

    Raises:
        EdgeSDError: the package is damaged, or asks for what is not evaluated: operators that are not known (all are named),
            flexible shapes, states, images.
    """
    from edge_sd.runtimes.mil.operators import operators

    return Evaluator(load_function(path, entry, {*operators(), *UNPACKERS}))


# Values as they are held here: floats in float32, whatever they are rounded to; integers in int64


def _names(operation: Operation) -> set[str]:
    return {name for names in operation.inputs.values() for name in names}


def _is_meta(value: "Value") -> bool:
    return not isinstance(value, str) and value.is_meta


def _dtype(type_: TensorType) -> Any:
    import torch

    return {"float": torch.float32, "integer": torch.int64, "bool": torch.bool}[type_.kind]


def _conform(value: "Tensor", type_: TensorType) -> "Tensor":
    """Round to the declared type.

    Raises:
        ValueError: another shape, or another kind of number, than declared.
    """
    import torch

    kind = "float" if value.is_floating_point() else "bool" if value.dtype == torch.bool else "integer"
    if (tuple(value.shape), kind) != (type_.shape, type_.kind):
        raise ValueError(f"it makes {kind} {list(value.shape)} and declares {type_}")
    if type_.dtype == "float16":
        return value.to(torch.float16).to(torch.float32)
    if kind != "integer":
        return value.to(_dtype(type_))
    value = value.to(torch.int64)
    if type_.dtype == "int64":
        return value
    half = 0 if type_.dtype.startswith("u") else 1 << (type_.bits - 1)
    return torch.remainder(value + half, 1 << type_.bits) - half


def _to_torch(value: NDArray[Any]) -> "Tensor":
    import torch

    wide = {"f": np.float32, "b": np.bool_}.get(value.dtype.kind, np.int64)
    # A copy, always: what is given in stays as it is, what comes from a file cannot be written to.
    return torch.from_numpy(np.array(value, dtype=wide, order="C"))


def _to_numpy(value: "Value", type_: TensorType) -> NDArray[Any]:
    import torch

    if isinstance(value, str):
        return np.array(value)
    if type_.dtype == "float16":
        half: NDArray[Any] = value.to(torch.float16).numpy()
        return half
    found: NDArray[Any] = value.numpy()
    dtype = type_.dtype if type_.dtype in np.sctypeDict else "int8" if type_.dtype == "int4" else "uint8"
    return found.astype(dtype, copy=True)
