"""Options that several verbs share, each with one meaning and one help text."""

from pathlib import Path
from typing import Annotated, Literal

import typer

Source = Annotated[
    str,
    typer.Option(
        "--data",
        help="Folder of images (a sub-folder is a class); .parquet file, .tar webdataset shard, folder or glob of them; "
        "hub:OWNER/NAME of the Hugging Face hub; or 'dead-leaves', the built-in ones. Examples: photos/, 'shards/*.tar', "
        "hub:ylecun/mnist.",
    ),
]
Resize = Annotated[
    bool, typer.Option("--resize", help="Scale and crop images to the model's size; without it each must have that size.")
]
Split = Annotated[
    str | None, typer.Option("--split", help="Sub-folder, word in the shards' names, or split of a hub data set: train.")
]
Labels = Annotated[bool, typer.Option("--labels", help="Read classes too, and learn them; an error where there are none.")]
LabelColumn = Annotated[str | None, typer.Option("--label-column", help="Where the classes are, if several columns could be it.")]
ImageColumn = Annotated[str | None, typer.Option("--image-column", help="Where the images are, if several columns hold some.")]
Limit = Annotated[int | None, typer.Option("--limit", help="Read this many images at most.", min=1)]
MaxBroken = Annotated[
    int | None,
    typer.Option(
        "--max-broken",
        help="Leave out this many broken images, and shards cut short, before it is an error. "
        "Without it 1 image in 100 may be broken, and no shard.",
        min=0,
    ),
]
Crop = Annotated[
    int, typer.Option("--crop", help="Read images this many pixels larger and train on random windows, for instance 8.", min=0)
]
Cache = Annotated[
    Path | None,
    typer.Option(
        "--cache",
        help="Keep decoded images in this folder. Without it those of large sets, and of the hub, go to $EDGE_SD_CACHE or "
        "~/.cache/edge-sd.",
    ),
]
Count = Annotated[int, typer.Option("--count", help="How many dead leaves.", min=1)]
MinRadius = Annotated[float, typer.Option("--min-radius", help="Smallest disc of the dead leaves, in pixels.")]
PresetName = Annotated[str, typer.Option("--preset", help="Model to train: edge-sd list presets.")]
Size = Annotated[int | None, typer.Option("--size", help="Height and width in pixels, in place of the preset's.")]
Steps = Annotated[int, typer.Option("--steps", help="Training steps.", min=1)]
BatchSize = Annotated[int, typer.Option("--batch-size", help="Images a step, over all processes.", min=1)]
LearningRate = Annotated[float, typer.Option("--learning-rate", "--lr", help="Peak learning rate.")]
Warmup = Annotated[int, typer.Option("--warmup", help="Steps in which the learning rate rises.", min=0)]
EmaDecay = Annotated[
    float, typer.Option("--ema-decay", help="Of the average of weights that is kept; nearer to 1 for longer training: 0.999.")
]
Flip = Annotated[bool, typer.Option("--flip/--no-flip", help="Learn mirror images too; not where left and right matter.")]
Precision = Annotated[str, typer.Option("--precision", help="auto, fp32 or bf16.")]
Accumulate = Annotated[
    int, typer.Option("--accumulate", help="Slices in which each process computes its share of a batch, to save memory.", min=1)
]
Compile = Annotated[bool, typer.Option("--compile", help="Compile the model; the first steps take minutes.")]
ChannelsLast = Annotated[str, typer.Option("--channels-last", help="Feature maps with channels last: auto, yes or no.")]
CheckpointActivations = Annotated[
    bool, typer.Option("--checkpoint-activations", help="Compute blocks twice, to save memory: for large teachers.")
]
Seed = Annotated[int, typer.Option("--seed", help="Of everything random.", min=0, max=2**63 - 1)]
SaveEvery = Annotated[int, typer.Option("--save-every", help="Steps between two training states.", min=1)]
SampleEvery = Annotated[int, typer.Option("--sample-every", help="Steps between two grids of samples; 0 for none.", min=0)]
OutFolder = Annotated[Path, typer.Option("--output", "-o", help="Folder of the run. The same command goes on where it stopped.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]
Objective = Annotated[
    str | None,
    typer.Option("--objective", help="trajectory, or kid: what is made small. kid where --data and --features are given."),
]
RealImages = Annotated[
    str | None, typer.Option("--data", help="Real images for kid: a folder, shards, hub:OWNER/NAME, as edge-sd evaluate.")
]
RealCount = Annotated[int, typer.Option("--real", help="Real images that are compared with; all if there are fewer.", min=3)]
FeaturesOf = Annotated[str | None, typer.Option("--features", help="For kid: inception, or package.module:callable.")]
FeaturesName = Annotated[str | None, typer.Option("--features-name", help="What their distance is called.")]
FeatureSize = Annotated[int | None, typer.Option("--feature-size", help="Pixels that images are resized to for them.", min=1)]
FineSteps = Annotated[
    int | None, typer.Option("--fine", help="Steps of the fine-grained trajectory (UniPC); 100 if left out.", min=2)
]
TrialSamples = Annotated[
    int | None, typer.Option("-n", help="Samples for each trial; 48 of trajectory and 64 of kid if left out.", min=2)
]
FreshSamples = Annotated[
    int | None, typer.Option("--fresh", help="Samples that finalists are ranked by; 4 times -n if left out.", min=2)
]
DrawnLabel = Annotated[int | None, typer.Option("--label", help="Class to draw; all in turn if left out.", min=0)]
Processes = Annotated[int | None, typer.Option("--processes", help="Of one thread each; one a core if left out.", min=1)]
SearchSeed = Annotated[int, typer.Option("--seed", help="Of everything random.", min=0, max=2**62 - 1)]
Solver = Annotated[str, typer.Option("--solver", help="edge-sd list solvers.")]
Spacing = Annotated[
    str | None,
    typer.Option(
        "--spacing", help="leading, trailing, linspace or quadratic (FastDPM: linear or quadratic); the solver's own if left out."
    ),
]
PlanFile = Annotated[
    Path | None,
    typer.Option("--plan", help="A plan.safetensors of edge-sd plan, in place of --solver, --steps, --spacing and --eta."),
]
Threads = Annotated[
    int | None, typer.Option("--threads", help="Threads of one call; all cores if left out (of a device, four at most).", min=1)
]
Devices = Annotated[
    list[str] | None,
    typer.Option("--device", help="NAME or NAME:ADDRESS, once for each device; edge-sd list devices. This machine if left out."),
]
Patience = Annotated[
    float,
    typer.Option(
        "--patience",
        help="Seconds without a word after which a device counts as gone; five times as many of an emulated one.",
        min=0.1,
    ),
]
Form = Annotated[
    Literal["text", "json"], typer.Option("--format", help="Of what is printed on stdout: text for people, json for programs.")
]


def numbers_of(text: str | None, option: str) -> tuple[int, ...]:
    """0,1,3 as numbers.

    Raises:
        UsageError: it is something else.
    """
    from edge_sd.errors import UsageError

    parts = [] if text is None else text.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise UsageError(f"{option} is numbers with commas between, unlike {text!r}", f"{option} 0,1")
    return tuple(int(part) for part in parts)


def shipped(model: Path) -> Path:
    """The file of a model that comes with the package, where its name was given; else the path itself."""
    from edge_sd.pretrained import model_path

    return model_path(model)
