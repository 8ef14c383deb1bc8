"""From a checkpoint and a recipe to a quantized checkpoint, in stages that a kill does not undo.

Kept on disk is what would take long to make again: the calibration inputs and every block's roundings.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from edge_sd.checkpoint import Checkpoint, Provenance, versions
from edge_sd.diffusion import Plan, compile_plan
from edge_sd.errors import EdgeSDError, UsageError
from edge_sd.files import fingerprint, read_tensors, write_tensors
from edge_sd.models.unet import SpectralUNet
from edge_sd.quantize.calibration import Calibration, capture, load_calibration
from edge_sd.quantize.checkpoint import BlockRecord, QuantizedCheckpoint, quantized_checkpoint
from edge_sd.quantize.form import quantizable_form
from edge_sd.quantize.grid import ActivationGrid
from edge_sd.quantize.grouping import MOST_GROUPS, group_cost, knee, partition
from edge_sd.quantize.layers import points_of
from edge_sd.quantize.ranges import Observations, choose_grids, group_errors, observe
from edge_sd.quantize.recipe import Recipe
from edge_sd.quantize.reconstruction import BlockResult, reconstruct
from edge_sd.validation import Record

CALIBRATION, MODEL, RECIPE, BLOCKS = "calibration.safetensors", "model.safetensors", "recipe.yaml", "blocks"
Progress = Callable[[str, int, int, str], None]  # stage, done, total, note


class _BlockHeader(Record):
    """blocks/NAME.safetensors: what one block came to, and from what."""

    schema_version: Literal[1] = 1
    kind: Literal["block"] = "block"
    key: str
    name: str
    before_db: float
    after_db: float


@dataclass(frozen=True)
class Quantized:
    """What came out, and what was seen on the way.

    Attributes:
        checkpoint: see `QuantizedCheckpoint`; its recipe says which steps make a group.
        plan: that of the recipe, its column `program` calling each group's program.
        observed: ranges by step, of the full-precision model.
        again: the same with the quantized weights.
        errors: of activations with 1, 2, … groups of steps, optimally cut; see `group_errors`.
        grids: by point, a grid a group.
    """

    checkpoint: QuantizedCheckpoint
    plan: Plan
    observed: Observations
    again: Observations
    errors: list[float]
    grids: Mapping[str, tuple[ActivationGrid, ...]]


def plan_of(parent: Checkpoint, recipe: Recipe) -> Plan:
    """The plan that a recipe is for."""
    header = parent.header
    return compile_plan(
        header.noise_schedule, recipe.steps, solver=recipe.solver, prediction=header.prediction, spacing=recipe.spacing
    )


def calibrate(
    parent: Checkpoint, recipe: Recipe, path: Path, progress: Progress = lambda *_: None, *, own: bool = True
) -> Calibration:
    """Calibration inputs at `path`: those that lie there, or freshly captured ones.

    Args:
        own: the file is ours to make again where the request has changed; else it is taken as it is.

    Raises:
        UsageError: the file there is of another model or plan.
    """
    plan = plan_of(parent, recipe)
    if path.exists() or not own:
        found = load_calibration(path, parent.header.digest, plan)
        if not own or found.header.request == recipe.calibration:
            return found
    calibration = capture(
        parent.build(),
        plan,
        recipe.calibration,
        parent.header.digest,
        lambda done, total: progress("calibration", done, total, ""),
    )
    calibration.save(path)
    return calibration


def quantize(
    parent: Checkpoint,
    recipe: Recipe,
    calibration: Calibration,
    blocks: Path,
    progress: Progress = lambda *_: None,
) -> Quantized:
    """Quantize a checkpoint.

    Args:
        blocks: folder that keeps each block's roundings; those that an earlier run of the same settings left are taken.
        progress: called with (stage, done, total, note).

    Raises:
        UsageError: the recipe is of another model, or an activation is not finite.
    """
    recipe.check(parent.header.model)
    plan, model = plan_of(parent, recipe), parent.build()
    form = quantizable_form(model)
    observed = observe(form, calibration, len(plan), lambda done, total: progress("ranges", done, total, ""))
    cost = group_cost(observed.ranges)
    bits = recipe.point_bits(form)
    cuts = [partition(cost, groups)[0] for groups in range(1, min(MOST_GROUPS, len(plan)) + 1)] if bits else [[0]]
    errors = (
        group_errors(form, calibration, observed, bits, cuts, recipe.ranges, lambda d, t: progress("groups of steps", d, t, ""))
        if bits
        else [0.0]
    )
    chosen = cuts[knee(errors) - 1] if recipe.groups == 0 or not bits else partition(cost, recipe.groups)[0]
    starts = recipe.starts or tuple(chosen)
    if starts[0] != 0 or list(starts) != sorted(set(starts)) or starts[-1] >= len(plan):
        raise UsageError(f"steps cannot be cut at {list(starts)}", f"ascending, from 0, below {len(plan)}")
    recipe = recipe.model_copy(update={"starts": starts})
    _set_grids(form, choose_grids(observed, recipe.point_bits(form), starts, recipe.ranges))
    programs = plan.with_programs(starts).columns["program"]
    key = fingerprint(
        {
            "weights": parent.header.digest,
            "calibration": calibration.header.digest,
            "recipe": recipe.model_dump(mode="json"),
            "versions": {name: versions().get(name) for name in ("edge-sd", "torch")},
        }
    )
    names = form.unit_names()
    done: list[BlockResult] = []
    notes = [""]

    def ahead(block: str, iteration: int, iterations: int) -> None:
        progress("reconstruction", len(done) * iterations + iteration, len(names) * iterations, notes[-1] or block)

    def save(result: BlockResult) -> None:
        _save_block(blocks, key, result)
        done.append(result)
        notes.append(f"{result.name}: {result.before:.1f} → {result.after:.1f} dB")

    def load(name: str) -> BlockResult | None:
        found = _load_block(blocks, key, name)
        if found is not None:
            done.append(found)
            ahead(name, 0, max(recipe.reconstruction.iterations, 1))
        return found

    results = reconstruct(
        model, form, recipe.grids, calibration, programs, recipe.reconstruction, load=load, save=save, progress=ahead
    )
    # The weights have changed what the activations are: their ranges are looked at again.
    _set_grids(form, {})
    again = observe(form, calibration, len(plan), lambda done, total: progress("ranges again", done, total, ""))
    grids = choose_grids(again, recipe.point_bits(form), starts, recipe.ranges)
    _set_grids(form, grids)
    provenance = Provenance(
        made_by="quantize",
        seed=recipe.calibration.seed,
        data="captured from its own denoising loop",
        data_digest=calibration.header.digest,
        versions=versions(),
        parents={**parent.header.provenance.parents, "float": parent.header.digest},
    )
    checkpoint = quantized_checkpoint(
        form,
        parent,
        recipe,
        provenance=provenance,
        calibration=calibration.header.digest,
        blocks=tuple(BlockRecord(name=r.name, before_db=r.before, after_db=r.after) for r in results),
    )
    return Quantized(checkpoint, checkpoint.plan_for(recipe.solver, recipe.steps, recipe.spacing), observed, again, errors, grids)


def _set_grids(form: SpectralUNet, grids: Mapping[str, tuple[ActivationGrid, ...]]) -> None:
    for name, point in points_of(form).items():
        point.grids = grids.get(name, ())


def _save_block(folder: Path, key: str, result: BlockResult) -> None:
    tensors = {f"{name}.codes": value.numpy() for name, value in result.codes.items()}
    tensors |= {f"{name}.scales": value.numpy() for name, value in result.scales.items()}
    tensors |= {f"{name}.float": value.numpy() for name, value in result.floats.items()}
    header = _BlockHeader(key=key, name=result.name, before_db=result.before, after_db=result.after)
    write_tensors(folder / f"{result.name}.safetensors", tensors, header)


def _load_block(folder: Path, key: str, name: str) -> BlockResult | None:
    """A block that an earlier run left; None where there is none, or one of other settings, or a damaged one."""
    try:
        header, tensors = read_tensors(_BlockHeader, folder / f"{name}.safetensors")
    except EdgeSDError:
        return None
    if header.key != key:
        return None

    def part(suffix: str) -> dict[str, torch.Tensor]:
        return {name.removesuffix(suffix): torch.from_numpy(value) for name, value in tensors.items() if name.endswith(suffix)}

    return BlockResult(name, header.before_db, header.after_db, part(".codes"), part(".scales"), part(".float"))
