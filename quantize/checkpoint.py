"""The quantized checkpoint: integers, scales and grids in one safetensors file, and the recipe that led to them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from safetensors import SafetensorError, safe_open

from edge_sd.bundle.manifest import DECODER
from edge_sd.checkpoint import Checkpoint, Provenance, load_checkpoint
from edge_sd.decoder import Decoder, latent_space, load_decoder
from edge_sd.diffusion import Plan, compile_plan
from edge_sd.diffusion.choice import PlanChoice, PlanFile, PlanSource, lineage
from edge_sd.diffusion.plan import Prediction
from edge_sd.diffusion.schedule import NoiseSchedule
from edge_sd.errors import EdgeSDError, UsageError
from edge_sd.files import HEADER, read_tensors, tensors_digest, write_tensors
from edge_sd.foreign import Foreign, open_model, refuse_missing_decoder, refuse_other_latents
from edge_sd.models.config import ModelConfig
from edge_sd.models.unet import SpectralUNet
from edge_sd.quantize.form import quantizable_form
from edge_sd.quantize.grid import ActivationGrid
from edge_sd.quantize.layers import QuantizedLayer, layers_of, points_of
from edge_sd.quantize.recipe import Recipe
from edge_sd.validation import Record

_CODES, _SCALES, _ZEROS, _STEPS = ".codes", ".scales", ".zero_points", ".step_scales"
_AGAIN = "quantize the model again, or copy the file again"


class BlockRecord(Record):
    """One reconstructed block: SNR of its output in dB, weights rounded to nearest and as learnt."""

    name: str
    before_db: float
    after_db: float


class QuantizedHeader(Record):
    """The metadata of a quantized checkpoint.

    Attributes:
        provenance: its parent "float" is the digest of the full-precision weights.
        engine: whose roundings and ranges these are.
        calibration: digest of the inputs it was calibrated on.
        digest: SHA-256 over the tensors.
    """

    schema_version: Literal[1] = 1
    kind: Literal["quantized"] = "quantized"
    model: ModelConfig
    noise_schedule: NoiseSchedule
    prediction: Prediction
    provenance: Provenance
    recipe: Recipe
    engine: str = "edge-sd"
    calibration: str = ""
    blocks: tuple[BlockRecord, ...] = Field(default=())
    digest: str


@dataclass(frozen=True)
class QuantizedCheckpoint:
    """Tensors by name: LAYER.codes and LAYER.scales, POINT.step_scales and POINT.zero_points, and what stayed in float."""

    header: QuantizedHeader
    tensors: dict[str, np.ndarray] = field(repr=False)

    def build(self, widths: Sequence[int] = ()) -> SpectralUNet:
        """Return the model in its quantizable form, in evaluation mode: the simulation of every program.

        Args:
            widths: as of `Checkpoint.build`; integers are those of one width.

        Raises:
            UsageError: widths are given.
            EdgeSDError: a tensor is missing, of the wrong shape or dtype, or out of its layer's range; it is named.
        """
        if widths:
            raise UsageError("a quantized model has one width, and the plan wants several", "a plan without widths")
        recipe, tensors = self.header.recipe, dict(self.tensors)
        recipe.check(self.header.model)
        form = quantizable_form(SpectralUNet(self.header.model))
        for name, layer in layers_of(form).items():
            grid = recipe.layers[name].grid
            if grid is not None:
                codes = _codes(name, tensors, layer, grid.bits)
                if codes.min() < grid.low or codes.max() > grid.high:
                    raise EdgeSDError(f"{name}: its integers leave {grid.low} … {grid.high}", _AGAIN)
                scales = _taken(tensors, name + _SCALES, np.float32, 2)
                if len(scales) != len(codes) or not scales.size or codes.shape[1] % scales.shape[1] or not (scales > 0).all():
                    raise EdgeSDError(f"{name}: scales {scales.shape} do not belong to weights {codes.shape}", _AGAIN)
                layer.store(torch.from_numpy(codes), torch.from_numpy(scales), grid)
        points = points_of(form)
        for name, bits in recipe.point_bits(form).items():
            scales, zeros = _taken(tensors, name + _STEPS, np.float32, 1), _taken(tensors, name + _ZEROS, np.int64, 1)
            if scales.shape != zeros.shape or len(scales) != max(len(recipe.starts), 1) or not (scales > 0).all():
                raise EdgeSDError(f"{name}: {len(scales)} grids for {len(recipe.starts)} groups of steps", _AGAIN)
            if zeros.min() < 0 or zeros.max() >= 2**bits:
                raise EdgeSDError(f"{name}: its zero points leave 0 … {2**bits - 1}", _AGAIN)
            points[name].grids = tuple(
                ActivationGrid(bits, float(scale), int(zero)) for scale, zero in zip(scales, zeros, strict=True)
            )
        state = form.state_dict()
        expected = {name: tuple(value.shape) for name, value in state.items() if not name.endswith((_CODES, _SCALES))}
        found = {name: value.shape for name, value in tensors.items()}
        for name in sorted(expected.keys() | found.keys()):
            if expected.get(name) != found.get(name):
                raise EdgeSDError(
                    f"tensors do not fit the model: {name} is {found.get(name)}, expected {expected.get(name)}", _AGAIN
                )
        form.load_state_dict({name: torch.from_numpy(value) for name, value in tensors.items()}, strict=False)
        return form.eval()

    def plan_for(self, solver: str, steps: int, spacing: str | None = None, eta: float = 0.0) -> Plan:
        """A plan whose column `program` calls each group's program.

        Raises:
            UsageError: the model has several groups, and they are of another plan's steps.
        """
        recipe = self.header.recipe
        header = self.header
        plan = compile_plan(header.noise_schedule, steps, solver=solver, prediction=header.prediction, spacing=spacing, eta=eta)
        if len(recipe.starts) <= 1:
            return plan
        if (recipe.solver, recipe.steps, recipe.spacing) != (solver, steps, spacing) or eta:
            raise UsageError(
                f"the model was quantized for {recipe.steps} steps of {recipe.solver}, in groups with ranges of their own",
                f"--solver {recipe.solver} --steps {recipe.steps}, or quantize it for another plan",
            )
        return plan.with_programs(recipe.starts)

    def with_groups(self, plan: Plan) -> Plan:
        """A plan that was made elsewhere, its column `program` calling each group's program.

        Raises:
            UsageError: the model has several groups, and the plan visits other timesteps than their ranges were found at.
        """
        recipe, bare = self.header.recipe, plan.bare()
        if len(recipe.starts) <= 1:
            return bare
        own = self.plan_for(recipe.solver, recipe.steps, recipe.spacing)
        if not np.array_equal(own.timestep, bare.timestep):
            raise UsageError(
                f"the model was quantized for {recipe.steps} steps of {recipe.solver}, in groups with ranges of their own, and "
                f"the plan's {len(bare)} timesteps are others",
                "quantize with --groups 1, or for this plan's timesteps",
            )
        return bare.with_programs(recipe.starts)

    def save(self, path: Path) -> None:
        """Write the file, atomically."""
        write_tensors(path, self.tensors, self.header)


def quantized_checkpoint(
    form: SpectralUNet,
    parent: Checkpoint,
    recipe: Recipe,
    *,
    provenance: Provenance,
    calibration: str,
    blocks: tuple[BlockRecord, ...],
    engine: str = "edge-sd",
) -> QuantizedCheckpoint:
    """Take what a quantized form holds."""
    tensors: dict[str, np.ndarray] = {}
    for name, value in form.state_dict().items():
        tensors[name] = value.detach().cpu().numpy().copy()
    for name, layer in layers_of(form).items():
        if layer.grid is not None and layer.grid.bits <= 4:
            tensors[name + _CODES] = packed(tensors[name + _CODES])
    for name, point in points_of(form).items():
        if point.grids:
            tensors[name + _STEPS] = np.array([grid.scale for grid in point.grids], dtype=np.float32)
            tensors[name + _ZEROS] = np.array([grid.zero_point for grid in point.grids], dtype=np.int64)
    header = parent.header
    return QuantizedCheckpoint(
        QuantizedHeader(
            model=header.model,
            noise_schedule=header.noise_schedule,
            prediction=header.prediction,
            provenance=provenance,
            recipe=recipe,
            engine=engine,
            calibration=calibration,
            blocks=blocks,
            digest=tensors_digest(tensors),
        ),
        tensors,
    )


def packed(codes: np.ndarray) -> np.ndarray:
    """Integers −8 … 7 of any shape → uint8 (⌈n/2⌉,), two to a byte, the first in the lower half."""
    flat = codes.reshape(-1).astype(np.int8).view(np.uint8) & 0xF
    flat = np.append(flat, np.zeros(len(flat) % 2, np.uint8))
    halves: np.ndarray = flat[::2] | (flat[1::2] << 4)
    return halves


def unpacked(halves: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The inverse of `packed`: int8 of a shape."""
    flat = np.stack([halves & 0xF, halves >> 4], axis=1).reshape(-1)[: int(np.prod(shape))]
    codes: np.ndarray = ((flat ^ 8).astype(np.int8) - 8).reshape(shape)
    return codes


def _codes(name: str, tensors: dict[str, np.ndarray], layer: QuantizedLayer, bits: int) -> np.ndarray:
    if bits > 4:
        codes = _taken(tensors, name + _CODES, np.int8, len(layer.shape))
    else:
        halves = _taken(tensors, name + _CODES, np.uint8, 1)
        if len(halves) != (int(np.prod(layer.shape)) + 1) // 2:
            raise EdgeSDError(f"{name}: {len(halves)} bytes of integers, expected weights {layer.shape}", _AGAIN)
        codes = unpacked(halves, layer.shape)
    if codes.shape != layer.shape:
        raise EdgeSDError(f"{name}: integers {codes.shape}, expected {layer.shape}", _AGAIN)
    return codes


def _taken(tensors: dict[str, np.ndarray], name: str, dtype: type, ndim: int) -> np.ndarray:
    value = tensors.pop(name, None)
    if value is None or value.dtype != dtype or value.ndim != ndim:
        found = "missing" if value is None else f"{value.dtype} {value.shape}"
        raise EdgeSDError(f"tensor {name} is {found}, expected {np.dtype(dtype)} of {ndim} dimensions", _AGAIN)
    return value


AnyCheckpoint = Checkpoint | QuantizedCheckpoint


def plan_from(checkpoint: AnyCheckpoint, source: PlanSource | None) -> Plan:
    """The plan that is asked for; where none is, the one it was quantized for, or the default.

    Raises:
        EdgeSDError: it cannot be compiled, or is for another model; see `QuantizedCheckpoint.with_groups` too.
    """
    header = checkpoint.header
    if not isinstance(checkpoint, QuantizedCheckpoint):
        return (source or PlanChoice()).plan(header.noise_schedule, header.prediction, lineage(header))
    if isinstance(source, PlanFile):
        return checkpoint.with_groups(source.plan(header.noise_schedule, header.prediction, lineage(header)))
    recipe = checkpoint.header.recipe
    own = PlanChoice(solver=recipe.solver, steps=recipe.steps, spacing=recipe.spacing)
    return checkpoint.plan_for(**(source or own).model_dump())


def load_quantized(path: Path) -> QuantizedCheckpoint:
    """Read a quantized checkpoint.

    Raises:
        EdgeSDError: missing, truncated, foreign, not finite, or changed since it was written.
    """
    header, tensors = read_tensors(QuantizedHeader, path)
    if tensors_digest(tensors) != header.digest:
        raise EdgeSDError(f"{path}: the tensors have changed since they were written (their SHA-256 differs)", _AGAIN)
    return QuantizedCheckpoint(header, tensors)


def load_any(path: Path) -> AnyCheckpoint:
    """Read a checkpoint, quantized or not."""
    return load_quantized(path) if is_quantized(path) else load_checkpoint(path)


@dataclass(frozen=True)
class Opened:
    """A denoiser, and the decoder of its latents, where it has one."""

    checkpoint: AnyCheckpoint
    decoder: Decoder | None


def open_any(path: Path, decoder: Path | None = None) -> Opened:
    """Read a checkpoint, quantized or not, or a folder that diffusers wrote, with the decoder that belongs to it.

    Args:
        decoder: where it is; beside the checkpoint if left out.

    Raises:
        EdgeSDError: a denoiser of latents without its decoder, or with that of other latents.
    """
    given = None if decoder is None else load_decoder(decoder)
    if path.is_dir() or not is_quantized(path):
        model = open_model(path)
        found = Foreign(model.checkpoint, given or model.decoder)
        refuse_missing_decoder(found, path)
        if found.decoder is not None:
            refuse_other_latents(found.checkpoint, found.decoder)
        return Opened(found.checkpoint, found.decoder)
    checkpoint, beside = load_quantized(path), path.with_name(DECODER)
    space = checkpoint.header.provenance.parents.get("autoencoder")
    if given is None and space is not None:
        if not beside.exists():
            raise EdgeSDError(f"{path} denoises latents, and {DECODER} is not beside it", "put it there: quantize left one")
        given = load_decoder(beside)
    if given is not None and space is not None and latent_space(given) != space:
        raise EdgeSDError(f"the decoder is not of the latents of {path}", "give the decoder.safetensors that lies beside it")
    return Opened(checkpoint, given)


def is_quantized(path: Path) -> bool:
    """Whether a file says that it is a quantized checkpoint; what it says is checked when it is read."""
    try:
        with safe_open(path, framework="numpy") as file:
            header: Mapping[str, str] = file.metadata() or {}
    except (SafetensorError, OSError):
        return False
    return '"kind":"quantized"' in header.get(HEADER, "")
