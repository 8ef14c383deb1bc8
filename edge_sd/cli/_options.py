"""Options that several verbs share, each with one meaning and one help text."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from edge_sd.data import ImageData
    from edge_sd.models import ModelConfig, Preset
    from edge_sd.validation import Model

Source = Annotated[str, typer.Option("--data", help="Folder of images (sub-folders too), or 'dead-leaves', the built-in ones.")]
Resize = Annotated[
    bool, typer.Option("--resize", help="Scale and crop images to the model's size; without it each must have that size.")
]
Count = Annotated[int, typer.Option("--count", help="How many dead leaves.", min=1)]
MinRadius = Annotated[float, typer.Option("--min-radius", help="Smallest disc of the dead leaves, in pixels.")]
PresetName = Annotated[str, typer.Option("--preset", help="Model to train: edge-sd list presets.")]
Size = Annotated[int | None, typer.Option("--size", help="Height and width in pixels, in place of the preset's.")]
Steps = Annotated[int, typer.Option("--steps", help="Training steps.", min=1)]
BatchSize = Annotated[int, typer.Option("--batch-size", help="Images a step, over all processes.", min=1)]
LearningRate = Annotated[float, typer.Option("--learning-rate", "--lr", help="Peak learning rate.")]
Warmup = Annotated[int, typer.Option("--warmup", help="Steps in which the learning rate rises.", min=0)]
Precision = Annotated[str, typer.Option("--precision", help="auto, fp32 or bf16.")]
Seed = Annotated[int, typer.Option("--seed", help="Of everything random.", min=0, max=2**63 - 1)]
SaveEvery = Annotated[int, typer.Option("--save-every", help="Steps between two training states.", min=1)]
SampleEvery = Annotated[int, typer.Option("--sample-every", help="Steps between two grids of samples; 0 for none.", min=0)]
OutFolder = Annotated[Path, typer.Option("--output", "-o", help="Folder of the run. The same command goes on where it stopped.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]
Solver = Annotated[str, typer.Option("--solver", help="edge-sd list solvers.")]
Spacing = Annotated[
    str | None, typer.Option("--spacing", help="leading, trailing, linspace or quadratic; the solver's own if left out.")
]
Threads = Annotated[int | None, typer.Option("--threads", help="Threads of one call; all cores if left out.", min=1)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]


def pick(kind: "type[Model]", values: Mapping[str, object], what: str) -> "Model":
    """Build settings of `kind` from those of a verb's arguments that are among its fields."""
    from edge_sd.validation import validated

    return validated(kind, {name: values[name] for name in kind.model_fields if name in values}, what)


def read_data(values: Mapping[str, object], size: int) -> "ImageData":
    """Open the data source that a verb's arguments name, behind a progress bar."""
    from edge_sd.cli._console import progress
    from edge_sd.data import DataConfig, open_data

    config = pick(DataConfig, {name: values[name] for name in ("source", "resize", "count", "min_radius")}, "data")
    with progress("reading images") as update:
        return open_data(config, size, lambda done, total: update(done, total, ""))


def model_of(preset_name: str, size: int | None) -> "tuple[Preset, ModelConfig]":
    """Find a preset and, where a size is given, its configuration at that size."""
    from edge_sd.errors import UsageError
    from edge_sd.models import PRESETS, ModelConfig
    from edge_sd.validation import validated

    if preset_name not in PRESETS:
        raise UsageError(f"unknown preset {preset_name!r}", f"one of {', '.join(PRESETS)}")
    preset = PRESETS[preset_name]
    if size is None:
        return preset, preset.config
    return preset, validated(
        ModelConfig, {**preset.config.model_dump(), "image_size": size}, f"preset {preset_name} at --size {size}"
    )
