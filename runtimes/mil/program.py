"""A saved Core ML package as plain data: its functions, their operators in order, every constant read from disk.

The protobuf message is the only thing that coremltools is asked for: types, constants and weight.bin are read here, so that an
evaluation owes nothing to the code that wrote the package.
"""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from edge_sd.errors import EdgeSDError
from edge_sd.quiet import quiet
from edge_sd.runtimes.mil.blob import Constant, Weights, read_constant
from edge_sd.runtimes.mil.types import TensorType, damaged, type_of, unsupported

_MANIFEST = "Manifest.json"


@dataclass(frozen=True)
class Operation:
    """One operator.

    Attributes:
        type: its name in MIL: conv, add, …
        inputs: names of the values that each parameter takes; several for concat's `values` and the like.
        outputs: names and types of what it makes.
    """

    type: str
    inputs: Mapping[str, tuple[str, ...]]
    outputs: tuple[tuple[str, TensorType], ...]


@dataclass(frozen=True)
class Function:
    """One function of a package, ready to be evaluated; its operators are in an order in which they can run.

    Attributes:
        constants: every constant by name with its type; those written into an operator's call are called OUTPUT.PARAMETER.
        metadata: what the package's author wrote into it.
    """

    path: Path
    name: str
    spec_version: int
    inputs: Mapping[str, TensorType]
    outputs: tuple[str, ...]
    operations: tuple[Operation, ...]
    constants: Mapping[str, tuple[Constant, TensorType]]
    metadata: Mapping[str, str]


def load_function(path: Path, entry: str, known: Collection[str]) -> Function:
    """Read one function of a package.

    Args:
        path: NAME.mlpackage.
        entry: the function's name; of a package that has one, "" will do.
        known: operators that can be evaluated.

    Raises:
        EdgeSDError: the package is damaged, has no such function, or asks for what is not evaluated: operators that are not
            known (all of them are named), flexible shapes, states, images.
    """
    model = _model_file(path)
    spec = _read(model)
    if spec.WhichOneof("Type") != "mlProgram":
        raise unsupported(path, f"it is a {spec.WhichOneof('Type') or 'model of no kind'}, only ML programs are evaluated")
    functions = spec.mlProgram.functions
    name = entry or spec.description.defaultFunctionName or "main"
    if name not in functions:
        raise EdgeSDError(f"{path} has no function {name}, only {', '.join(functions) or 'none'}", "name one of those")
    function = functions[name]
    if function.opset not in function.block_specializations:
        raise damaged(path, f"function {name} has no block for its opset {function.opset!r}")
    block = function.block_specializations[function.opset]
    version = int(spec.specificationVersion)
    _refuse_unknown(path, block, {*known, "const"}, version)
    _check_interface(path, spec.description, name)
    reader = _Reader(path, Weights(model))
    inputs = {item.name: reader.define(item.name, type_of(path, item.type, item.name)) for item in function.inputs}
    operations = [found for operation in block.operations if (found := reader.operation(operation)) is not None]
    outputs = tuple(block.outputs)
    if missing := [output for output in outputs if output not in reader.defined]:
        raise damaged(path, f"its outputs {', '.join(missing)} are made by no operator")
    if not outputs or len(set(outputs)) != len(outputs):
        raise damaged(path, f"function {name} has the outputs {list(outputs)}")
    metadata = dict(spec.description.metadata.userDefined)
    return Function(path, name, version, inputs, outputs, tuple(operations), reader.constants, metadata)


class _Reader:
    """Goes through a block once, and keeps what has been defined so far."""

    def __init__(self, path: Path, weights: Weights) -> None:
        self._path, self._weights = path, weights
        self.defined = dict[str, TensorType]()
        self.constants = dict[str, tuple[Constant, TensorType]]()

    def define(self, name: str, type_: TensorType) -> TensorType:
        if not name or name in self.defined:
            raise damaged(self._path, f"the value {name!r} is defined twice" if name else "a value has no name")
        self.defined[name] = type_
        return type_

    def operation(self, spec: Any) -> Operation | None:
        """Read an operator; None for `const`, which is no operator but a value."""
        first = spec.outputs[0].name if spec.outputs else ""
        where = f"{spec.type} {first or '(without outputs)'}"
        if spec.blocks:
            raise unsupported(self._path, f"{where} holds blocks of its own, and control flow is not evaluated")
        if not spec.outputs:
            raise damaged(self._path, f"operator {where}")
        if spec.type == "const":
            if "val" not in spec.attributes or len(spec.outputs) != 1:
                raise damaged(self._path, f"{where} has no value")
            self._keep(first, spec.attributes["val"], first, type_of(self._path, spec.outputs[0].type, first))
            return None
        inputs: dict[str, tuple[str, ...]] = {}
        # Unpacking operators of iOS 16 have their constants among the attributes; every operator has its name there.
        for parameter, value in spec.attributes.items():
            if parameter != "name":
                inputs[parameter] = (self._keep(f"{first}.{parameter}", value, f"{parameter} of {where}"),)
        for parameter, argument in spec.inputs.items():
            inputs[parameter] = tuple(
                self._binding(binding, f"{first}.{parameter}" + (f".{index}" if index else ""), f"{parameter} of {where}")
                for index, binding in enumerate(argument.arguments)
            )
        outputs = tuple((item.name, type_of(self._path, item.type, item.name)) for item in spec.outputs)
        for name, type_ in outputs:
            self.define(name, type_)
        return Operation(spec.type, inputs, outputs)

    def _binding(self, binding: Any, name: str, what: str) -> str:
        which = binding.WhichOneof("binding")
        if which == "value":
            return self._keep(name, binding.value, what)
        if which != "name" or binding.name not in self.defined:
            raise damaged(self._path, f"{what} is {binding.name or 'nothing'}, which is made by no operator before it")
        return str(binding.name)

    def _keep(self, name: str, value: Any, what: str, declared: TensorType | None = None) -> str:
        constant, type_ = read_constant(self._path, value, self._weights, what)
        if declared not in (None, type_):
            raise damaged(self._path, f"{what} is declared as {declared} and holds {type_}")
        self.constants[name] = constant, self.define(name, type_)
        return name


def _model_file(path: Path) -> Path:
    """The model inside a package, as its Manifest.json says."""
    if not path.is_dir():
        raise EdgeSDError(f"{path} is not a Core ML package", "give a folder NAME.mlpackage")
    try:
        manifest = json.loads((path / _MANIFEST).read_bytes())
        relative = manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]["path"]
        inside = PurePosixPath(relative)
    except (OSError, ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        raise damaged(path, f"{_MANIFEST} cannot be read: {type(error).__name__} {error}") from error
    if inside.is_absolute() or ".." in inside.parts or "\0" in relative:
        raise damaged(path, f"{_MANIFEST} names {relative!r}, which is not below the package")
    return path / "Data" / inside


def _read(model: Path) -> Any:
    with quiet():
        from coremltools.proto import Model_pb2
    try:
        return Model_pb2.Model.FromString(model.read_bytes())
    except Exception as error:  # protobuf's DecodeError, where there is a file at all
        raise damaged(model, f"it cannot be read: {error}") from error


def _refuse_unknown(path: Path, block: Any, known: Collection[str], version: int) -> None:
    """Name every operator that cannot be evaluated, before anything is."""
    unknown = [
        f"{operation.type or '(no name)'} ({operation.outputs[0].name if operation.outputs else 'no output'})"
        for operation in block.operations
        if operation.type not in known
    ]
    if unknown:
        raise EdgeSDError(
            f"{path}, spec version {version}, has operators that are not evaluated here: {', '.join(unknown)}",
            "edge-sd list runtimes names what else runs it; on a Mac, --runtime coreml",
        )


def _check_interface(path: Path, description: Any, name: str) -> None:
    """The described interface says more than the program's types: images, and shapes to choose from."""
    described = {function.name: function for function in description.functions}
    found = described.get(name, description)
    if len(found.state):
        raise unsupported(path, f"it keeps the states {', '.join(state.name for state in found.state)}, which are not evaluated")
    for feature in (*found.input, *found.output):
        which = feature.type.WhichOneof("Type")
        if which != "multiArrayType":
            raise unsupported(path, f"{feature.name} is of {which or 'no type'}, only arrays are evaluated")
        if feature.type.multiArrayType.WhichOneof("ShapeFlexibility") is not None:
            raise unsupported(path, f"the shape of {feature.name} is flexible")
