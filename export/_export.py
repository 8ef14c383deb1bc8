"""From a checkpoint and a plan to a bundle."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from edge_sd.bundle import Bundle, Golden, GoldenHeader, Trajectory, file_entries, trace, write_bundle
from edge_sd.bundle.manifest import CARD, GOLDEN, PLAN, REFERENCE, Contract, Manifest, Program, TensorSpec
from edge_sd.checkpoint import Checkpoint, versions
from edge_sd.diffusion import Plan, compile_plan
from edge_sd.errors import InstallationError, UsageError
from edge_sd.export._target import DenoiserProgram, Target
from edge_sd.files import write_text
from edge_sd.models.unet import SpectralUNet
from edge_sd.registry import implementations
from edge_sd.runnable import Session
from edge_sd.sampling import plan_features


def targets() -> dict[str, Target]:
    """Every target by name."""
    return implementations("edge_sd.export", Target)


class TorchSession(Session):
    """The checkpoint's own denoiser in torch: what goldens are drawn with and everything else is compared to."""

    def __init__(self, model: SpectralUNet) -> None:
        self.model, self.sample_shape = model.eval(), model.config.sample_shape

    def __call__(self, sample: NDArray[np.float32], time_features: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.inference_mode():
            out: NDArray[np.float32] = self.model.denoise(torch.from_numpy(sample), torch.from_numpy(time_features)).numpy()
        return out


def export_bundle(
    checkpoint: Checkpoint,
    out: Path,
    target_names: Sequence[str],
    *,
    solver: str = "dpmpp",
    steps: int = 20,
    spacing: str | None = None,
    seed: int = 0,
    goldens: int = 2,
    overwrite: bool = False,
    observe: Callable[[str], None] = lambda stage: None,
) -> Bundle:
    """Export a checkpoint.

    Args:
        out: NAME.edgesd.
        target_names: names of `targets()`.
        solver, steps, spacing: the plan; see `compile_plan`.
        seed, goldens: of the golden trajectories.
        observe: called with the name of each stage as it begins.

    Raises:
        UsageError: an unknown name, or `out` exists.
        InstallationError: a target's packages are missing.
    """
    chosen = [_target(name) for name in dict.fromkeys(target_names)]
    if goldens < 1:
        raise UsageError("a bundle needs at least one golden trajectory", "--goldens 2")
    header = checkpoint.header
    plan = compile_plan(header.noise_schedule, steps, solver=solver, prediction=header.prediction, spacing=spacing)

    def fill(folder: Path) -> Manifest:
        model = checkpoint.build()
        filled = plan.with_features(plan_features(model, plan))
        filled.save(folder / PLAN)
        observe("golden trajectories")
        session = TorchSession(model)
        trajectories = tuple(trace(filled, session, seed, index) for index in range(goldens))
        Golden(GoldenHeader(seed=seed, reference=f"torch {torch.__version__}, float32"), trajectories).save(folder / GOLDEN)
        contract = _contract(model, filled, trajectories)
        checkpoint.save(folder / REFERENCE)
        programs = [Program(name="denoiser", target="torch", file=REFERENCE)]
        example = torch.from_numpy(trajectories[0].samples[:1]), torch.from_numpy(filled.features[:1])
        for target in chosen:
            observe(target.name)
            file = target.export(DenoiserProgram(model).eval(), example, contract, folder)
            programs.append(Program(name="denoiser", target=target.name, file=file))
        name = out.stem
        write_text(folder / CARD, _card(name, checkpoint, filled, programs))
        return Manifest(
            name=name,
            model=header.model,
            noise_schedule=header.noise_schedule,
            prediction=header.prediction,
            weights_digest=header.digest,
            contract=contract,
            programs=tuple(programs),
            files=file_entries(folder),
            versions=versions(),
        )

    return write_bundle(out, fill, overwrite=overwrite)


def _target(name: str) -> Target:
    known = targets()
    if name not in known:
        raise UsageError(f"unknown target {name!r}", f"one of {', '.join(known)}")
    available = known[name].available()
    if not available.ok:
        raise InstallationError(f"target {name}: {available.detail}", available.remedy)
    return known[name]


def _contract(model: SpectralUNet, plan: Plan, trajectories: Sequence[Trajectory]) -> Contract:
    shape = (1, *model.config.sample_shape)
    out_shape = (1, model.config.out_channels, *shape[2:])

    def spec(name: str, shape: tuple[int, ...], layout: str, values: NDArray[np.float32]) -> TensorSpec:
        return TensorSpec(name=name, shape=shape, layout=layout, range=(float(values.min()), float(values.max())))

    return Contract(
        inputs=(
            spec("sample", shape, "NCHW", np.stack([t.samples for t in trajectories])),
            spec("time_features", (1, model.feature_width), "NF", plan.features),
        ),
        outputs=(spec("prediction", out_shape, "NCHW", np.stack([t.predictions for t in trajectories])),),
    )


def _card(name: str, checkpoint: Checkpoint, plan: Plan, programs: Sequence[Program]) -> str:
    header, provenance = checkpoint.header, checkpoint.header.provenance
    channels, size, _ = header.model.sample_shape
    rows = "\n".join(f"| {program.name} | {program.target} | `{program.file}` |" for program in programs)
    return f"""# {name}

A denoiser exported by edge-sd {versions()["edge-sd"]}: {size}×{size}×{channels},
width {header.model.width}, wavelet gating {"on" if header.model.gating else "off"}, {header.prediction}-prediction.

* Made by `edge-sd {provenance.made_by}`, {provenance.steps} steps on {provenance.data or "data not stated"}.
* Plan: {plan.header.solver}, {len(plan)} steps, {plan.header.spacing} spacing.
* Weights: SHA-256 `{header.digest}`.

| program | target | file |
| --- | --- | --- |
{rows}

`denoiser` takes `sample` and a row of the plan's `features`, and returns the prediction. `plan.safetensors` holds the loop,
`golden.safetensors` trajectories to compare with, `manifest.json` every file's hash.
"""
