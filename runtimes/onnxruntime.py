"""The ONNX Runtime runtime, on the CPU."""

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_sd.bundle import Bundle
from edge_sd.bundle.manifest import Contract
from edge_sd.errors import EdgeSDError
from edge_sd.runnable import Availability, Session, packages_available
from edge_sd.runtimes._runtime import Runtime


class OnnxRuntime(Runtime):
    """CPU execution provider."""

    name = "onnxruntime"
    about = "ONNX Runtime, CPU"
    target = "onnx"

    def available(self) -> Availability:
        return packages_available("onnxruntime")

    def load(self, bundle: Bundle, threads: int | None = None) -> Session:
        os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # its wheels report home by default; read when it is first imported
        import onnxruntime

        path = bundle.path / bundle.program(self.target).file
        options = onnxruntime.SessionOptions()
        if threads is not None:
            options.intra_op_num_threads = threads
        options.log_severity_level = 3
        try:
            session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its exceptions have no common base of their own
            raise EdgeSDError(f"ONNX Runtime cannot load {path}: {error}", "export the bundle again") from error
        _check_contract(session, bundle.manifest.contract)
        return _OnnxSession(session, bundle.manifest.contract, bundle.manifest.model.sample_shape)


class _OnnxSession(Session):
    def __init__(self, session: Any, contract: Contract, sample_shape: tuple[int, int, int]) -> None:
        self._session, self.sample_shape = session, sample_shape
        self._names = [spec.name for spec in contract.inputs]

    def __call__(self, sample: NDArray[np.float32], time_features: NDArray[np.float32]) -> NDArray[np.float32]:
        out: NDArray[np.float32] = self._session.run(None, dict(zip(self._names, (sample, time_features), strict=True)))[0]
        return out


def _check_contract(session: Any, contract: Contract) -> None:
    """The file's inputs and outputs must be the manifest's: a wrong name or shape is found here, not in a picture."""
    for wanted, found in ((contract.inputs, session.get_inputs()), (contract.outputs, session.get_outputs())):
        ours = [(spec.name, list(spec.shape), f"tensor({spec.dtype.replace('float32', 'float')})") for spec in wanted]
        theirs = [(value.name, value.shape, value.type) for value in found]
        if ours != theirs:
            raise EdgeSDError(f"the ONNX program has {theirs}, its contract says {ours}", "export the bundle again")
