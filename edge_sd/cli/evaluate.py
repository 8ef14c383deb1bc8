"""`edge-sd evaluate`: how far samples are from real images, by features, by wavelet band and by frequency."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edge_sd.cli import _options as option

if TYPE_CHECKING:
    from edge_sd.diffusion.choice import PlanSource
    from edge_sd.evaluation.draw import Drawer
    from edge_sd.evaluation.features import Features
    from edge_sd.evaluation.record import Evaluation


def evaluate(
    model: Annotated[
        Path, typer.Argument(help="Checkpoint, shipped model, bundle NAME.edgesd, folder of images, or a file of --save-samples.")
    ],
    source: option.Source = "dead-leaves",
    split: option.Split = None,
    resize: option.Resize = False,
    image_column: option.ImageColumn = None,
    limit: option.Limit = None,
    max_broken: option.MaxBroken = None,
    cache: option.Cache = None,
    count: option.Count = 4096,
    min_radius: option.MinRadius = 1.0,
    size: Annotated[
        int | None, typer.Option("--size", help="Height and width of a folder's images; the first one's if left out.", min=1)
    ] = None,
    n: Annotated[int, typer.Option("-n", help="Real images, and samples: always as many of each.", min=2)] = 1000,
    features: Annotated[
        str, typer.Option("--features", help="inception, package.module:callable, or none: pixels alone.")
    ] = "inception",
    features_name: Annotated[
        str | None, typer.Option("--features-name", help="What the callable's distances are called; its own name if left out.")
    ] = None,
    feature_size: Annotated[
        int | None, typer.Option("--feature-size", help="Pixels the callable wants, where it has no attribute 'size'.", min=1)
    ] = None,
    inception_weights: Annotated[
        Path | None, typer.Option("--inception-weights", help="File of them; fetched from their usual address if left out.")
    ] = None,
    runtime: Annotated[str | None, typer.Option("--runtime", help="Of a bundle: edge-sd list runtimes; onnxruntime.")] = None,
    solver: Annotated[str | None, typer.Option("--solver", help="edge-sd list solvers; dpmpp, or a bundle's own plan.")] = None,
    steps: Annotated[int | None, typer.Option("--steps", help="Function evaluations; 20, or a bundle's own plan.")] = None,
    spacing: option.Spacing = None,
    eta: Annotated[float, typer.Option("--eta", help="Share of fresh noise, for ddim.")] = 0.0,
    plan: option.PlanFile = None,
    label: Annotated[
        int | None, typer.Option("--label", help="Class to draw; all in turn if left out, where there are any.", min=0)
    ] = None,
    processes: Annotated[int, typer.Option("--processes", help="That draw samples; they share the threads.", min=1)] = 1,
    threads: option.Threads = None,
    batch_size: Annotated[int, typer.Option("--batch-size", help="Samples and images at a time, in each process.", min=1)] = 32,
    seed: option.Seed = 0,
    kid_subsets: Annotated[
        int, typer.Option("--kid-subsets", help="Subsets that the kernel distance is a mean of.", min=1)
    ] = 100,
    kid_subset_size: Annotated[int, typer.Option("--kid-subset-size", help="Images in each.", min=2)] = 1000,
    neighbours: Annotated[int, typer.Option("--neighbours", help="k of precision and recall.", min=1)] = 3,
    wavelet: Annotated[str, typer.Option("--wavelet", help="Of the bands: haar, db2, bior2.2, …")] = "haar",
    save_samples: Annotated[Path | None, typer.Option("--save-samples", help="Also keep the samples, .safetensors.")] = None,
    figure: Annotated[Path | None, typer.Option("--figure", help="Also draw spectra and bands, .png.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Also write the result as JSON.")] = None,
    form: option.Form = "text",
    overwrite: option.Overwrite = False,
) -> None:
    """Measure n samples against n real images: kernel and Fréchet distance, precision and recall, wavelet bands, spectrum.

    A distance is called KID or FID by Inception's features alone. Every figure stands beside its n, split and features.

    Example: edge-sd evaluate student.safetensors --data photos/ -n 5000 --processes 4 -o evaluation.json
    """
    import time

    from edge_sd.api.images import image_settings, read_images
    from edge_sd.api.settings import pick, plan_source
    from edge_sd.cli._console import TERMINAL, progress, say
    from edge_sd.errors import UsageError
    from edge_sd.evaluation.draw import draw
    from edge_sd.evaluation.draw import save_samples as write_samples
    from edge_sd.evaluation.reference import EvaluationSettings, Reference, check_enough, choose
    from edge_sd.files import write_bytes, write_model

    model = option.shipped(model)
    values = dict(locals())
    for path in (save_samples, figure, output):
        if path is not None and path.exists() and not overwrite:
            raise UsageError(f"{path} exists", "give --overwrite to replace it, or another name")
    settings = pick(EvaluationSettings, values, "evaluation")
    extractor = _extractor(features, features_name, feature_size, inception_weights)
    check_enough(n, extractor, settings)  # before anything that takes minutes
    drawer = _drawer(model, plan_source(plan, solver, steps, spacing, eta), runtime, label, seed, n, size, resize)
    origin, side = drawer.origin, drawer.size

    seconds, started = {}, time.monotonic()
    split_name = split or ("train" if source.startswith("hub:") else "all")
    real_pixels, real = choose(read_images(image_settings(values), side, TERMINAL), n, split=split_name, seed=seed)
    with progress("features of real images") as update:

        def observe(done: int, total: int) -> None:
            update(done, total, "")

        reference = Reference.of(real_pixels, extractor, settings, real=real, batch_size=batch_size, observe=observe)
    seconds["reference"], started = time.monotonic() - started, time.monotonic()
    with progress("sampling") as update:
        pixels = draw(drawer, n, processes=processes, threads=threads, batch_size=batch_size, observe=observe)
    seconds["sampling"] = time.monotonic() - started
    if save_samples is not None:
        write_samples(save_samples, pixels, origin)
        say(f"wrote {save_samples}")
    with progress("features of samples") as update:
        result = reference.evaluate(pixels, origin, batch_size=batch_size, seconds=seconds, observe=observe)
    if output is not None:
        write_model(output, result)
        say(f"wrote {output}")
    if figure is not None:
        from edge_sd.report.evaluation import evaluation_figure

        write_bytes(figure, evaluation_figure(result))
        say(f"wrote {figure}")
    if form == "json":
        print(result.model_dump_json(indent=2))
    else:
        _print_table(result)


def _extractor(spec: str, name: str | None, size: int | None, inception_weights: Path | None) -> "Features | None":
    from edge_sd.errors import UsageError
    from edge_sd.evaluation.features import load_features

    if spec != "none":
        return load_features(spec, name=name, size=size, inception_weights=inception_weights)
    if (name, size, inception_weights) != (None, None, None):
        raise UsageError("--features none has no name, size or weights", "leave them out")
    return None


# What is evaluated


def _drawer(
    model: Path,
    plan: "PlanSource | None",
    runtime: str | None,
    label: int | None,
    seed: int,
    n: int,
    size: int | None,
    resize: bool,
) -> "Drawer":
    from edge_sd.api.images import image_settings, read_images
    from edge_sd.cli._console import TERMINAL
    from edge_sd.errors import UsageError
    from edge_sd.evaluation.draw import CheckpointDrawer, GivenSamples, PlanChoice, load_samples
    from edge_sd.evaluation.record import Origin
    from edge_sd.evaluation.reference import choose
    from edge_sd.runtimes.draw import BundleDrawer

    kind = _kind(model)
    if kind in ("folder", "samples"):
        if any(value is not None for value in (plan, runtime, label)):
            raise UsageError(
                f"the samples in {model} are there already",
                "leave --solver, --steps, --spacing, --eta, --plan, --runtime and --label out",
            )
        if kind == "samples":
            return GivenSamples(*load_samples(model))
        data = read_images(image_settings({"source": str(model), "resize": resize}), size or _side(model), TERMINAL)
        pixels, _ = choose(data, n, seed=seed)
        return GivenSamples(pixels, Origin(kind="folder", name=model.name, digest=data.digest))
    if size is not None:
        raise UsageError(f"the model in {model} has its own size", "--size is of a folder of images; leave it out")
    if kind == "bundle":
        return BundleDrawer(model, runtime or "onnxruntime", plan, seed, label)
    if runtime not in (None, "torch"):
        raise UsageError(f"a checkpoint runs in torch, not in {runtime}", "edge-sd export makes a bundle of it")
    return CheckpointDrawer(model, plan or PlanChoice(), seed, label)


def _kind(model: Path) -> str:
    """checkpoint, bundle, folder or samples."""
    import json

    from safetensors import SafetensorError, safe_open

    from edge_sd.bundle.bundle import is_bundle
    from edge_sd.files import HEADER

    if is_bundle(model):
        return "bundle"
    if model.is_dir():  # a folder that diffusers wrote says so in JSON
        return "checkpoint" if any((model / name).is_file() for name in ("model_index.json", "config.json")) else "folder"
    try:
        with safe_open(model, framework="numpy") as file:
            header = json.loads((file.metadata() or {}).get(HEADER, "{}"))
    except (SafetensorError, OSError, ValueError):
        return "checkpoint"  # whose reader says what is wrong with it
    return "samples" if isinstance(header, dict) and header.get("kind") == "images" else "checkpoint"


def _side(folder: Path) -> int:
    """The shorter side of the first image that can be read, of those that are evaluated."""
    from PIL import Image

    from edge_sd.data.decode import FORMATS
    from edge_sd.data.local import find_files
    from edge_sd.errors import UsageError

    try:
        files = find_files(str(folder))
    except UsageError as error:
        raise UsageError(f"{error.message}, and no model", "give a checkpoint, a bundle, or a folder of images") from error
    for path in files.paths if files.kind == "folder" else ():
        try:
            with Image.open(path, formats=FORMATS) as image:
                return min(image.size)
        except Exception:  # noqa: S112 (damaged: whoever reads it says so, and Pillow raises whatever its parsers run into)
            continue
    raise UsageError(f"no image in {folder} says how large it is", "--size says it")


# What is printed


def _print_table(result: "Evaluation") -> None:
    from edge_sd.cli._console import print_table

    origin, real = result.origin, result.real
    drawn = ", ".join(
        part
        for part in (
            f"{origin.solver}, {origin.nfe} evaluations" if origin.solver else "",
            f"in {origin.runtime}" if origin.runtime else "",
            f"seed {origin.seed}" if origin.seed is not None else "",
            origin.labels,
        )
        if part
    )
    rows = [
        (
            figure.name,
            _number(figure.value),
            "" if figure.standard_error is None else _number(figure.standard_error),
            "" if figure.spread is None else _number(figure.spread),
            figure.n,
            figure.split,
            "pixels" if figure.features is None else f"{figure.features.name} {figure.features.digest[:12]}",
        )
        for figure in result.figures
    ]
    definitions: dict[str, list[str]] = {}
    for figure in result.figures:
        definitions.setdefault(figure.definition, []).append(figure.name)
    notes = [f"{origin.kind} {origin.name} {origin.digest[:12]}" + (f": {drawn}" if drawn else "")]
    notes += [f"real: {result.n} of {real.available}, {real.about}, {real.digest[:12]}, chosen by seed {real.seed}"]
    notes += [f"{_common(names)} = {definition}" for definition, names in definitions.items()]
    notes += [f"note, {figure.name}: {figure.note}" for figure in result.figures if figure.note]
    columns = ("figure", "value", "± s.e.", "subsets' s.d.", "n", "split", "features")
    print_table(f"{origin.name} against {real.about}, {result.size} px", columns, rows, "\n".join(notes))


def _number(value: float) -> str:
    return f"{value:.5f}" if abs(value) < 10 else f"{value:.2f}"


def _common(names: list[str]) -> str:
    """wavelet SWD LH1, wavelet SWD HL1, … → wavelet SWD of each band."""
    return names[0] if len(names) == 1 else f"{names[0].rpartition(' ')[0]} of each band"
