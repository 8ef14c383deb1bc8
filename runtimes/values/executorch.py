"""Inside of an ExecuTorch program: a delegate shows nothing of what it computes, so the reference is lowered anew, to be seen.

The reference inside the bundle takes the same rewrites and the same lowering, with every module's output as an output of the
program. What a converter, a delegate or a kernel does wrong it does again; a file that was changed after its export is not seen
in this way, and told from it by its prediction.
"""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_sd.bundle import Bundle
from edge_sd.bundle.manifest import REFERENCE
from edge_sd.runtimes.values import Values


class ExecuTorchValues(Values):
    """What XNNPACK makes of each module."""

    name = "executorch"
    about = "the reference, lowered anew with every module's output"

    def of(self, bundle: Bundle, program: str, inputs: Sequence[NDArray[np.float32]]) -> Iterator[tuple[str, NDArray[Any]]]:
        import torch

        from edge_sd.export import observed_program
        from edge_sd.quantize.checkpoint import QuantizedCheckpoint, load_any
        from edge_sd.quiet import quiet

        checkpoint = load_any(bundle.path / REFERENCE)
        recipe = checkpoint.header.recipe if isinstance(checkpoint, QuantizedCheckpoint) else None
        found, contract = bundle.program(self.name, program), bundle.manifest.contract(program)
        names, data = observed_program(checkpoint.build(bundle.plan.header.widths), contract, inputs, found, recipe)
        with tempfile.TemporaryDirectory() as folder, quiet():
            from executorch.extension.pybindings import portable_lib

            path = Path(folder) / "observed.pte"
            path.write_bytes(data)
            module = portable_lib._load_for_executorch(str(path))
            tensors = tuple(torch.from_numpy(value.copy()) for value in inputs)
            outputs = [out.numpy().copy() for out in module.run_method(program, tensors)]
        yield from zip(names, outputs, strict=True)
