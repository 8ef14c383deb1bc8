"""The ExecuTorch runtime, by its Python bindings."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_sd.bundle import Bundle
from edge_sd.bundle.contract import Contract
from edge_sd.errors import EdgeSDError
from edge_sd.runnable import Availability, Session, packages_available
from edge_sd.runtimes._runtime import Runtime

# The delegate that runs here; programs lowered to another are for another machine.
_DELEGATE = "xnnpack"


class ExecuTorchRuntime(Runtime):
    """XNNPACK and the portable kernels, on the CPU."""

    name = "executorch"
    about = "ExecuTorch, XNNPACK on the CPU"
    target = "executorch"

    def available(self) -> Availability:
        return packages_available("executorch")

    def load(self, bundle: Bundle, threads: int | None = None, program: str = "denoiser") -> Session:
        found = bundle.program(self.target, program)
        path, delegate = bundle.path / found.file, found.options.get("delegate", "")
        if delegate != _DELEGATE:
            raise EdgeSDError(
                f"{path} is lowered to {delegate}, which does not run here", "export it with --delegate xnnpack too"
            )
        from executorch.extension.pybindings import portable_lib

        if threads is not None:
            portable_lib._unsafe_reset_threadpool(threads)  # one pool a process; no other call sets its size
        try:
            module = portable_lib._load_for_executorch(str(path))
            method = module.method_meta(found.entry)
        except RuntimeError as error:
            raise EdgeSDError(f"ExecuTorch cannot load {path}: {error}", "export the bundle again") from error
        contract = bundle.manifest.contract(program)
        _check_contract(method, contract)
        return _ExecuTorchSession(module, found.entry, contract)


class _ExecuTorchSession(Session):
    def __init__(self, module: Any, method: str, contract: Contract) -> None:
        self._module, self._method, self.sample_shape = module, method, contract.inputs[0].shape[1:]

    def __call__(self, *inputs: NDArray[Any]) -> NDArray[np.float32]:
        import torch

        (out,) = self._module.run_method(self._method, tuple(torch.from_numpy(value) for value in inputs))
        result: NDArray[np.float32] = out.numpy().copy()  # the next call writes to the same memory
        return result


# ScalarType's numbers, in the order of torch's c10/core/ScalarType.h.
_DTYPES = {3: "int32", 5: "float16", 6: "float32"}


def _check_contract(method: Any, contract: Contract) -> None:
    """The method's inputs and outputs must be the manifest's."""
    sides = (
        (contract.inputs, [method.input_tensor_meta(index) for index in range(method.num_inputs())]),
        (contract.outputs, [method.output_tensor_meta(index) for index in range(method.num_outputs())]),
    )
    for wanted, found in sides:
        ours = [(tuple(spec.shape), spec.dtype) for spec in wanted]
        theirs = [(tuple(meta.sizes()), _DTYPES.get(meta.dtype(), str(meta.dtype()))) for meta in found]
        if ours != theirs:
            raise EdgeSDError(f"the ExecuTorch program has {theirs}, its contract says {ours}", "export the bundle again")
