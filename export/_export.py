"""From a checkpoint and a plan to a bundle."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edge_sd.bundle import Bundle, Golden, GoldenHeader, Trajectory, file_entries, trace, write_bundle
from edge_sd.bundle.contract import Contract
from edge_sd.bundle.manifest import DECODER, GOLDEN, PLAN, REFERENCE, Manifest, Program
from edge_sd.checkpoint import versions
from edge_sd.decoder import Decoder
from edge_sd.diffusion import Plan, PlanChoice
from edge_sd.diffusion.choice import lineage
from edge_sd.diffusion.plan import refuse_other_process
from edge_sd.errors import EdgeSDError, UsageError
from edge_sd.export._card import carded
from edge_sd.export._check import Check, check_target, find_targets, refuse, refuse_full_disk
from edge_sd.export._programs import DecoderProgram, DenoiserProgram, contracts, sources
from edge_sd.export._target import Source, Target, TargetOptions
from edge_sd.models.stepped import select
from edge_sd.models.unet import SpectralUNet
from edge_sd.quantize.checkpoint import AnyCheckpoint, QuantizedCheckpoint, plan_from
from edge_sd.quantize.recipe import Recipe
from edge_sd.runnable import Session
from edge_sd.sampling import plan_features

Observe = Callable[[str], None]


def _silent(stage: str) -> None:
    pass


class TorchSession(Session):
    """A program in torch: what goldens are drawn with and everything else is compared to.

    Args:
        shape: of its first input, without the batch.
    """

    def __init__(self, program: nn.Module, shape: tuple[int, ...]) -> None:
        self.program, self.sample_shape = program.eval(), shape
        self._selected: int | None = None

    def __call__(self, *inputs: NDArray[Any]) -> NDArray[np.float32]:
        with torch.inference_mode():
            out: NDArray[np.float32] = self.program(*(torch.from_numpy(value) for value in inputs)).numpy()
        return out

    def select(self, program: int) -> None:
        if program != self._selected:
            self._selected = program
            select(self.program, program)


@dataclass(frozen=True)
class ExportRequest:
    """What is to be exported, and how.

    Attributes:
        targets: names of `targets()`, or `all`.
        solver, steps, spacing: the plan; see `compile_plan`.
        plan: one that was made before, in place of these three; its time features are made anew.
        seed, goldens: of the golden trajectories; of a model with classes, trajectory i is of class i.
        temporal: export the program `temporal` also where it is not needed, for a device that makes its own plans.
        ram_budget: bytes that no program may exceed by forecast.
        strict_bits: fail where a quantized layer is stored or computed in more bits than asked for.
        max_fallback: largest share of a program's time outside of its delegate, in [0, 1].
    """

    targets: tuple[str, ...]
    options: TargetOptions = field(default_factory=TargetOptions)
    solver: str = "dpmpp"
    steps: int = 20
    spacing: str | None = None
    plan: Plan | None = None
    seed: int = 0
    goldens: int = 3
    temporal: bool = False
    ram_budget: int | None = None
    max_fallback: float | None = None
    strict_bits: bool = False


def check_export(checkpoint: AnyCheckpoint, decoder: Decoder | None, request: ExportRequest, out: Path) -> list[Check]:
    """Everything an export would refuse, in seconds, and what its programs will need; nothing is written.

    Raises:
        UsageError: an unknown name or a plan that cannot be compiled.
        InstallationError: a target's packages are missing.
        EdgeSDError: the disk has no room.
    """
    chosen = find_targets(request.targets)
    plan, model, decoding = _opened(checkpoint, decoder, request)
    one_step = replace(request, goldens=1)
    trajectories = draw(plan, model, decoding, one_step, steps=1)
    known = contracts(plan, trajectories, labels_of(model, 1), temporal=request.temporal or bool(model.config.num_classes))
    checks = [
        check_target(target, prepared, request.options)
        for target, prepared in _prepared(chosen, model, decoding, known, trajectories, plan, _recipe(checkpoint))
    ]
    refuse_full_disk(out, _size_of(checks))
    return checks


def export_bundle(
    checkpoint: AnyCheckpoint,
    out: Path,
    request: ExportRequest,
    *,
    decoder: Decoder | None = None,
    overwrite: bool = False,
    observe: Observe = _silent,
) -> Bundle:
    """Export a checkpoint and, for a latent model, its decoder.

    Args:
        out: NAME.edgesd.
        observe: called with the name of each stage as it begins.

    Raises:
        UsageError: an unknown name, an option or operator that a target refuses, or `out` exists.
        InstallationError: a target's packages are missing.
        EdgeSDError: a forecast over the budget, too much left outside a delegate, no room on the disk.
    """
    chosen = find_targets(request.targets)
    plan, model, decoding = _opened(checkpoint, decoder, request)

    def fill(folder: Path) -> Manifest:
        observe("golden trajectories")
        trajectories = draw(plan, model, decoding, request)
        labels = labels_of(model, request.goldens)
        plan.save(folder / PLAN)
        save_goldens(folder, trajectories, request.seed, labels)
        known = contracts(plan, trajectories, labels, temporal=request.temporal or bool(labels))
        checkpoint.save(folder / REFERENCE)
        programs = [Program(name=name, target="torch", file=REFERENCE) for name in plan.header.programs]
        if request.temporal or labels:
            programs.append(Program(name="temporal", target="torch", file=REFERENCE))
        if decoder is not None:
            decoder.save(folder / DECODER)
            programs.append(Program(name="decoder", target="torch", file=DECODER))
        observe("torch.export")
        prepared = list(_prepared(chosen, model, decoding, known, trajectories, plan, _recipe(checkpoint)))
        checks = [check_target(target, ready, request.options) for target, ready in prepared]
        refuse(checks, request.ram_budget)
        refuse_full_disk(out, _size_of(checks))
        for (target, ready), check in zip(prepared, checks, strict=True):
            observe(target.name)
            programs += _export(target, ready, check, request, folder)
        manifest = Manifest(
            name=out.stem,
            model=checkpoint.header.model,
            noise_schedule=checkpoint.header.noise_schedule,
            prediction=checkpoint.header.prediction,
            weights_digest=checkpoint.header.digest,
            contracts=tuple(known),
            programs=tuple(programs),
            files=file_entries(folder),
            versions=versions(),
        )
        return carded(folder, manifest, plan, checkpoint.header)

    return write_bundle(out, fill, overwrite=overwrite)


def _recipe(checkpoint: AnyCheckpoint) -> Recipe | None:
    return checkpoint.header.recipe if isinstance(checkpoint, QuantizedCheckpoint) else None


def _opened(
    checkpoint: AnyCheckpoint, decoder: Decoder | None, request: ExportRequest
) -> tuple[Plan, SpectralUNet, nn.Module | None]:
    if request.goldens < 1:
        raise UsageError("a bundle needs at least one golden trajectory", "--goldens 3")
    header = checkpoint.header
    plan = request.plan
    if plan is not None:
        refuse_other_process(plan, header.noise_schedule, header.prediction, "the plan that was given", lineage(header))
        plan = checkpoint.with_groups(plan) if isinstance(checkpoint, QuantizedCheckpoint) else plan.bare()
    else:
        plan = plan_from(checkpoint, PlanChoice(solver=request.solver, steps=request.steps, spacing=request.spacing))
    model = checkpoint.build(plan.header.widths)
    if header.model.num_classes is None:
        plan = plan.with_features(plan_features(model, plan))
    return plan, model, decoder.build() if decoder is not None else None


def labels_of(model: SpectralUNet, goldens: int) -> tuple[int, ...]:
    """Class of each golden trajectory; empty for a model without classes."""
    classes = model.config.num_classes
    return () if classes is None else tuple(index % classes for index in range(goldens))


def draw(
    plan: Plan, model: SpectralUNet, decoder: nn.Module | None, request: ExportRequest, steps: int | None = None
) -> tuple[Trajectory, ...]:
    """Draw the golden trajectories with torch, and decode them.

    Args:
        steps: follow only the first steps, for a look at shapes.
    """
    session = TorchSession(DenoiserProgram(model), model.config.sample_shape)
    labels = labels_of(model, request.goldens)
    short = plan if steps is None else plan.head(steps)
    found = []
    for index in range(request.goldens):
        features = plan_features(model, short, labels[index]) if labels else None
        trajectory = trace(short, session, request.seed, index, features)
        if decoder is not None:
            decode = TorchSession(DecoderProgram(decoder), model.config.sample_shape)
            try:
                trajectory = replace(trajectory, image=decode(trajectory.final[None])[0])
            except RuntimeError as error:
                raise UsageError(
                    f"the decoder does not take the model's samples of {model.config.sample_shape}: {str(error).splitlines()[0]}",
                    "give the decoder that the model was trained with",
                ) from error
        found.append(trajectory)
    return tuple(found)


def save_goldens(folder: Path, trajectories: tuple[Trajectory, ...], seed: int, labels: tuple[int, ...]) -> None:
    """Write golden.safetensors."""
    header = GoldenHeader(seed=seed, reference=f"torch {torch.__version__}, float32", labels=labels)
    Golden(header, trajectories).save(folder / GOLDEN)


def _prepared(
    chosen: Sequence[Target],
    model: SpectralUNet,
    decoder: nn.Module | None,
    known: Sequence[Contract],
    trajectories: Sequence[Trajectory],
    plan: Plan,
    recipe: Recipe | None,
) -> list[tuple[Target, list[Source]]]:
    """Each target with its programs; targets that want the same rewrites share one torch.export."""
    first = trajectories[0]
    label = (np.zeros(1, dtype=np.int32),) if model.config.num_classes is not None else ()
    examples: dict[str, tuple[NDArray[np.generic], ...]] = {
        "denoiser": (first.samples[:1], first.features[:1]),
        "temporal": (plan.timestep[:1].astype(np.float32), *label),
        "decoder": (first.final[None],),
    }
    made: dict[tuple[str, ...], list[Source]] = {}
    found = []
    for target in chosen:
        rewrites = target.rewrites if recipe is None else target.quantized_rewrites
        if rewrites not in made:
            made[rewrites] = sources(model, decoder, known, examples, rewrites, recipe)
        found.append((target, made[rewrites]))
    return found


def _export(target: Target, prepared: Sequence[Source], check: Check, request: ExportRequest, folder: Path) -> list[Program]:
    began = time.perf_counter()
    found = target.export(prepared, request.options, folder)
    seconds = round((time.perf_counter() - began) / len(found), 3)
    for name, exported in found.items():
        # temporal is called before the loop, not in it: what it leaves outside costs nothing that is felt.
        share = exported.placement.outside_share if name != "temporal" else None
        if request.max_fallback is not None and share is not None and share > request.max_fallback:
            outside = ", ".join(f"{count} {operator}" for operator, count in exported.placement.outside.items())
            raise EdgeSDError(
                f"{target.name}: {share:.1%} of the {name}'s time is outside of {exported.placement.delegate} ({outside}); "
                f"--max-fallback is {request.max_fallback:.1%}",
                "another delegate, or a larger --max-fallback",
            )
        fallen = [layer for layer in exported.layers if layer.fell_back]
        if request.strict_bits and fallen:
            first = fallen[0]
            raise EdgeSDError(
                f"{target.name}: {len(fallen)} layers of the {name} are stored or computed in more bits than asked for; "
                f"{first.layer}: w{first.requested} a{first.requested_activations or 'float'} asked for, "
                f"{first.stored:g} bits stored, {first.computed} computed ({first.why})",
                "another target or other bits for these layers, or leave --strict-bits out",
            )
    return [
        Program(
            name=name,
            target=target.name,
            file=exported.file,
            entry=exported.entry,
            options=exported.options,
            rewrites=check.rewrites if name != "temporal" else (),
            placement=exported.placement,
            layers=exported.layers,
            memory=check.memory[name],
            seconds=seconds,
        )
        for name, exported in found.items()
    ]


def _size_of(checks: Sequence[Check]) -> int:
    """About what the bundle takes on disk: every target's weights, and the reference."""
    weights = [sum(memory.weights_bytes for memory in check.memory.values()) for check in checks]
    return int(1.1 * (sum(weights) + max(weights, default=0)))
