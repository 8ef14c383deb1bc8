"""The configuration of a whole run, as it stands in a YAML file."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import Field, model_validator
from typing_extensions import Self

from edge_sd.data import DataConfig
from edge_sd.errors import UsageError, unknown
from edge_sd.export import TargetOptions
from edge_sd.models import PRESETS, ModelConfig
from edge_sd.models.autoencoder import AutoencoderConfig
from edge_sd.runtimes.parity import Gate
from edge_sd.training.config import DistillConfig, TrainConfig
from edge_sd.validation import Record, validated

if TYPE_CHECKING:
    from edge_sd.pipeline.ablation import AblationConfig

BUILT_IN = {"demo": Path(__file__).with_name("demo.yaml")}


class ModelSection(Record):
    """A preset, trained: changes to its `ModelConfig` go into `model`."""

    preset: str
    model: dict[str, Any] = Field(default_factory=dict)
    train: TrainConfig = TrainConfig()

    @model_validator(mode="after")
    def _known(self) -> Self:
        if self.preset not in PRESETS:
            error = unknown("preset", self.preset, PRESETS)
            raise ValueError(f"{error.message}; {error.hint}")
        _ = self.config
        return self

    @property
    def config(self) -> ModelConfig:
        """The preset's configuration with the changes."""
        return ModelConfig.model_validate({**PRESETS[self.preset].config.model_dump(), **self.model})


class TeacherSection(Record):
    """A teacher to train, or one that exists."""

    checkpoint: Path | None = None
    preset: str | None = None
    model: dict[str, Any] = Field(default_factory=dict)
    train: TrainConfig = TrainConfig()

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.checkpoint is None) == (self.preset is None):
            raise ValueError("give a teacher either as a checkpoint or as a preset to train")
        if self.preset is not None:
            _ = self.section
        return self

    @property
    def section(self) -> ModelSection:
        """What is to be trained, where there is no checkpoint."""
        return ModelSection.model_validate(self.model_dump(exclude={"checkpoint"}))


class AutoencoderSection(Record):
    """An autoencoder to train, or one that exists: the models then denoise its latents."""

    checkpoint: Path | None = None
    model: dict[str, Any] = Field(default_factory=dict)
    train: TrainConfig = TrainConfig(batch_size=16, learning_rate=2e-3, warmup=100, ema_decay=0.999, weight_decay=0.0)

    @model_validator(mode="after")
    def _known(self) -> Self:
        if self.checkpoint is not None and self.model:
            raise ValueError("give the autoencoder either as a checkpoint or as a model to train")
        _ = self.config
        return self

    @property
    def config(self) -> AutoencoderConfig:
        """What is to be trained, where there is no checkpoint."""
        return AutoencoderConfig.model_validate(self.model)


class StudentSection(ModelSection):
    """The student: a preset, distilled."""

    distill: DistillConfig = DistillConfig()


class SampleSection(Record):
    """The plan of the bundle, and the samples that are compared."""

    solver: str = "dpmpp"
    steps: int = Field(default=20, ge=1)
    spacing: str | None = None
    count: int = Field(default=64, ge=1)
    seed: int = Field(default=0, ge=0, lt=2**63)


class ExportSection(Record):
    """What the bundle holds."""

    targets: tuple[str, ...] = ("onnx",)
    options: TargetOptions = TargetOptions()
    goldens: int = Field(default=3, ge=1)


class ParitySection(Record):
    """Which runtimes must draw what the reference draws, and how closely; see `runtimes.parity.Gate`."""

    runtimes: tuple[str, ...] = ("onnxruntime",)
    gate: Gate = Gate()


class BenchSection(Record):
    """What is timed, where, and how often.

    Attributes:
        runtimes: on this machine.
        devices: others, as `--device` takes them: each proves and times what it prefers for the bundle.
    """

    runtimes: tuple[str, ...] = ("torch", "onnxruntime")
    devices: tuple[str, ...] = ()
    threads: int | None = Field(default=None, ge=1)
    warmup: int = Field(default=10, ge=1)
    iterations: int = Field(default=100, ge=1)


class RunConfig(Record):
    """All of a run; every section but teacher and student has defaults."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    data: DataConfig = DataConfig()
    autoencoder: AutoencoderSection | None = None
    teacher: TeacherSection
    student: StudentSection
    sample: SampleSection = SampleSection()
    export: ExportSection = ExportSection()
    parity: ParitySection = ParitySection()
    bench: BenchSection = BenchSection()


def load_config(path: str | Path) -> "RunConfig | AblationConfig":
    """Read a YAML file, or a built-in configuration by its name; one with `kind: ablation` is an ablation.

    Raises:
        UsageError: it does not exist or does not fit the schema; the first fault is named.
    """
    file = BUILT_IN.get(str(path), Path(path))
    try:
        values = yaml.safe_load(file.read_text())
    except OSError as error:
        raise UsageError(
            f"cannot read {file}: {error.strerror or error}", f"a YAML file, or a built-in one: {', '.join(BUILT_IN)}"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} is not YAML: {' '.join(str(error).split())}", "the README shows a configuration") from error
    if not isinstance(values, dict):
        raise UsageError(f"{file} holds no settings", "the README shows a configuration")
    if values.get("kind") == "ablation":
        from edge_sd.pipeline.ablation import AblationConfig  # here: it is built from the sections of this module

        return validated(AblationConfig, values, str(file))
    return validated(RunConfig, values, str(file))
