"""The contract of a program: what goes in and comes out, and the plan it is meant for. It travels inside every format."""

from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator
from typing_extensions import Self

from edge_sd.diffusion.plan import Plan
from edge_sd.files import tensors_digest
from edge_sd.validation import Record

# A plan may call several denoisers, each for some of its steps: denoiser, denoiser.1, …
ProgramName = Annotated[str, Field(pattern=r"^(denoiser(\.[1-9]\d*)?|temporal|decoder)$")]
# Under this name the contract lies in a file's own metadata, where the format has any.
METADATA_KEY = "edge_sd.contract"
# Inputs and outputs of each program, with their ranks; temporal's second input is there where the model knows classes.
_SIGNATURES: dict[str, tuple[tuple[tuple[tuple[str, int], ...], ...], tuple[tuple[str, int], ...]]] = {
    "denoiser": (((("sample", 4), ("time_features", 2)),), (("prediction", 4),)),
    "temporal": (((("timestep", 1),), (("timestep", 1), ("label", 1))), (("time_features", 2),)),
    "decoder": (((("latent", 4),),), (("image", 4),)),
}


class TensorSpec(Record):
    """An input or output of a program.

    Attributes:
        layout: one letter a dimension.
        range: smallest and largest value met in the golden trajectories; what a device should be prepared for.
    """

    name: str
    shape: tuple[int, ...]
    dtype: Literal["float32", "float16", "int32"] = "float32"
    layout: str
    range: tuple[float, float]

    @classmethod
    def of(cls, name: str, layout: str, values: NDArray[np.generic]) -> "TensorSpec":
        """Describe one call's tensor, (1, …), by values of it from several, (n, …)."""
        shape, dtype = (1, *values.shape[1:]), "int32" if values.dtype == np.int32 else "float32"
        return cls(name=name, shape=shape, dtype=dtype, layout=layout, range=(float(values.min()), float(values.max())))


class PlanSummary(Record):
    """Which plan a bundle's programs are meant to be called along."""

    solver: str
    steps: int
    spacing: str
    prediction: str
    timesteps: tuple[float, ...]
    digest: str = Field(pattern=r"^[0-9a-f]{64}$")  # SHA-256 over the plan's columns

    @classmethod
    def of(cls, plan: Plan) -> "PlanSummary":
        """Summarise a plan."""
        header = plan.header
        return cls(
            solver=header.solver,
            steps=header.steps,
            spacing=header.spacing,
            prediction=header.prediction,
            timesteps=tuple(plan.timestep.tolist()),
            digest=tensors_digest(plan.columns),
        )


class Contract(Record):
    """What every runtime must accept and return, in this order, and along which plan."""

    schema_version: Literal[1] = 1
    program: ProgramName
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    plan: PlanSummary

    @model_validator(mode="after")
    def _signature(self) -> Self:
        inputs, outputs = (tuple((spec.name, len(spec.shape)) for spec in specs) for specs in (self.inputs, self.outputs))
        known_inputs, known_outputs = _SIGNATURES[self.program.partition(".")[0]]
        if inputs not in known_inputs or outputs != known_outputs:
            raise ValueError(f"a {self.program} does not take {inputs} and return {outputs}")
        return self
