"""The ExecuTorch runtime, by its Python bindings."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_sd.bundle import Bundle
from edge_sd.bundle.contract import Contract
from edge_sd.errors import EdgeSDError
from edge_sd.quiet import quiet
from edge_sd.runnable import Availability, Session, packages_available
from edge_sd.runtimes._runtime import Runtime

# The delegate that runs here; programs lowered to another are for another machine.
_DELEGATE = "xnnpack"


class ExecuTorchRuntime(Runtime):
    """XNNPACK and the portable kernels, on the CPU."""

    name = "executorch"
    about = "ExecuTorch, XNNPACK on the CPU"
    target = "executorch"
    native = True

    def available(self) -> Availability:
        return packages_available("executorch")

    def load(self, bundle: Bundle, threads: int | None = None, program: str = "denoiser") -> Session:
        found = bundle.program(self.target, program)
        path, delegate = bundle.path / found.file, found.options.get("delegate", "")
        if delegate != _DELEGATE:
            raise EdgeSDError(f"{path} is lowered to {delegate}, which does not run here", "edge-sd export --delegate xnnpack")
        with quiet():
            from executorch.extension.pybindings import portable_lib

        if threads is not None:
            _Pool.resize(portable_lib, threads)
        return _ExecuTorchSession(portable_lib, path, found.entry, bundle.manifest.contract(program))


class _Pool:
    """The process's one pool of threads. A loaded program points into the pool of its time and dies with it.

    Attributes:
        number: which pool it is; a program that was loaded in another has to be loaded again before it is called.
    """

    number = 0

    @classmethod
    def resize(cls, portable_lib: Any, threads: int) -> None:
        """Replace the pool by one of another size."""
        if portable_lib._threadpool_get_thread_count() != threads:
            portable_lib._unsafe_reset_threadpool(threads)  # no other call sets its size
            cls.number += 1


class _ExecuTorchSession(Session):
    def __init__(self, portable_lib: Any, path: Path, method: str, contract: Contract) -> None:
        self._library, self._path, self._method, self.sample_shape = portable_lib, path, method, contract.inputs[0].shape[1:]
        self._load()
        _check_contract(self._module.method_meta(method), contract)

    def _load(self) -> None:
        self._pool = _Pool.number
        try:
            self._module = self._library._load_for_executorch(str(self._path))
            self._module.method_meta(self._method)
        except RuntimeError as error:
            raise EdgeSDError(f"ExecuTorch cannot load {self._path}: {error}", "export the bundle again") from error

    def __call__(self, *inputs: NDArray[Any]) -> NDArray[np.float32]:
        import torch

        if self._pool != _Pool.number:
            self._load()
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
