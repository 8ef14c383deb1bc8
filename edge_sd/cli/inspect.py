"""`edge-sd inspect`: a bundle, or a file of weights, on one screen."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edge_sd.cli import _options as option

if TYPE_CHECKING:
    from edge_sd.bundle import Bundle
    from edge_sd.models import ModelConfig


def inspect(
    bundle: Annotated[
        Path,
        typer.Argument(
            metavar="PATH",
            help="Bundle NAME.edgesd, .safetensors of a checkpoint, autoencoder or decoder, or a shipped model, such as emoji64.",
        ),
    ],
    form: option.Form = "text",
) -> None:
    """Show what a bundle holds: model, plan, programs with their contracts, placement and memory, goldens, files.

    Of a file of weights: what they are of, which latents they belong to, and where they come from. Every hash is checked on
    the way.

    Example: edge-sd inspect student.edgesd
    """
    from edge_sd.bundle import open_bundle

    bundle = option.shipped(bundle)
    if bundle.is_file():
        _inspect_weights(bundle, form)
        return
    opened = open_bundle(bundle)
    if form == "json":
        print(opened.manifest.model_dump_json(indent=2))
        return
    _print(opened)


def _print(bundle: "Bundle") -> None:
    from edge_sd.cli._console import print_table
    from edge_sd.cli.export import print_programs

    manifest, plan, golden = bundle.manifest, bundle.plan, bundle.golden
    model, header = manifest.model, plan.header
    times = ", ".join(f"{t:g}" for t in plan.timestep[:6]) + (", …" if len(plan) > 6 else "")
    size = sum(entry.bytes for entry in manifest.files.values())
    labels = f", classes {', '.join(map(str, golden.header.labels))}" if golden.header.labels else ""
    drawn = f"{len(golden.trajectories)} trajectories from seed {golden.header.seed}{labels}"
    rows = [
        ("model", _model(model, manifest.prediction)),
        ("weights", f"SHA-256 {manifest.weights_digest[:16]}…"),
        ("plan", f"{header.solver}, {len(plan)} steps, {header.spacing} spacing"
                 + (", adds noise" if plan.stochastic else "") + f"; timesteps {times}"),
        ("rows", "by the program temporal, once for a class" if manifest.labelled else f"{header.feature_width} features a step"),
        ("goldens", f"{drawn}, by {golden.header.reference}"),
        ("made with", ", ".join(f"{name} {version}" for name, version in manifest.versions.items())),
        ("on disk", f"{len(manifest.files)} files, {size / 2**20:.1f} MiB, every hash as in the manifest"),
    ]  # fmt: skip
    print_table(f"{manifest.name} ({bundle.path})", ("part", "what it is"), rows)
    tensors = []
    for contract in manifest.contracts:
        for way, specs in (("in", contract.inputs), ("out", contract.outputs)):
            for spec in specs:
                shape, values = "×".join(map(str, spec.shape)), "{:.4g} … {:.4g}".format(*spec.range)
                tensors.append((contract.program, way, spec.name, shape, spec.dtype, spec.layout, values))
    print_table("contracts", ("program", "side", "tensor", "shape", "dtype", "layout", "range in the goldens"), tensors)
    print_programs(manifest.programs)
    for rewrites in sorted({(program.target, program.rewrites) for program in manifest.programs if program.rewrites}):
        print(f"{rewrites[0]}: {', '.join(rewrites[1])}")


def _model(model: "ModelConfig", prediction: str) -> str:
    shape = f"{model.in_channels}×{model.image_size}×{model.image_size}, width {model.width}"
    classes = f", {model.num_classes} classes" if model.num_classes else ""
    return f"{shape}, gating {'on' if model.gating else 'off'}, {prediction}-prediction{classes}"


def _inspect_weights(path: Path, form: str) -> None:
    from pydantic import BaseModel

    from edge_sd.autoencoder import AutoencoderFile, load_autoencoder
    from edge_sd.checkpoint import Checkpoint, load_checkpoint
    from edge_sd.cli._console import print_table
    from edge_sd.decoder import OWN, Decoder, latent_space, load_decoder
    from edge_sd.errors import EdgeSDError
    from edge_sd.files import read_tensors

    class Kind(BaseModel):
        kind: str = "something else"

    file: Checkpoint | AutoencoderFile | Decoder
    kind = read_tensors(Kind, path)[0].kind
    if kind == "quantized":
        return _inspect_quantized(path, form)
    if kind == "checkpoint":
        file = load_checkpoint(path)
    elif kind == "autoencoder":
        file = load_autoencoder(path)
    elif kind == "decoder":
        file = load_decoder(path)
    else:
        raise EdgeSDError(
            f"{path} holds {kind}, of which there is nothing to show", "a bundle, checkpoint, autoencoder or decoder"
        )
    if form == "json":
        print(file.header.model_dump_json(indent=2))
        return
    rows = [("kind", kind)]
    if isinstance(file, Checkpoint):
        latents = file.header.provenance.parents.get("autoencoder")
        rows += [
            ("model", _model(file.header.model, file.header.prediction)),
            ("denoises", f"latents {latents}" if latents else "images"),
        ]
    else:
        decoder = file.decoder() if isinstance(file, AutoencoderFile) else file
        name = decoder.header.architecture
        rows += [
            ("architecture", "edge-sd's own" if name == OWN else f"diffusers' {name}"),
            ("latents", f"{decoder.latent_channels} channels, space {latent_space(decoder)}"),
        ]
        if isinstance(file, AutoencoderFile) or name == OWN:
            config, deviations = decoder.header.config, decoder.weights["std"]
            rows += [
                ("model", f"{config['factor']} times coarser, width {config['width']}"),
                ("deviation", ", ".join(f"{value:.3g}" for value in deviations) + " of the latent before it is standardised"),
            ]
        else:
            rows.append(("scale", f"{decoder.header.latent_scale:.4g}, shift {decoder.header.latent_shift:.4g}"))
    count = sum(value.size for value in file.weights.values())
    rows.append(("weights", f"{count / 1e6:.3f} M numbers, SHA-256 {file.header.digest[:16]}…"))
    if not isinstance(file, Decoder):
        made = file.header.provenance
        rows.append(
            ("made by", f"{made.made_by}, {made.steps} steps, seed {made.seed}" + (f", on {made.data}" if made.data else ""))
        )
        rows += [(f"from {role}", digest[:16]) for role, digest in made.parents.items() if role != "autoencoder"]
        rows.append(("made with", ", ".join(f"{package} {version}" for package, version in made.versions.items())))
    print_table(str(path), ("part", "what it is"), rows)


def _inspect_quantized(path: Path, form: str) -> None:
    from collections import Counter

    from edge_sd.cli._console import print_table
    from edge_sd.quantize.checkpoint import load_quantized

    file = load_quantized(path)
    file.build()  # everything in it is checked
    header = file.header
    if form == "json":
        print(header.model_dump_json(indent=2))
        return
    recipe = header.recipe
    kinds = Counter((layer.bits, layer.input) for layer in recipe.layers.values() if layer.bits is not None or layer.input)
    rows = [
        ("kind", f"quantized by {header.engine}"),
        ("model", _model(header.model, header.prediction)),
        *((f"w{bits or 'float'} a{given or 'float'}", f"{count} layers") for (bits, given), count in kinds.items()),
        ("for", f"{recipe.steps} steps of {recipe.solver}; groups begin at steps {', '.join(map(str, recipe.starts))}"),
        ("tensors", f"{sum(value.nbytes for value in file.tensors.values()) / 1e6:.2f} MB, SHA-256 {header.digest[:16]}…"),
        ("calibrated on", f"{header.calibration[:16]}…"),
        *((f"from {role}", digest[:16]) for role, digest in header.provenance.parents.items() if role != "autoencoder"),
    ]
    print_table(str(path), ("part", "what it is"), rows)
