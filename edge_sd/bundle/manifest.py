"""What a bundle says of itself: its files with their hashes, its programs with their contracts."""

import hashlib
from pathlib import PurePosixPath
from typing import Literal

from pydantic import Field, field_validator, model_validator
from typing_extensions import Self

from edge_sd.diffusion.plan import Prediction
from edge_sd.diffusion.schedule import NoiseSchedule
from edge_sd.models.config import ModelConfig
from edge_sd.validation import Record

MANIFEST, PLAN, GOLDEN, CARD, REFERENCE = (
    "manifest.json",
    "plan.safetensors",
    "golden.safetensors",
    "README.md",
    "reference.safetensors",
)


class FileEntry(Record):
    """A file of the bundle."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)


class TensorSpec(Record):
    """An input or output of a program.

    Attributes:
        range: smallest and largest value met in the golden trajectories; what a device should be prepared for.
    """

    name: str
    shape: tuple[int, ...]
    dtype: Literal["float32", "float16"] = "float32"
    layout: str
    range: tuple[float, float]


class Contract(Record):
    """What every runtime must accept and return, in this order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @model_validator(mode="after")
    def _time_free(self) -> Self:
        found = [(spec.name, len(spec.shape)) for spec in (*self.inputs, *self.outputs)]
        if found != [("sample", 4), ("time_features", 2), ("prediction", 4)] or len(self.outputs) != 1:
            raise ValueError(f"a denoiser takes sample and time_features and returns prediction, not {found}")
        return self


class Program(Record):
    """One exported program: what it computes, for which target, in which file or folder of the bundle."""

    name: str
    target: str
    file: str


class Manifest(Record):
    """manifest.json."""

    schema_version: Literal[1] = 1
    kind: Literal["bundle"] = "bundle"
    name: str
    model: ModelConfig
    noise_schedule: NoiseSchedule
    prediction: Prediction
    weights_digest: str  # of the checkpoint that it was exported from
    contract: Contract  # of the denoiser
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

    @field_validator("files")
    @classmethod
    def _inside(cls, files: dict[str, FileEntry]) -> dict[str, FileEntry]:
        for name in files:
            path = PurePosixPath(name)
            if (
                len(name.encode(errors="replace")) > 255
                or path.is_absolute()
                or ".." in path.parts
                or "\\" in name
                or str(path) != name
            ):
                raise ValueError(f"{name!r} is not a plain path inside the bundle")
        return files

    @model_validator(mode="after")
    def _complete(self) -> Self:
        for needed in (PLAN, GOLDEN, *(program.file for program in self.programs)):
            if needed not in self.files and not any(name.startswith(f"{needed}/") for name in self.files):
                raise ValueError(f"{needed} is not among its files")
        return self
