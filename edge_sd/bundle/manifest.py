"""What a bundle says of itself: its files with their hashes, its programs with their contracts."""

import hashlib
from pathlib import PurePosixPath
from typing import Literal

from pydantic import Field, field_validator, model_validator
from typing_extensions import Self

from edge_sd.bundle.bits import LayerBits
from edge_sd.bundle.contract import Contract, ProgramName
from edge_sd.bundle.placement import MemoryForecast, Placement
from edge_sd.diffusion.plan import Prediction
from edge_sd.diffusion.schedule import NoiseSchedule
from edge_sd.models.config import ModelConfig
from edge_sd.validation import Record

MANIFEST, PLAN, GOLDEN, CARD, REFERENCE, DECODER = (
    "manifest.json",
    "plan.safetensors",
    "golden.safetensors",
    "README.md",
    "reference.safetensors",
    "decoder.safetensors",
)


WEIGHTS = "weights.bin"  # what several ONNX programs share
# Of `Program.options`: how a runtime is to leave maps that it might turn over; see the ONNX target.
LAYOUT, NCHW = "layout", "nchw"


class FileEntry(Record):
    """A file of the bundle."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)


class Program(Record):
    """One exported program.

    Attributes:
        name: what it computes: denoiser, temporal or decoder.
        file: file or folder of the bundle.
        entry: method or function inside of the file, where a file holds several.
        options: of the target: precision, opset, delegate, …
        rewrites: names of `models.rewrites` that were applied.
        layers: bits asked for, stored and computed with, where it is quantized.
        seconds: that its export took, shared files counted once.
    """

    name: ProgramName
    target: str
    file: str
    entry: str = ""
    options: dict[str, str] = Field(default_factory=dict)
    rewrites: tuple[str, ...] = ()
    placement: Placement | None = None
    layers: tuple[LayerBits, ...] = ()
    memory: MemoryForecast | None = None
    seconds: float = Field(default=0.0, ge=0)


class Manifest(Record):
    """manifest.json."""

    schema_version: Literal[3] = 3
    kind: Literal["bundle"] = "bundle"
    name: str
    model: ModelConfig
    noise_schedule: NoiseSchedule
    prediction: Prediction
    weights_digest: str  # of the checkpoint that it was exported from
    contracts: tuple[Contract, ...]  # one a program, whatever the target
    programs: tuple[Program, ...]
    files: dict[str, FileEntry]
    versions: dict[str, str]
    digest: str = ""  # of all of the above

    def computed_digest(self) -> str:
        """SHA-256 over everything but the digest."""
        return hashlib.sha256(self.model_dump_json(exclude={"digest"}).encode()).hexdigest()

    def sealed(self) -> Self:
        """This manifest with its digest."""
        return self.model_copy(update={"digest": self.computed_digest()})

    def contract(self, program: str = "denoiser") -> Contract:
        """The contract of a program.

        Raises:
            KeyError: the bundle has none of that name.
        """
        contracts: dict[str, Contract] = {contract.program: contract for contract in self.contracts}
        return contracts[program]

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of what the denoiser denoises."""
        _, channels, height, width = self.contract().inputs[0].shape
        return channels, height, width

    @property
    def labelled(self) -> bool:
        """Whether the rows of time features depend on a class, so that `temporal` makes them."""
        return self.model.num_classes is not None

    @field_validator("files")
    @classmethod
    def _inside(cls, files: dict[str, FileEntry]) -> dict[str, FileEntry]:
        for name in files:
            path = PurePosixPath(name)
            if (
                len(name.encode(errors="replace")) > 255
                or path.is_absolute()
                or ".." in path.parts
                or not {"\\", ":"}.isdisjoint(name)
                or str(path) != name
            ):
                raise ValueError(f"{name!r} is not a plain path inside the bundle")
        return files

    @model_validator(mode="after")
    def _complete(self) -> Self:
        for needed in (PLAN, GOLDEN, *(program.file for program in self.programs)):
            if needed not in self.files and not any(name.startswith(f"{needed}/") for name in self.files):
                raise ValueError(f"{needed} is not among its files")
        names = [contract.program for contract in self.contracts]
        if "denoiser" not in names or len(set(names)) != len(names):
            raise ValueError(f"contracts of {names}, not one of each program")
        unknown = {program.name for program in self.programs} - set(names)
        if unknown:
            raise ValueError(f"programs without a contract: {', '.join(sorted(unknown))}")
        if self.labelled and "temporal" not in names:
            raise ValueError("a class-conditional bundle needs the program temporal")
        return self
