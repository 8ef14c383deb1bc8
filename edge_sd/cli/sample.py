"""`edge-sd sample`: a grid of pictures from a checkpoint or a bundle."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edge_sd.cli import _options as option
from edge_sd.pretrained import DEFAULT

if TYPE_CHECKING:
    import numpy as np

    from edge_sd.diffusion.choice import PlanSource


def sample(
    model: Annotated[
        Path, typer.Argument(help="Checkpoint, bundle NAME.edgesd, or a shipped model: edge-sd list models.")
    ] = Path(DEFAULT),
    output: Annotated[Path, typer.Option("--output", "-o", help="PNG file.")] = Path("grid.png"),
    count: Annotated[int, typer.Option("-n", help="How many samples.", min=1)] = 16,
    solver: Annotated[str | None, typer.Option("--solver", help="edge-sd list solvers; dpmpp, or a bundle's own plan.")] = None,
    steps: Annotated[int | None, typer.Option("--steps", help="Function evaluations; 20, or a bundle's own plan.")] = None,
    spacing: option.Spacing = None,
    eta: Annotated[float, typer.Option("--eta", help="Share of fresh noise, for ddim.")] = 0.0,
    plan: option.PlanFile = None,
    runtime: Annotated[
        str | None, typer.Option("--runtime", help="edge-sd list runtimes; onnxruntime for a bundle, torch for a checkpoint.")
    ] = None,
    label: Annotated[int | None, typer.Option("--label", help="Class to draw, where the model knows classes.", min=0)] = None,
    threads: option.Threads = None,
    seed: option.Seed = 0,
    scale: Annotated[int, typer.Option("--scale", help="Enlarge each pixel so many times.", min=1)] = 1,
    overwrite: option.Overwrite = False,
) -> None:
    """Draw samples and lay them out in a grid. Sample i depends on the seed and i alone, in every runtime.

    Without a model the one that comes with the package draws emoji.

    Example: edge-sd sample student.edgesd --solver dpmpp --steps 20 -n 16 -o grid.png
    """
    from edge_sd.api.settings import plan_source
    from edge_sd.bundle.bundle import is_bundle
    from edge_sd.cli._console import say
    from edge_sd.data import grid, rgb, save_png
    from edge_sd.errors import UsageError

    model = option.shipped(model)
    if output.exists() and not overwrite:
        raise UsageError(f"{output} exists", "give --overwrite to replace it, or another -o")
    if output.suffix.lower() not in (".png", ""):
        raise UsageError(f"{output}: what is written is a PNG file", f"-o {output.with_suffix('.png')}")
    source = plan_source(plan, solver, steps, spacing, eta)
    if is_bundle(model):
        samples = _from_bundle(model, source, runtime or "onnxruntime", threads, seed, count, label)
    elif runtime in (None, "torch"):
        samples = _from_checkpoint(model, source, threads, seed, count, label)
    else:
        raise UsageError(f"a checkpoint runs in torch, not in {runtime}", "edge-sd export makes a bundle of it")
    save_png(output, grid(rgb(samples), scale=scale))
    say(f"wrote {output}")


def _from_checkpoint(
    path: Path,
    source: "PlanSource | None",
    threads: int | None,
    seed: int,
    count: int,
    label: int | None,
) -> "np.ndarray":
    import torch

    from edge_sd.cli._console import progress
    from edge_sd.quantize.checkpoint import open_any, plan_from
    from edge_sd.sampling import decode, sample_model

    model = open_any(path)
    plan = plan_from(model.checkpoint, source)
    if threads is not None:
        torch.set_num_threads(threads)
    with progress("sampling") as update:
        samples = sample_model(
            model.checkpoint.build(plan.header.widths),
            plan,
            seed=seed,
            count=count,
            label=label,
            observe=lambda done, total: update(done, total, ""),
        )
    if model.decoder is None:
        return samples
    with progress("decoding") as update:
        return decode(model.decoder, samples, lambda done, total: update(done, total, ""))


def _from_bundle(
    path: Path,
    source: "PlanSource | None",
    runtime: str,
    threads: int | None,
    seed: int,
    count: int,
    label: int | None,
) -> "np.ndarray":
    from dataclasses import replace

    from edge_sd.bundle import open_bundle
    from edge_sd.cli._console import progress
    from edge_sd.runtimes import find_runtime, open_sampler, rows_of, sample_bundle

    bundle, found = open_bundle(path), find_runtime(runtime)
    if source is not None:  # rows for another plan come from the reference's `temporal`
        from edge_sd.bundle.manifest import REFERENCE
        from edge_sd.quantize.checkpoint import load_any, plan_from
        from edge_sd.sampling import plan_features

        reference = load_any(path / REFERENCE)
        plan = plan_from(reference, source)
        plan = plan.with_features(plan_features(reference.build(), plan, label))
        bundle, features = replace(bundle, plan=plan), plan.features
    else:
        features = rows_of(bundle, found, label, threads)
    denoiser, decoder = open_sampler(found, bundle, threads)
    with progress("sampling") as update:
        return sample_bundle(
            denoiser, bundle.plan, seed=seed, count=count, features=features, decoder=decoder,
            observe=lambda done, total: update(done, total, ""),
        )  # fmt: skip
