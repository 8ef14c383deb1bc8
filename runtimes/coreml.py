"""The Core ML runtime, by coremltools' prediction; on macOS alone."""

import os
import platform
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_sd.bundle import Bundle
from edge_sd.bundle.contract import Contract
from edge_sd.errors import EdgeSDError, UsageError
from edge_sd.quiet import quiet
from edge_sd.runnable import Availability, Session, packages_available
from edge_sd.runtimes._runtime import Runtime
from edge_sd.runtimes.mil.contract import check_contract

UNITS = ("ALL", "CPU_AND_NE", "CPU_AND_GPU", "CPU_ONLY")
UNITS_VARIABLE = "EDGE_SD_COREML_UNITS"
_SYSTEM = "Darwin"
# ArrayFeatureType's data types, by the numbers of Core ML's FeatureTypes.proto.
_DTYPES = {65568: "float32", 65552: "float16", 131104: "int32", 131080: "int8"}


class CoreMLRuntime(Runtime):
    """Core ML decides where each operator runs, among the units that it may use."""

    name = "coreml"
    about = "Core ML on macOS"
    target = "coreml"

    def __init__(self, units: str | None = None) -> None:
        """Choose the compute units.

        Args:
            units: one of `UNITS`; if left out, what the variable EDGE_SD_COREML_UNITS says, or ALL.
        """
        self._units = units

    @property
    def units(self) -> str:
        """The compute units that programs are loaded for.

        Raises:
            UsageError: there are none of that name.
        """
        units = self._units or os.environ.get(UNITS_VARIABLE, "ALL")
        if units not in UNITS:
            raise UsageError(f"Core ML has no compute units {units!r}", f"{UNITS_VARIABLE} is one of {', '.join(UNITS)}")
        return units

    def available(self) -> Availability:
        if platform.system() != _SYSTEM:
            detail = f"Core ML is part of Apple's systems, and this is {platform.system()}"
            return Availability(False, detail, "a Mac; or --runtime coreml-reference, which evaluates the package here")
        found = packages_available("coremltools")
        if not found.ok:
            return found
        try:
            return Availability(True, f"{found.detail}, {self.units}")
        except UsageError as error:
            return Availability(False, error.message, error.hint)

    def load(self, bundle: Bundle, threads: int | None = None, program: str = "denoiser") -> Session:
        """`threads` is left to Core ML, which takes no such number."""
        found, contract = bundle.program(self.target, program), bundle.manifest.contract(program)
        available = self.available()
        if not available.ok:
            raise EdgeSDError(f"runtime {self.name}: {available.detail}", available.remedy)
        path = bundle.path / found.file
        model = _load(path, found.entry, self.units)
        _check(path, model.get_spec().description, found.entry, contract)
        return _CoreMLSession(model, contract)


def _load(path: Path, entry: str, units: str) -> Any:
    with quiet():
        import coremltools

        try:
            return coremltools.models.MLModel(
                str(path), compute_units=coremltools.ComputeUnit[units], function_name=entry or None
            )
        except Exception as error:  # its exceptions have no common base of their own
            raise EdgeSDError(f"Core ML cannot load {path}: {error}", "export the bundle again") from error


def _check(path: Path, description: Any, entry: str, contract: Contract) -> None:
    described = {function.name: function for function in description.functions}.get(entry, description)
    inputs, outputs = (
        [
            (item.name, tuple(item.type.multiArrayType.shape), _DTYPES.get(item.type.multiArrayType.dataType, "unknown"))
            for item in side
        ]
        for side in (described.input, described.output)
    )
    check_contract(path, description.metadata.userDefined, contract, inputs, outputs)


class _CoreMLSession(Session):
    def __init__(self, model: Any, contract: Contract) -> None:
        self._model, self.sample_shape = model, contract.inputs[0].shape[1:]
        self._names, self._output = [spec.name for spec in contract.inputs], contract.outputs[0].name

    def __call__(self, *inputs: NDArray[Any]) -> NDArray[np.float32]:
        given = {name: np.ascontiguousarray(value) for name, value in zip(self._names, inputs, strict=True)}
        return np.array(self._model.predict(given)[self._output], dtype=np.float32)
