"""Inside of a Core ML package: the values of its reference evaluation."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_sd.bundle import Bundle
from edge_sd.runtimes.mil import load_evaluator
from edge_sd.runtimes.values import Values


class CoreMLValues(Values):
    """The package's own operators and weights."""

    name = "coreml"
    about = "the saved package, in the Core ML reference evaluation"

    def of(self, bundle: Bundle, program: str, inputs: Sequence[NDArray[np.float32]]) -> Iterator[tuple[str, NDArray[Any]]]:
        found = bundle.program(self.name, program)
        evaluator = load_evaluator(bundle.path / found.file, found.entry)
        kept: list[tuple[str, NDArray[Any]]] = []
        evaluator(
            dict(zip(evaluator.inputs, inputs, strict=True)), observe=lambda operator, name, value: kept.append((name, value))
        )
        yield from kept
