"""What an export target is: one small class, one file each in this folder, found by its name."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field
from torch import Tensor
from torch.export import ExportedProgram

from edge_sd.bundle.bits import LayerBits
from edge_sd.bundle.contract import Contract
from edge_sd.bundle.placement import Placement
from edge_sd.quantize.recipe import Recipe
from edge_sd.runnable import Availability
from edge_sd.validation import Record


class TargetOptions(Record):
    """What can be chosen of a target; each looks at its own.

    Attributes:
        onnx_opset: 18 is the newest whose quantized graphs load in ONNX Runtime (a zero point of output_dtype's type).
        executorch_delegate: xnnpack runs on any CPU; coreml and vulkan lower here, and cannot be run here.
        coreml_precision: what weights and arithmetic are in.
        coreml_os: oldest system that the package opens on; iOS 18 holds several functions in one package.
    """

    onnx_opset: int = 18
    executorch_delegate: Literal["xnnpack", "coreml", "vulkan"] = "xnnpack"
    coreml_precision: Literal["fp16", "fp32"] = "fp16"
    coreml_os: Literal["iOS16", "iOS17", "iOS18"] = Field(default="iOS17")


@dataclass(frozen=True)
class Source:
    """A program to be exported: what torch.export made of its module, what it is called with, what it promises, its rewrites, and
    the recipe that it was quantized by.
    """

    exported: ExportedProgram
    example: tuple[Tensor, ...]
    contract: Contract
    rewrites: tuple[str, ...] = ()
    recipe: Recipe | None = None

    @property
    def name(self) -> str:
        """denoiser, temporal or decoder."""
        return self.contract.program


@dataclass(frozen=True)
class Exported:
    """Where a program ended up below the bundle's folder, and what became of it."""

    file: str
    entry: str
    options: dict[str, str]
    placement: Placement
    layers: tuple[LayerBits, ...] = ()  # of a quantized program


class Target(ABC):
    """A format that programs can be exported to.

    Attributes:
        name: what `--target` takes.
        about: one line for `edge-sd list targets`.
        rewrites: names of `REWRITES` that pay for this target, in the order in which they are applied.
        quantized_rewrites: the same for a quantized model, whose weights are final: those that change nothing but the layout.
    """

    name: str
    about: str
    rewrites: tuple[str, ...]
    quantized_rewrites: tuple[str, ...]

    @abstractmethod
    def available(self) -> Availability:
        """Whether this machine has what the export needs."""

    @abstractmethod
    def check(self, sources: Sequence[Source], options: TargetOptions) -> list[str]:
        """What stands against the export, one sentence each: operators, versions, options. Takes seconds, writes nothing."""

    @abstractmethod
    def export(self, sources: Sequence[Source], options: TargetOptions, folder: Path) -> dict[str, Exported]:
        """Write the programs below `folder`, their contracts inside where the format has room; by program name.

        Raises:
            EdgeSDError: the format or its compiler refuses one; the operator is named.
        """

    def value_bytes(self, program: str, options: TargetOptions) -> int:
        """Bytes that a weight or an activation takes: 4, unless the target computes in something narrower."""
        return 4

    @abstractmethod
    def stamp(self, file: Path, contracts: Sequence[Contract]) -> None:
        """Replace the contracts inside a file that `export` wrote (its plan has been swapped); nothing else in it changes.

        Does nothing where the format has no room for them.
        """
