"""The checkpoint: one safetensors file that holds a model and all that is needed to use it and to know where it came from."""

import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

import edge_sd
from edge_sd.diffusion.plan import Prediction
from edge_sd.diffusion.schedule import NoiseSchedule
from edge_sd.errors import EdgeSDError
from edge_sd.files import read_tensors, tensors_digest, write_tensors
from edge_sd.models.config import ModelConfig
from edge_sd.validation import Record

if TYPE_CHECKING:
    from edge_sd.models.unet import SpectralUNet


class Provenance(Record):
    """The path that led to a set of weights."""

    made_by: str  # the verb: train, distill, …
    steps: int = Field(default=0, ge=0)
    images_seen: int = Field(default=0, ge=0)
    seed: int = 0
    data: str = ""  # what the data was, for a person
    data_digest: str = ""  # SHA-256 over its images
    settings: dict[str, Any] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict)
    parents: dict[str, str] = Field(default_factory=dict)  # role → weights digest, for instance teacher


class CheckpointHeader(Record):
    """The metadata of a checkpoint file."""

    schema_version: Literal[1] = 1
    kind: Literal["checkpoint"] = "checkpoint"
    model: ModelConfig
    noise_schedule: NoiseSchedule
    prediction: Prediction
    provenance: Provenance
    digest: str  # SHA-256 over the tensors as float32, however they are stored


@dataclass(frozen=True)
class Checkpoint:
    """EMA weights (float32) and their header."""

    header: CheckpointHeader
    weights: dict[str, np.ndarray] = field(repr=False)

    @classmethod
    def of(
        cls, model: "SpectralUNet", noise_schedule: NoiseSchedule, prediction: Prediction, provenance: Provenance
    ) -> "Checkpoint":
        """Take a model's weights."""
        weights = {name: tensor.detach().float().cpu().numpy().copy() for name, tensor in model.state_dict().items()}
        header = CheckpointHeader(
            model=model.config,
            noise_schedule=noise_schedule,
            prediction=prediction,
            provenance=provenance,
            digest=tensors_digest(weights),
        )
        return cls(header, weights)

    def build(self, widths: Sequence[int] = ()) -> "SpectralUNet":
        """Return the model in evaluation mode, its weights loaded, on the CPU.

        Args:
            widths: of each of a plan's programs, where they differ (`PlanHeader.widths`); see `models.slim.StepAwareUNet`.

        Raises:
            UsageError: the weights do not work at one of the widths.
            EdgeSDError: the weights are not those of the configuration; the first that differs is named.
        """
        import torch

        from edge_sd.models.unet import SpectralUNet

        model = SpectralUNet(self.header.model)
        expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        found = {name: value.shape for name, value in self.weights.items()}
        for name in sorted(expected.keys() | found.keys()):
            if expected.get(name) != found.get(name):
                raise EdgeSDError(
                    f"weights do not fit the model: {name} is {found.get(name)}, expected {expected.get(name)}",
                    "give a file that edge-sd wrote",
                )
        model.load_state_dict({name: torch.from_numpy(value) for name, value in self.weights.items()})
        if not widths:
            return model.eval()
        from edge_sd.models.slim import StepAwareUNet

        return StepAwareUNet(model.eval(), widths)

    def rounded(self) -> "Checkpoint":
        """The same with weights rounded to float16, which `save` can keep in half the bytes; of the parent "float32"."""
        weights = {name: value.astype(np.float16).astype(np.float32) for name, value in self.weights.items()}
        provenance = self.header.provenance
        parents = {**provenance.parents, "float32": self.header.digest}
        changes = {"digest": tensors_digest(weights), "provenance": provenance.model_copy(update={"parents": parents})}
        return Checkpoint(self.header.model_copy(update=changes), weights)

    def save(self, path: Path, *, half: bool = False) -> None:
        """Write the file, atomically.

        Args:
            half: store float16, for weights that are `rounded`: not a bit of them is lost.

        Raises:
            ValueError: `half`, and a weight is no float16.
        """
        if not half:
            return write_tensors(path, self.weights, self.header)
        halves = {name: value.astype(np.float16) for name, value in self.weights.items()}
        if any(not np.array_equal(halves[name], value) for name, value in self.weights.items()):
            raise ValueError("weights are not rounded")
        write_tensors(path, halves, self.header)


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        EdgeSDError: missing, truncated, foreign, not finite, or changed since it was written.
    """
    header, stored = read_tensors(CheckpointHeader, path)
    weights = {name: value.astype(np.float32) if value.dtype == np.float16 else value for name, value in stored.items()}
    if tensors_digest(weights) != header.digest:
        raise EdgeSDError(
            f"{path}: the weights have changed since they were written (their SHA-256 differs)", "copy or make the file again"
        )
    return Checkpoint(header, weights)


def versions() -> dict[str, str]:
    """The versions that decide what comes out: Python, edge-sd and the packages that compute."""
    found = {"python": platform.python_version(), "edge-sd": edge_sd.__version__}
    for package in ("torch", "numpy", "accelerate", "onnx", "onnxruntime", "executorch", "coremltools", "nncf"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
