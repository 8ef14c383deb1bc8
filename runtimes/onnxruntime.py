"""The ONNX Runtime runtime, on the CPU."""

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_sd.bundle import Bundle
from edge_sd.bundle.contract import METADATA_KEY, Contract
from edge_sd.bundle.manifest import LAYOUT, NCHW
from edge_sd.errors import EdgeSDError
from edge_sd.runnable import Availability, Session, packages_available
from edge_sd.runtimes._runtime import Runtime


class OnnxRuntime(Runtime):
    """CPU execution provider."""

    name = "onnxruntime"
    about = "ONNX Runtime, CPU"
    target = "onnx"
    native = True

    def available(self) -> Availability:
        return packages_available("onnxruntime")

    def load(self, bundle: Bundle, threads: int | None = None, program: str = "denoiser") -> Session:
        os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # its wheels report home by default; read when it is first imported
        import onnxruntime

        found = bundle.program(self.target, program)
        path = bundle.path / found.file
        options = onnxruntime.SessionOptions()
        if threads is not None:
            options.intra_op_num_threads = threads
        options.log_severity_level = 3
        # Its workers otherwise spin on after a call: a neighbour on the same cores is slowed severalfold, a phone kept warm.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        try:
            session = onnxruntime.InferenceSession(
                str(path),
                options,
                providers=["CPUExecutionProvider"],
                disabled_optimizers=["NhwcTransformer"] if found.options.get(LAYOUT) == NCHW else None,
            )
        except Exception as error:  # its exceptions have no common base of their own
            raise EdgeSDError(f"ONNX Runtime cannot load {path}: {error}", "export the bundle again") from error
        contract = bundle.manifest.contract(program)
        _check_contract(session, contract)
        return _OnnxSession(session, contract)


class _OnnxSession(Session):
    def __init__(self, session: Any, contract: Contract) -> None:
        self._session, self.sample_shape = session, contract.inputs[0].shape[1:]
        self._names = [spec.name for spec in contract.inputs]

    def __call__(self, *inputs: NDArray[Any]) -> NDArray[np.float32]:
        out: NDArray[np.float32] = self._session.run(None, dict(zip(self._names, inputs, strict=True)))[0]
        return out


_TYPES = {"float32": "tensor(float)", "float16": "tensor(float16)", "int32": "tensor(int32)"}


def _check_contract(session: Any, contract: Contract) -> None:
    """The file's own contract, inputs and outputs must be the manifest's: what differs is found here, not in a picture."""
    inside = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY, "")
    if inside != contract.model_dump_json():
        raise EdgeSDError(
            f"the contract inside the ONNX {contract.program} is not the manifest's: they are of different exports or plans",
            "export the bundle again",
        )
    for wanted, found in ((contract.inputs, session.get_inputs()), (contract.outputs, session.get_outputs())):
        ours = [(spec.name, list(spec.shape), _TYPES[spec.dtype]) for spec in wanted]
        theirs = [(value.name, value.shape, value.type) for value in found]
        if ours != theirs:
            raise EdgeSDError(f"the ONNX program has {theirs}, its contract says {ours}", "export the bundle again")
