"""`edge-sd quantize`: a checkpoint becomes one of 8 or 4 bits, and a bundle."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edge_sd.cli import _options as option
from edge_sd.pretrained import DEFAULT

if TYPE_CHECKING:
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
    form: option.Form = "text",
) -> None:
    """Quantize a checkpoint after training: 8 or 4 bits, ranges by groups of steps, roundings learnt block by block.

    Example: edge-sd quantize runs/student/checkpoint.safetensors --bits 4 --target onnx --target coreml -o student-w4a8
    """
    given = {name: value for name, value in locals().items() if name != "form"}
    from edge_sd.api import quantize as quantize_checkpoint
    from edge_sd.cli._console import TERMINAL, say

    done = quantize_checkpoint(**given, observer=TERMINAL)
    if form == "json":
        print(done.report.model_dump_json(indent=2))
    else:
        _print(done.report)
        if done.bundle is not None:
            print_bits(done.bundle)
    written = sorted(entry.name for entry in done.folder.iterdir() if not entry.name.startswith("."))
    say(f"wrote {done.folder}: {', '.join(written)}")


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
    from edge_sd.bundle import open_bundle
    from edge_sd.bundle.bits import effective_bits
    from edge_sd.cli._console import print_table
    from edge_sd.report.tables import bits_of

    rows: list[tuple[object, ...]] = []
    for program in open_bundle(bundle).manifest.programs:
        if program.name != "denoiser" or not program.layers:
            continue
        for one in bits_of(program.layers):
            fell_back = "fell back" if one.fell_back else ""
            rows.append((program.target, one.layers, one.asked, one.stored, one.computed, fell_back, one.why))
        rows.append((program.target, len(program.layers), "in all", f"{effective_bits(program.layers):.2f}", "", "", ""))
    if rows:
        print_table("bits of the layers", ("target", "layers", "asked for", "stored", "computed", "", "why"), rows)
