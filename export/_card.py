"""The bundle's model card: what a person reads who finds the folder. It is made of the bundle alone."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edge_sd.bundle import Manifest, file_entries
from edge_sd.bundle.bits import effective_bits
from edge_sd.bundle.manifest import CARD, FileEntry, Program
from edge_sd.checkpoint import CheckpointHeader
from edge_sd.diffusion import Plan
from edge_sd.export._card_code import how_to_run
from edge_sd.files import sha256, write_text
from edge_sd.models.count import count
from edge_sd.pretrained import note_of
from edge_sd.quantize.checkpoint import QuantizedHeader

Header = CheckpointHeader | QuantizedHeader


def carded(folder: Path, manifest: Manifest, plan: Plan, header: Header) -> Manifest:
    """Write the card of a bundle whose other files lie in `folder`, and return the manifest with all files; not sealed yet."""
    files = {name: entry for name, entry in file_entries(folder).items() if name != CARD}
    text = card(manifest.model_copy(update={"files": files}), plan, header)
    write_text(folder / CARD, text)
    own = FileEntry(sha256=sha256(folder / CARD), bytes=len(text.encode()))
    return manifest.model_copy(update={"files": dict(sorted({**files, CARD: own}.items())), "digest": ""})


def card(manifest: Manifest, plan: Plan, header: Header) -> str:
    """Markdown: use, limits, data and licence, figures, and how to run it on each platform that it has programs for.

    Args:
        header: of the weights that it was exported from, as they lie in the bundle.
    """
    sections = [
        f"# {manifest.name}\n\n{_about(manifest, plan)}",
        f"## Use\n\n{_use(manifest)}",
        f"## Limits\n\n{_limits(manifest, plan, header)}",
        f"## Data and licence\n\n{_data(header)}",
        f"## Model\n\n{_model(manifest, plan, header)}",
        f"## Programs\n\n{_programs(manifest)}",
        *([f"## Bits\n\n{_bits(manifest, header)}"] if isinstance(header, QuantizedHeader) else []),
        f"## How to run it\n\n{how_to_run(manifest, plan)}",
        f"## Files\n\n{_files(manifest)}",
    ]
    return "\n\n".join(section.rstrip() for section in sections) + "\n"


def _about(manifest: Manifest, plan: Plan) -> str:
    channels, size, _ = manifest.sample_shape
    image = next((one.outputs[0].shape for one in manifest.contracts if one.program == "decoder"), None)
    shown = "" if image is None else f", decoded to images of {image[-1]}×{image[-2]}"
    return (
        f"A diffusion model's denoiser, exported by edge-sd {manifest.versions.get('edge-sd', '(version not stated)')}: "
        f"{size}×{size}×{channels}, width {manifest.model.width}, wavelet gating {'on' if manifest.model.gating else 'off'}, "
        f"{manifest.prediction}-prediction{shown}; {len(plan)} calls of it draw an image."
    )


def _use(manifest: Manifest) -> str:
    classes = manifest.model.num_classes
    what = f"images of one of {classes} classes" if classes else "images like those that it was trained on, without a prompt"
    targets = list(dict.fromkeys(one.target for one in manifest.programs if one.target != "torch"))
    where = (
        f"on what its programs are for ({', '.join(targets)})" if targets else "in PyTorch; it has no program for a device yet"
    )
    return f"Drawing {what}, {where}. It is a part of a program of yours: it opens no network connection and keeps nothing."


def _limits(manifest: Manifest, plan: Plan, header: Header) -> str:
    lines = [
        "It draws what its data held, and nothing else; nobody examined here what they lack, or whom they show how.",
        "Whether samples come near to training images was not examined.",
        "One image at a time, of one size.",
        f"Its plan is of {len(plan)} calls. Another one is made by `edge-sd plan swap`, and is another sampler's quality.",
        "What its samples are worth and how long it takes are not told here: `edge-sd evaluate` and `bench` measure them.",
    ]
    lines += _note(header, "limits")
    if isinstance(header, QuantizedHeader):
        lines.append("It is quantized: its samples are not those of the full-precision model from the same noise.")
    if any(one.target == "coreml" for one in manifest.programs):
        lines.append("What its Core ML programs draw on Apple hardware, `edge-sd parity` on a Mac says.")
    lowered = {one.options.get("delegate") for one in manifest.programs if one.target == "executorch"} & {"coreml", "vulkan"}
    lines += [f"Its ExecuTorch programs were lowered for {name}, and not run." for name in sorted(map(str, lowered))]
    return _listed(lines)


def _data(header: Header) -> str:
    provenance = header.provenance
    shipped, quantized = _note(header, "data"), isinstance(header, QuantizedHeader)
    trained = f": {provenance.steps} steps, {provenance.images_seen} images seen"
    digest = f" (digest `{provenance.data_digest}`)" if provenance.data_digest else ""
    lines = [
        f"Made by `edge-sd {provenance.made_by}`{'' if quantized else trained}, seed {provenance.seed}.",
        f"{'Calibrated' if quantized else 'Trained'} on: {provenance.data or 'not stated'}{digest}.",
        *(["Trained on: as the weights that it was quantized from, see `From float`."] if quantized else []),
        *(f"Data: {one}" for one in shipped),
        f"Licence of the data: {_first(_note(header, 'data_licence'))}",
        f"Licence of the weights: {_first(_note(header, 'licence'))}",
        *(f"From {role}: weights `{digest}`." for role, digest in provenance.parents.items()),
    ]
    return _listed(lines)


def _first(lines: Sequence[str]) -> str:
    return lines[0] if lines else "not stated."


def _note(header: Header, field: str) -> list[str]:
    """What is known of weights that come with the package; also of those that were quantized from them."""
    note = note_of((header.digest, header.provenance.parents.get("float", "")))
    return [] if note is None else [str(getattr(note, field))]


def _model(manifest: Manifest, plan: Plan, header: Header) -> str:
    found, summary = count(manifest.model), manifest.contract().plan
    whole, noise = found.macs + found.attention_macs, ", adds noise" if plan.stochastic else ""
    rows = [
        ("parameters", f"{found.parameters / 1e6:.2f} M"),
        ("MACs a call", f"{found.macs / 1e9:.3f} G, {whole / 1e9:.3f} G with attention's products; batch 1"),
        ("plan", f"{summary.solver}, {summary.steps} steps, {summary.spacing} spacing: {len(plan)} calls{noise}"),
        ("noise schedule", f"{manifest.noise_schedule.kind}, {manifest.noise_schedule.timesteps} timesteps"),
        ("weights", f"SHA-256 `{header.digest}`"),
    ]
    if len(plan.header.programs) > 1:
        of = "widths" if plan.header.widths else "groups of steps"
        calls = (
            f"`{name}` at steps {', '.join(map(str, (plan.program == index).nonzero()[0]))}"
            for index, name in enumerate(plan.header.programs)
        )
        rows.append((f"programs of {of}", "; ".join(calls)))
    return "| | |\n| --- | --- |\n" + "\n".join(f"| {name} | {value} |" for name, value in rows)


def _programs(manifest: Manifest) -> str:
    head = "| program | target | file | bytes | options | placement | memory by forecast |\n" + "| --- " * 7 + "|\n"
    rows = "\n".join(_row(program, manifest) for program in manifest.programs)
    return (
        f"{head}{rows}\n\nPlacement was seen where it was exported; the forecast is of weights and activations of one call at "
        "batch 1, without what the runtime itself takes. Files that hold several programs are counted with each."
    )


def _row(program: Program, manifest: Manifest) -> str:
    entry = f" ({program.entry})" if program.entry else ""
    options = ", ".join(f"{key} {value}" for key, value in program.options.items())
    placement = program.placement.verdict if program.placement else ""
    memory = f"{program.memory.total_bytes / 2**20:.1f} MiB" if program.memory else ""
    size = sum(one.bytes for name, one in manifest.files.items() if name == program.file or name.startswith(f"{program.file}/"))
    return f"| {program.name} | {program.target} | `{program.file}`{entry} | {size:,} | {options} | {placement} | {memory} |"


def _bits(manifest: Manifest, header: QuantizedHeader) -> str:
    stored = {one.target: one.layers for one in manifest.programs if one.name == "denoiser" and one.layers}
    lines = [
        f"{target}: {effective_bits(layers):.2f} bits a weight; {sum(one.fell_back for one in layers)} of {len(layers)} "
        "layers are stored or computed in more bits than asked for."
        for target, layers in stored.items()
    ]
    if header.blocks:
        before, after = (float(np.mean([getattr(one, side) for one in header.blocks])) for side in ("before_db", "after_db"))
        lines.append(
            f"SNR of a block's output on the inputs of its calibration, mean over {len(header.blocks)} blocks: {before:.1f} dB "
            f"rounded to nearest, {after:.1f} dB as learnt."
        )
    lines.append(
        f"Quantized by {header.engine}; the bits of each layer are in `manifest.json`, and `edge-sd inspect` shows them."
    )
    return _listed(lines)


def _files(manifest: Manifest) -> str:
    return (
        "`plan.safetensors` holds the loop, `golden.safetensors` trajectories to compare with, `reference.safetensors` the "
        f"weights that all was exported from, `manifest.json` contracts, bits and every file's SHA-256: "
        f"{len(manifest.files)} files, {sum(one.bytes for one in manifest.files.values()):,} bytes beside this one."
    )


def _listed(lines: Sequence[str]) -> str:
    return "\n".join(f"* {line}" for line in lines)
