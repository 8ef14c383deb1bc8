"""The bundle's card: what a person reads who finds the folder."""

from collections.abc import Sequence

from edge_sd.bundle.bits import effective_bits
from edge_sd.bundle.manifest import Program
from edge_sd.checkpoint import CheckpointHeader, versions
from edge_sd.diffusion import Plan
from edge_sd.quantize.checkpoint import QuantizedHeader


def card(
    name: str,
    header: CheckpointHeader | QuantizedHeader,
    plan: Plan,
    programs: Sequence[Program],
    image_shape: tuple[int, ...] | None,
) -> str:
    """Markdown: model, plan, programs and how they are called.

    Args:
        image_shape: of the decoder's images, where there is a decoder.
    """
    model, provenance = header.model, header.provenance
    channels, size, _ = model.sample_shape
    rows = "\n".join(_row(program) for program in programs)
    decoded = (
        "" if image_shape is None else f" `decoder` turns the last sample into an image of {image_shape[-1]}×{image_shape[-2]}."
    )
    source = (
        "`temporal` makes the rows, once for a class, before the loop"
        if model.num_classes is not None
        else "the rows are `plan.safetensors`' column `features`"
    )
    return f"""# {name}

A denoiser exported by edge-sd {versions()["edge-sd"]}: {size}×{size}×{channels},
width {model.width}, wavelet gating {"on" if model.gating else "off"}, {header.prediction}-prediction.

* Made by `edge-sd {provenance.made_by}`, {provenance.steps} steps on {provenance.data or "data not stated"}.
* Plan: {plan.header.solver}, {len(plan)} steps, {plan.header.spacing} spacing.
* Weights: SHA-256 `{header.digest}`.
{_bits(header, plan, programs)}
| program | target | file | options | placement | memory |
| --- | --- | --- | --- | --- | --- |
{rows}

`denoiser` takes `sample` and a row of time features, and returns the prediction; {source}.{decoded}
`plan.safetensors` holds the loop, `golden.safetensors` trajectories to compare with, `manifest.json` every file's hash.
"""


def _bits(header: CheckpointHeader | QuantizedHeader, plan: Plan, programs: Sequence[Program]) -> str:
    """Of a quantized model: bits of its weights by target, and which program is called at which steps."""
    if not isinstance(header, QuantizedHeader):
        return ""
    stored = {
        program.target: effective_bits(program.layers) for program in programs if program.name == "denoiser" and program.layers
    }
    lines = [f"* Quantized: {', '.join(f'{bits:.2f} bits a weight for {target}' for target, bits in stored.items())}."]
    names = plan.header.programs
    if len(names) > 1:
        calls = (
            f"`{name}` at steps {', '.join(map(str, (plan.program == index).nonzero()[0]))}" for index, name in enumerate(names)
        )
        lines.append(f"* Groups of steps, the plan's column `program`: {'; '.join(calls)}.")
    return "\n".join(lines) + "\n"


def _row(program: Program) -> str:
    entry = f" ({program.entry})" if program.entry else ""
    options = ", ".join(f"{key} {value}" for key, value in program.options.items())
    placement = program.placement.verdict if program.placement else ""
    memory = f"{program.memory.total_bytes / 2**20:.0f} MiB" if program.memory else ""
    return f"| {program.name} | {program.target} | `{program.file}`{entry} | {options} | {placement} | {memory} |"
