"""`edge-sd inspect`: a bundle on one screen."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edge_sd.cli import _options as option

if TYPE_CHECKING:
    from edge_sd.bundle import Bundle


def inspect(
    bundle: Annotated[Path, typer.Argument(help="Bundle NAME.edgesd.")],
    as_json: option.AsJson = False,
) -> None:
    """Show what a bundle holds: model, plan, programs with their contracts, placement and memory, goldens, files.

    Every hash is checked on the way.

    Example: edge-sd inspect student.edgesd
    """
    from edge_sd.bundle import open_bundle

    opened = open_bundle(bundle)
    if as_json:
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
        ("model", f"{model.in_channels}×{model.image_size}×{model.image_size}, width {model.width}, "
                  f"gating {'on' if model.gating else 'off'}, {manifest.prediction}-prediction"
                  + (f", {model.num_classes} classes" if model.num_classes else "")),
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
