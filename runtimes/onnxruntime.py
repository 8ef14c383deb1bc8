"""The ONNX Runtime runtime: on the CPU, or by the execution providers that are asked for."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_sd.bundle import Bundle
from edge_sd.bundle.contract import METADATA_KEY, Contract
from edge_sd.bundle.manifest import LAYOUT, NCHW
from edge_sd.errors import EdgeSDError, UsageError
from edge_sd.runnable import Availability, Session, packages_available
from edge_sd.runtimes._runtime import Runtime

PROVIDERS_VARIABLE = "EDGE_SD_ORT_PROVIDERS"
_CPU = "CPUExecutionProvider"


class OnnxRuntime(Runtime):
    """Execution providers in the order of preference; what none of them takes runs on the CPU."""

    name = "onnxruntime"
    about = f"ONNX Runtime, on the CPU or by what {PROVIDERS_VARIABLE} names"
    target = "onnx"
    native = True

    def __init__(self, providers: Sequence[str] | None = None) -> None:
        """Choose execution providers.

        Args:
            providers: ONNX Runtime's names; if left out, those in EDGE_SD_ORT_PROVIDERS, with commas between, or the CPU's.
        """
        self._providers = providers

    @property
    def providers(self) -> list[str]:
        """The execution providers that programs are loaded for, the CPU's last."""
        asked = os.environ.get(PROVIDERS_VARIABLE, "").split(",") if self._providers is None else self._providers
        names = [name.strip() for name in asked if name.strip()]
        return names if _CPU in names else [*names, _CPU]

    def available(self) -> Availability:
        found = packages_available("onnxruntime")
        return Availability(True, f"{found.detail}, {', '.join(self.providers)}") if found.ok else found

    def load(self, bundle: Bundle, threads: int | None = None, program: str = "denoiser") -> Session:
        os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # its wheels report home by default; read when it is first imported
        import onnxruntime

        if missing := set(self.providers) - set(onnxruntime.get_available_providers()):
            raise UsageError(
                f"this ONNX Runtime has no {', '.join(sorted(missing))}",
                f"{PROVIDERS_VARIABLE} is one or more of {', '.join(onnxruntime.get_available_providers())}",
            )
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
                providers=self.providers,
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
