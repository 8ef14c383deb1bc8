"""Small packages, saved as coremltools saves them: one operator, or a program that a test writes down."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_sd.quiet import quiet
from edge_sd.runtimes.mil import Evaluator, load_evaluator

with quiet():
    import coremltools
    from coremltools.converters.mil import Builder
    from coremltools.converters.mil.backend.mil.load import load as to_spec
    from coremltools.converters.mil.mil import Program, types

_TYPES = {"float32": types.fp32, "float16": types.fp16, "int32": types.int32}
# (program body, arrays that show what goes in) → a package; `system` is iOS16, iOS17 or iOS18.
MakePackage = Callable[..., Path]
Evaluate = Callable[..., tuple[Evaluator, dict[str, np.ndarray]]]


def program_of(body: Callable[..., Any], inputs: Sequence[np.ndarray], system: str) -> Program:
    """The body as a MIL program; its inputs are called x0, x1, …"""
    specs = [Builder.TensorSpec(shape=value.shape, dtype=_TYPES[value.dtype.name]) for value in inputs]
    # The builder takes inputs' names from the function's parameters.
    function = [
        lambda x0: body(x0),
        lambda x0, x1: body(x0, x1),
        lambda x0, x1, x2: body(x0, x1, x2),
        lambda x0, x1, x2, x3: body(x0, x1, x2, x3),
    ][len(inputs) - 1]
    program: Program = Builder.program(input_specs=specs, opset_version=getattr(coremltools.target, system))(function)
    return program


@pytest.fixture(scope="session")
def make_package(tmp_path_factory: pytest.TempPathFactory) -> MakePackage:
    """Saved as it is written down: no pass of the converter's touches it."""
    folder = tmp_path_factory.mktemp("packages")

    def make(body: Callable[..., Any], inputs: Sequence[np.ndarray], system: str = "iOS17") -> Path:
        number = len(list(folder.iterdir()))
        weights, path = folder / f"{number}.weights", folder / f"{number}.mlpackage"
        weights.mkdir()
        version = getattr(coremltools.target, system).value
        spec = to_spec(program_of(body, inputs, system), weights_dir=str(weights), specification_version=version)
        coremltools.models.utils.save_spec(spec, str(path), weights_dir=str(weights))
        return path

    return make


@pytest.fixture(scope="session")
def evaluate(make_package: MakePackage) -> Evaluate:
    """(body, inputs) → the evaluator of the saved package, and its outputs."""

    def run(
        body: Callable[..., Any], inputs: Sequence[np.ndarray], system: str = "iOS17"
    ) -> tuple[Evaluator, dict[str, np.ndarray]]:
        evaluator = load_evaluator(make_package(body, inputs, system))
        return evaluator, evaluator({f"x{index}": value for index, value in enumerate(inputs)})

    return run
