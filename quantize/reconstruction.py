"""Reconstruction: the blocks of a U-Net are quantized one after the other, each given what the quantized ones before it put out.

BRECQ (2102.05426) with Q-Diffusion's and TFMQ-DM's settings: the error is that of the whole block against the full-precision
block, each on its own model's input. A block is a residual block with its attention, a resampling, or a single convolution.
"""

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from edge_sd.evaluation.metrics import SAME_DB
from edge_sd.models.unet import SpectralUNet, Unit
from edge_sd.quantize.calibration import Calibration
from edge_sd.quantize.grid import WeightGrid, restored_weight, rounded_weight, weight_scales
from edge_sd.quantize.layers import QuantizedLayer, layers_of, points_in
from edge_sd.quantize.rounding import SoftRounding, sharpness
from edge_sd.validation import Record

_FORWARD_BATCH = 16
_POSITIONS, _FEWEST = 4096, 4
# Feature maps of all inputs are kept, of both models: as many inputs are taken as fit into this, whatever was asked for.
_MEMORY = 4 * 2**30


class ReconstructionSettings(Record):
    """How roundings are learnt.

    Attributes:
        iterations: a block; 0 rounds to nearest.
        learning_rate, float_learning_rate: of roundings; of scales, biases and norms, which are tuned along.
        batch_size: 0: so many that a batch has 4,096 positions, and four at least; a large map has many in each input.
        inputs: at most so many calibration inputs, spread over the steps.
        round_weight: of the term that makes roundings decide.
        warmup: share of the iterations without that term.
    """

    iterations: int = Field(default=400, ge=0)
    batch_size: int = Field(default=0, ge=0)
    inputs: int = Field(default=2048, ge=1)
    learning_rate: float = Field(default=0.1, gt=0)
    float_learning_rate: float = Field(default=1e-3, ge=0)
    round_weight: float = Field(default=0.1, ge=0)
    warmup: float = Field(default=0.2, ge=0, lt=1)
    seed: int = Field(default=0, ge=0)


@dataclass(frozen=True)
class BlockResult:
    """What became of one block.

    Attributes:
        before, after: SNR of its output on the calibration inputs in dB, weights rounded to nearest and as learnt.
        codes, scales: by layer.
        floats: what stays in float (biases and norms), by name in the model, as it was tuned along.
    """

    name: str
    before: float
    after: float
    codes: dict[str, Tensor]
    scales: dict[str, Tensor]
    floats: dict[str, Tensor]


class _Walks:
    """A model walked through part by part, for all calibration inputs at once, in batches."""

    def __init__(self, model: SpectralUNet, samples: Sequence[Tensor], features: Sequence[Tensor]) -> None:
        self._walks: list[Generator[Unit, Tensor, Tensor]] = [
            model.walk(x, rows) for x, rows in zip(samples, features, strict=True)
        ]
        self.units = [next(walk) for walk in self._walks]

    def send(self, outputs: list[Tensor]) -> bool:
        """Go on to the next part; False at the end."""
        try:
            self.units = [walk.send(output) for walk, output in zip(self._walks, outputs, strict=True)]
        except StopIteration:
            return False
        return True

    def stacked(self) -> list[Tensor | None]:
        """The part's inputs over all batches, (n, …) each."""
        return [
            None if values[0] is None else torch.cat(values) for values in zip(*(unit.inputs for unit in self.units), strict=True)
        ]


@torch.no_grad()
def reconstruct(
    model: SpectralUNet,
    form: SpectralUNet,
    grids: Mapping[str, WeightGrid],
    calibration: Calibration,
    programs: np.ndarray,
    settings: ReconstructionSettings,
    *,
    load: Callable[[str], BlockResult | None] = lambda name: None,
    save: Callable[[BlockResult], None] = lambda result: None,
    progress: Callable[[str, int, int], None] = lambda block, done, total: None,
) -> list[BlockResult]:
    """Quantize the weights of `form` in place.

    Args:
        model: the full-precision model; `form` is its quantizable form, its points on their grids already.
        grids: how each layer's weights are stored; a layer that is left out stays in float.
        programs: by step of the plan, the program that it calls.
        load: a block's result, where an earlier run left one.
        save: called with each new result.
        progress: called with (block, iterations done in it, iterations in it).
    """
    chosen = calibration.spread(min(settings.inputs, affordable_inputs(form)))
    batch_size = settings.batch_size or max(_FEWEST, _POSITIONS // form.config.image_size**2)
    settings = settings.model_copy(update={"batch_size": batch_size})
    samples, features, of_samples = (
        torch.from_numpy(values).split(_FORWARD_BATCH) for values in (chosen.samples, chosen.features, programs[chosen.rows])
    )
    exact, rounded, names = _Walks(model, samples, features), _Walks(form, samples, features), layers_of(form)
    by_layer = {layer: name for name, layer in names.items()}
    results = []
    while True:
        unit = rounded.units[0]
        targets = [unit.module(*unit.inputs) for unit in exact.units]
        layers = {by_layer[part]: part for part in unit.module.modules() if isinstance(part, QuantizedLayer)}
        layers = {name: layer for name, layer in layers.items() if name in grids}
        if layers:
            result = load(unit.name)
            if result is None:
                block = _Block(unit, layers, rounded.stacked(), torch.cat(targets), torch.cat(of_samples))
                result = _quantized(block, grids, settings, progress)
                save(result)
            for name, layer in layers.items():
                layer.store(result.codes[name], result.scales[name], grids[name])
            for name, value in result.floats.items():
                form.get_parameter(name).copy_(value)
            results.append(result)
        outputs = [_call(unit.module, unit.inputs, of) for unit, of in zip(rounded.units, of_samples, strict=True)]
        more = exact.send(targets)
        if not (rounded.send(outputs) and more):
            break
    for point in points_in(form):
        point.programs = None
    return results


@dataclass(frozen=True)
class _Block:
    """A part of the model and what it is to be fitted to.

    Attributes:
        inputs: (n, …) each, as the quantized part before it makes them.
        targets: (n, …), what the full-precision block puts out on its own inputs.
        programs: (n,).
    """

    unit: Unit
    layers: dict[str, QuantizedLayer]
    inputs: list[Tensor | None]
    targets: Tensor
    programs: Tensor


def affordable_inputs(form: SpectralUNet) -> int:
    """How many inputs' feature maps fit into memory: the skips that wait, and what the largest part takes and gives."""
    x, features = torch.zeros(1, *form.config.sample_shape), torch.zeros(1, form.feature_width)
    waiting, largest, walk, out = 0, 0, form.walk(x, features), None
    with torch.no_grad():
        while True:
            try:
                unit = next(walk) if out is None else walk.send(out)
            except StopIteration:
                break
            out = unit.module(*unit.inputs)
            taken = sum(value.numel() for value in unit.inputs if value is not None)
            largest = max(largest, taken + out.numel())
            waiting += out.numel() if unit.name.startswith(("conv_in", "down")) else 0
    per_input = 4 * (2 * waiting + 4 * largest)  # both models; the part's inputs once more in one piece, and its outputs
    return max(_MEMORY // per_input, _FEWEST)


def _call(module: nn.Module, inputs: tuple[Tensor | None, ...], programs: Tensor) -> Tensor:
    _mix(module, programs)
    out: Tensor = module(*inputs)
    return out


def _mix(module: nn.Module, programs: Tensor) -> None:
    for point in points_in(module):
        point.programs = programs


def _quantized(
    block: _Block, grids: Mapping[str, WeightGrid], settings: ReconstructionSettings, progress: Callable[[str, int, int], None]
) -> BlockResult:
    scales, codes, weights = {}, {}, {}
    for name, layer in block.layers.items():
        assert layer.weight is not None  # noqa: S101 (not quantized yet)
        weights[name] = layer.weight.detach()
        scales[name] = weight_scales(weights[name], grids[name])
        codes[name] = rounded_weight(weights[name], scales[name], grids[name])
    nearest = {name: _restoring(codes[name], scales[name]) for name in codes}
    before = _error_db(block, nearest)
    if not settings.iterations:
        return BlockResult(block.unit.name, before, before, codes, scales, {})
    soft = {name: SoftRounding(weights[name], scales[name], grids[name]) for name in weights}
    _learn(block, soft, settings, progress)
    learnt = {name: rounding.codes() for name, rounding in soft.items()}
    moved = {name: rounding.scales() for name, rounding in soft.items()}
    after = _error_db(block, {name: _restoring(learnt[name], moved[name]) for name in learnt})
    floats = {f"{block.unit.name}.{name}": value.detach().clone() for name, value in _floats(block.unit.module).items()}
    return BlockResult(block.unit.name, before, after, learnt, moved, floats)


def _restoring(codes: Tensor, scales: Tensor) -> Callable[[], Tensor]:
    weight = restored_weight(codes, scales)
    return lambda: weight


@torch.enable_grad()
def _learn(
    block: _Block,
    soft: Mapping[str, SoftRounding],
    settings: ReconstructionSettings,
    progress: Callable[[str, int, int], None],
) -> None:
    for name, layer in block.layers.items():
        layer.soft = soft[name]
    floats = _floats(block.unit.module)
    slow = [*floats.values(), *(rounding.stretch for rounding in soft.values())]
    for parameter in floats.values():
        parameter.requires_grad_(True)
    optimizer = torch.optim.Adam(
        [
            {"params": [rounding.v for rounding in soft.values()], "lr": settings.learning_rate},
            {"params": slow, "lr": settings.float_learning_rate},
        ]
    )
    power = block.targets.square().mean().clamp_min(torch.finfo(torch.float32).tiny)
    generator = torch.Generator().manual_seed(settings.seed)
    count = len(block.targets)
    for iteration in range(settings.iterations):
        some = torch.randint(count, (min(settings.batch_size, count),), generator=generator)
        _mix(block.unit.module, block.programs[some])
        out = block.unit.module(*(None if value is None else value[some] for value in block.inputs))
        loss = (out - block.targets[some]).square().mean() / power
        share = iteration / settings.iterations
        if share >= settings.warmup:
            beta = sharpness(share, settings.warmup)
            loss = loss + settings.round_weight * sum(rounding.indecision(beta) for rounding in soft.values()) / len(soft)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        progress(block.unit.name, iteration + 1, settings.iterations)
    for parameter in floats.values():
        parameter.requires_grad_(False)
    for layer in block.layers.values():
        layer.soft = None


def _floats(module: nn.Module) -> dict[str, nn.Parameter]:
    """What of a block stays in float and may move: norms and biases, vectors all; a wavelet's filters are fixed."""
    return {name: parameter for name, parameter in module.named_parameters() if parameter.ndim == 1}


def _error_db(block: _Block, weights: Mapping[str, Callable[[], Tensor]]) -> float:
    """SNR in dB of the block's output with these weights, over all its inputs."""
    for name, layer in block.layers.items():
        layer.soft = weights[name]
    error = 0.0
    for start in range(0, len(block.targets), _FORWARD_BATCH):
        some = slice(start, start + _FORWARD_BATCH)
        inputs = tuple(None if value is None else value[some] for value in block.inputs)
        out = _call(block.unit.module, inputs, block.programs[some])
        error += (out - block.targets[some]).double().square().sum().item()
    for layer in block.layers.values():
        layer.soft = None
    power = block.targets.double().square().sum().item()
    return SAME_DB if error == 0 else max(-SAME_DB, min(SAME_DB, 10 * math.log10(max(power, 1e-300) / error)))
