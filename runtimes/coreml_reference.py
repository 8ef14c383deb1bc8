"""The Core ML reference runtime: what a saved package computes, where there is no Core ML. See `edge_sd.runtimes.mil`."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_sd.bundle import Bundle
from edge_sd.bundle.contract import Contract
from edge_sd.runnable import Availability, Session, packages_available
from edge_sd.runtimes._runtime import Runtime
from edge_sd.runtimes.mil import LABEL, Evaluator, load_evaluator
from edge_sd.runtimes.mil.contract import check_contract


class CoreMLReferenceRuntime(Runtime):
    """A numerical model of the program, not of the device: a good result here says that the package holds the right numbers."""

    name = "coreml-reference"
    about = f"{LABEL} of the saved package, in torch"
    target = "coreml"
    evaluates = True

    def available(self) -> Availability:
        return packages_available("coremltools", "torch")

    def load(self, bundle: Bundle, threads: int | None = None, program: str = "denoiser") -> Session:
        found, contract = bundle.program(self.target, program), bundle.manifest.contract(program)
        import torch

        if threads is not None:
            torch.set_num_threads(threads)
        evaluator = load_evaluator(bundle.path / found.file, found.entry)
        inputs, outputs = (
            [(name, type_.shape, type_.dtype) for name, type_ in side.items()] for side in (evaluator.inputs, evaluator.outputs)
        )
        check_contract(evaluator.function.path, evaluator.function.metadata, contract, inputs, outputs)
        return ReferenceSession(evaluator, contract)


class ReferenceSession(Session):
    """A loaded program.

    Attributes:
        evaluator: for whoever wants to look at values in between.
    """

    def __init__(self, evaluator: Evaluator, contract: Contract) -> None:
        self.evaluator, self.sample_shape = evaluator, contract.inputs[0].shape[1:]
        self._output = contract.outputs[0].name

    def __call__(self, *inputs: NDArray[Any]) -> NDArray[np.float32]:
        out: NDArray[np.float32] = self.evaluator(dict(zip(self.evaluator.inputs, inputs, strict=True)))[self._output]
        return out
