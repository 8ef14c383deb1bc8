"""`edge-sd quantize`: a checkpoint becomes one of 8 or 4 bits, and a bundle."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edge_sd.cli import _options as option
from edge_sd.pretrained import DEFAULT

if TYPE_CHECKING:
    from edge_sd.models import ModelConfig
    from edge_sd.quantize.recipe import Recipe
    from edge_sd.report.quantization import QuantizationReport


def quantize(
    checkpoint: Annotated[
        Path, typer.Argument(help="Checkpoint, diffusers folder, or a shipped model: edge-sd list models.")
    ] = Path(DEFAULT),
    bits: Annotated[int, typer.Option("--bits", help="Of the weights, 2 to 8.")] = 4,
    act_bits: Annotated[str, typer.Option("--act-bits", help="Of the activations: 8, 16 or none.")] = "8",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder; NAME-w4a8 if left out. The same command goes on."),
    ] = None,
    target: Annotated[
        list[str] | None, typer.Option("--target", help="Of the bundle: edge-sd list targets, all, or none; onnx if left out.")
    ] = None,
    recipe: Annotated[Path | None, typer.Option("--recipe", help="Apply this recipe; it decides all that is below.")] = None,
    layer: Annotated[
        list[str] | None, typer.Option("--layer", help="PATTERN=BITS or PATTERN=float, for instance 'up.7.*=8'. Several times.")
    ] = None,
    group: Annotated[
        int | None, typer.Option("--group", help="Input channels that share a scale; all by default.", min=2)
    ] = None,
    budget: Annotated[
        str, typer.Option("--budget", help="'sqnr>=20dB', 'size<=3MB' or 'latency<=0.6x': choose the bits of each layer.")
    ] = "",
    engine: Annotated[str, typer.Option("--engine", help="edge-sd, or nncf (8 bits, ONNX).")] = "edge-sd",
    solver: option.Solver = "dpmpp",
    steps: Annotated[int, typer.Option("--steps", help="Function evaluations of the plan it is calibrated for.", min=1)] = 20,
    spacing: option.Spacing = None,
    groups: Annotated[
        int,
        typer.Option("--groups", help="Groups of steps with ranges of their own, 1 to 4; 0: what is worth it.", min=0, max=4),
    ] = 0,
    ranges: Annotated[str, typer.Option("--ranges", help="Of activations: minmax, percentile or mse.")] = "mse",
    coverage: Annotated[
        str,
        typer.Option("--coverage", help="Steps to calibrate on: every, uniform (Q-Diffusion) or skew-normal (PTQ4DM)."),
    ] = "every",
    interval: Annotated[int, typer.Option("--interval", help="Of uniform coverage.", min=1)] = 2,
    trajectories: Annotated[
        int, typer.Option("--trajectories", help="Images drawn for calibration; 0: 128 of 16×16, 16 of large ones.", min=0)
    ] = 0,
    calibration: Annotated[Path | None, typer.Option("--calibration", help="Use these captured inputs.")] = None,
    iterations: Annotated[
        int, typer.Option("--iterations", help="Of reconstruction, a block; 0 rounds to nearest.", min=0)
    ] = 400,
    batch_size: Annotated[int, typer.Option("--batch-size", help="Of reconstruction; 0: by the size of the maps.", min=0)] = 0,
    decoder: Annotated[Path | None, typer.Option("--decoder", help="Decoder of a latent model.")] = None,
    strict_bits: Annotated[
        bool, typer.Option("--strict-bits", help="Fail if a target stores or computes more bits than asked for.")
    ] = False,
    seed: option.Seed = 0,
    overwrite: option.Overwrite = False,
    as_json: option.AsJson = False,
) -> None:
    """Quantize a checkpoint after training: 8 or 4 bits, ranges by groups of steps, roundings learnt block by block.

    Example: edge-sd quantize runs/student/checkpoint.safetensors --bits 4 --target onnx --target coreml -o student-w4a8
    """
    from edge_sd.checkpoint import Checkpoint
    from edge_sd.cli._console import progress, say
    from edge_sd.errors import UsageError
    from edge_sd.export import ExportRequest, TargetOptions
    from edge_sd.pipeline.quantizing import QuantizeRequest, Quantizing
    from edge_sd.quantize.checkpoint import is_quantized, open_any
    from edge_sd.quantize.recipe import load_recipe

    path = option.shipped(checkpoint)
    if path.is_file() and is_quantized(path):
        raise UsageError(f"{path} is quantized already", "give the full-precision checkpoint")
    chosen = None if recipe is None else load_recipe(recipe)
    model = open_any(path, decoder)
    if chosen is None:
        chosen = _recipe(model.checkpoint.header.model, locals())
    out = output or Path(f"{_name(checkpoint)}-w{bits}a{'f' if act_bits == 'none' else act_bits}")
    request = QuantizeRequest(
        recipe=chosen,
        budget=budget,
        calibration=calibration,
        engine=engine,
        export=ExportRequest(
            targets=() if target == ["none"] else tuple(target or ("onnx",)),
            options=TargetOptions(coreml_os="iOS18"),  # the first with 4-bit weights, and with several functions in a package
            seed=seed,
            strict_bits=strict_bits,
        ),
        seed=seed,
    )
    assert isinstance(model.checkpoint, Checkpoint)  # noqa: S101 (a quantized one was refused)
    with progress("quantizing") as update:
        work = Quantizing(
            str(checkpoint), model.checkpoint, model.decoder, request, out, overwrite=overwrite,
            progress=lambda stage, done, total, note: update(done, total, f"{stage} {note}".strip()),
        )  # fmt: skip
        report = work.walk()
    if as_json:
        print(report.model_dump_json(indent=2))
    else:
        _print(report)
        if request.export.targets:
            print_bits(work.bundle)
    say(f"wrote {out}: {', '.join(sorted(entry.name for entry in out.iterdir() if not entry.name.startswith('.')))}")


def _name(checkpoint: Path) -> str:
    return checkpoint.resolve().parent.name if checkpoint.stem == "checkpoint" else checkpoint.stem


def _recipe(model: "ModelConfig", given: Mapping[str, Any]) -> "Recipe":
    """From a verb's arguments to a recipe for a model."""
    from edge_sd.errors import UsageError
    from edge_sd.quantize.calibration import SEED, enough_trajectories
    from edge_sd.quantize.recipe import Recipe, default_layers, overridden
    from edge_sd.validation import validated

    widths = {"8": 8, "16": 16, "none": None}
    if given["act_bits"] not in widths:
        raise UsageError(f"activations cannot have {given['act_bits']} bits", "--act-bits 8, 16 or none")
    layers = default_layers(model, given["bits"], widths[given["act_bits"]], group=given["group"])  # type: ignore[arg-type]
    layers = overridden(layers, given["layer"] or ())
    values = {
        "model": model,
        "solver": given["solver"],
        "steps": given["steps"],
        "spacing": given["spacing"],
        "groups": given["groups"],
        "ranges": given["ranges"],
        "calibration": {
            "trajectories": given["trajectories"] or enough_trajectories(model.image_size),
            "coverage": given["coverage"],
            "interval": given["interval"],
            "seed": SEED + given["seed"],
        },
        "reconstruction": {"iterations": given["iterations"], "batch_size": given["batch_size"], "seed": given["seed"]},
        "layers": layers,
    }
    return validated(Recipe, values, "settings")


def _print(report: "QuantizationReport") -> None:
    from edge_sd.cli._console import print_table

    quality = report.quality
    ends = [*report.starts[1:], len(quality.step_db)]
    ratio = report.weights_bytes / report.float_bytes
    rows = [
        ("SNR of the prediction, mean over the steps", f"{quality.mean_db:.1f} dB"),
        ("the same at the worst step", f"{quality.step_db[quality.worst_step]:.1f} dB (step {quality.worst_step})"),
        ("SNR of the final sample", f"{quality.final_snr_db:.1f} dB"),
        ("PSNR of the final image", f"{quality.final_psnr_db:.1f} dB ({quality.images} images, seed {quality.seed})"),
        ("weights", f"{report.weights_bytes / 1e6:.2f} MB, {ratio:.3f} of float32, {report.effective_bits:.2f} bits a weight"),
        ("groups of steps", ", ".join(f"{start}–{end - 1}" for start, end in zip(report.starts, ends, strict=True))),
    ]
    if report.group_errors and all(report.group_errors):
        decibels = ", ".join(f"{-10 * math.log10(error):.1f}" for error in report.group_errors)
        rows.append(("activations alone, with 1, 2, … groups", f"{decibels} dB"))
    how = "quantized by NNCF, in ONNX Runtime" if report.engine == "nncf" else "quantized, simulated in torch"
    print_table(f"{how}, against full precision", ("figure", "value"), rows)


def print_bits(bundle: Path) -> None:
    """Print what was asked for, what is stored and what is computed with, for each target of a bundle."""
    from collections import Counter

    from edge_sd.bundle import open_bundle
    from edge_sd.bundle.bits import effective_bits
    from edge_sd.cli._console import print_table

    rows: list[tuple[object, ...]] = []
    for program in open_bundle(bundle).manifest.programs:
        if program.name != "denoiser" or not program.layers:
            continue
        kinds = Counter(
            (entry.requested, entry.requested_activations, entry.stored, entry.computed, entry.why, entry.fell_back)
            for entry in program.layers
        )
        for (requested, activations, stored, computed, why, fell_back), count in kinds.items():
            asked = f"w{requested or 'float'} a{activations or 'float'}"
            rows.append((program.target, count, asked, f"{stored:g}", computed, "fell back" if fell_back else "", why))
        rows.append((program.target, len(program.layers), "in all", f"{effective_bits(program.layers):.2f}", "", "", ""))
    if rows:
        print_table("bits of the layers", ("target", "layers", "asked for", "stored", "computed", "", "why"), rows)
