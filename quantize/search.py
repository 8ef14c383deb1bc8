"""Bits under a budget: which layers get more, so that a size or a quality is kept.

What rounding one layer alone costs is measured (mean square of the prediction's error over calibration inputs); costs of layers
add up nearly, so layers are widened in the order of what each byte buys. What comes out is then quantized and measured for real.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from edge_sd.errors import UsageError
from edge_sd.models.unet import SpectralUNet
from edge_sd.quantize.calibration import Calibration
from edge_sd.quantize.form import quantizable_form
from edge_sd.quantize.grid import WeightGrid, restored_weight, rounded_weight, weight_scales
from edge_sd.quantize.layers import layers_of
from edge_sd.quantize.recipe import Recipe

# Widths that every format stores as they are.
NARROW, WIDE = 4, 8
_INPUTS = 24
_UNITS = {"b": 1, "kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


@dataclass(frozen=True)
class Budget:
    """What must hold: a quality (dB, at least), a size of the weights (bytes) or a latency (share of float32's), at most."""

    kind: Literal["sqnr", "size", "latency"]
    bound: float


def parse_budget(text: str) -> Budget:
    """sqnr>=20dB, size<=3MB or latency<=0.6x.

    Raises:
        UsageError: none of these.
    """
    found = re.fullmatch(r"\s*(sqnr|size|latency)\s*(>=|<=)\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", text.lower())
    expected = {"sqnr": (">=", {"db": 1.0, "": 1.0}), "size": ("<=", _UNITS), "latency": ("<=", {"x": 1.0, "": 1.0})}
    if found is not None:
        kind, sign, number, unit = found.groups()
        wanted, units = expected[kind]
        if sign == wanted and unit in units and float(number) > 0:
            return Budget(kind, float(number) * units[unit])  # type: ignore[arg-type]
    raise UsageError(f"{text!r} is no budget", "sqnr>=20dB, size<=3MB or latency<=0.6x")


def weight_bytes(numbers: Mapping[str, int], scales: Mapping[str, int], bits: Mapping[str, int]) -> float:
    """Bytes of the weights and their scales at given bits."""
    return sum(numbers[name] * bits[name] / 8 + 4 * scales[name] for name in bits)


def sensitivities(
    model: SpectralUNet,
    calibration: Calibration,
    recipe: Recipe,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, dict[int, float]]:
    """Error of the prediction, relative to its power, with one layer's weights rounded to nearest, by layer and bits."""
    form = quantizable_form(model)
    few = calibration.spread(_INPUTS)
    x, features = torch.from_numpy(few.samples), torch.from_numpy(few.features)
    layers = {name: layer for name, layer in layers_of(form).items() if name in recipe.grids}
    found: dict[str, dict[int, float]] = {}
    with torch.no_grad():
        expected = form.denoise(x, features)
        power = expected.double().square().mean().item()
        for done, (name, layer) in enumerate(layers.items()):
            assert layer.weight is not None  # noqa: S101 (nothing is quantized here)
            found[name] = {}
            for bits in (NARROW, WIDE):
                grid = WeightGrid(bits=bits, group=recipe.layers[name].group, method=recipe.layers[name].scales)
                scales = weight_scales(layer.weight, grid)
                weight = restored_weight(rounded_weight(layer.weight, scales, grid), scales)
                layer.soft = lambda weight=weight: weight
                error = (form.denoise(x, features) - expected).double().square().mean().item()
                found[name][bits] = error / max(power, 1e-300)
            layer.soft = None
            progress(done + 1, len(layers))
    return found


@dataclass(frozen=True)
class Point:
    """One allocation on the way from narrow to wide.

    Attributes:
        bits: by layer.
        bytes: of weights and scales.
        predicted_db: from the sum of the layers' own errors.
    """

    bits: dict[str, int]
    bytes: float
    predicted_db: float


def front(measured: Mapping[str, Mapping[int, float]], recipe: Recipe, shapes: Mapping[str, tuple[int, ...]]) -> list[Point]:
    """Allocations from all layers narrow to all wide, each widening the layer whose bytes take away most error."""
    numbers = {name: int(np.prod(shapes[name])) for name in measured}
    scales = {name: shapes[name][0] * _groups(shapes[name], recipe.layers[name].group) for name in measured}
    # What the recipe gives 8 bits for a reason keeps them.
    layers = {name: recipe.layers[name] for name in measured}
    bits = {name: WIDE if layer.why and (layer.bits or 0) > NARROW else NARROW for name, layer in layers.items()}
    gain = {
        name: (measured[name][NARROW] - measured[name][WIDE]) / (numbers[name] * (WIDE - NARROW) / 8)
        for name, width in bits.items()
        if width == NARROW
    }

    def point() -> Point:
        noise = sum(measured[name][width] for name, width in bits.items())
        return Point(dict(bits), weight_bytes(numbers, scales, bits), -10 * float(np.log10(max(noise, 1e-30))))

    points = [point()]
    for name in sorted(gain, key=lambda name: -gain[name]):
        bits[name] = WIDE
        points.append(point())
    return points


def _groups(shape: tuple[int, ...], group: int | None) -> int:
    return 1 if group is None else max(shape[1] // group, 1)


def choose(points: list[Point], budget: Budget) -> int:
    """Index of the best point: the largest that fits a size, or the smallest that is predicted to reach a quality.

    Raises:
        UsageError: nothing fits.
    """
    if budget.kind == "size":
        fitting = [index for index, point in enumerate(points) if point.bytes <= budget.bound]
        if not fitting:
            raise UsageError(
                f"the smallest allocation takes {points[0].bytes / 1e6:.2f} MB, the budget is {budget.bound / 1e6:.2f} MB",
                f"size<={points[0].bytes / 1e6 + 0.01:.2f}MB, or a smaller model",
            )
        return fitting[-1]
    reaching = [index for index, point in enumerate(points) if point.predicted_db >= budget.bound]
    return reaching[0] if reaching else len(points) - 1
