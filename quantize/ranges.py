"""Ranges of activations: what each point meets at each step, the cut of the steps into groups, and the grids of each group."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edge_sd.errors import UsageError
from edge_sd.models.stepped import select
from edge_sd.models.unet import SpectralUNet
from edge_sd.quantize.calibration import Calibration
from edge_sd.quantize.grid import ActivationGrid, RangeMethod, search_activation_grid
from edge_sd.quantize.grouping import Ranges
from edge_sd.quantize.layers import SYMMETRIC, points_of

# Values that are kept of a point at a step, for searching its range.
KEPT = 4096
_BATCH = 16
# Inputs that are looked at, of each step: enough for so many positions at full resolution.
_POSITIONS, _FEWEST = 32768, 8
# Inputs that ways to cut the steps are judged by.
_JUDGED = 64


@dataclass(frozen=True)
class Observations:
    """What N points met at S steps of a plan; a step without calibration inputs has what the nearest one has.

    Attributes:
        ranges: smallest and largest value, mean square.
        values: by point, by step: a sample of the values, float32, of which the extremes are part.
    """

    ranges: Ranges
    values: dict[str, list[NDArray[np.float32]]]


class _Meter:
    """What one point met at one step."""

    def __init__(self) -> None:
        self.low, self.high, self.square, self.count = float("inf"), -float("inf"), 0.0, 0
        self.kept: list[NDArray[np.float32]] = []

    def add(self, x: Tensor, generator: np.random.Generator) -> None:
        values = x.detach().reshape(-1)
        self.low, self.high = min(self.low, values.min().item()), max(self.high, values.max().item())
        self.square, self.count = self.square + values.double().square().sum().item(), self.count + values.numel()
        if values.numel() > KEPT:
            values = values[torch.from_numpy(generator.integers(0, values.numel(), KEPT))]
        self.kept.append(values.numpy().copy())

    def sample(self, generator: np.random.Generator) -> NDArray[np.float32]:
        values = np.concatenate(self.kept)
        if len(values) > KEPT:
            values = generator.choice(values, KEPT, replace=False)
        return np.concatenate([values, np.array([self.low, self.high], dtype=np.float32)])


def observe(
    form: SpectralUNet, calibration: Calibration, steps: int, progress: Callable[[int, int], None] = lambda done, total: None
) -> Observations:
    """Run a model in its quantizable form over calibration inputs and watch every point.

    Args:
        steps: of the plan.
        progress: called with (steps done, steps in all).

    Raises:
        UsageError: a point meets a value that is not finite; it is named.
    """
    points, generator = points_of(form), np.random.default_rng(0)
    most = max(_FEWEST, _POSITIONS // form.config.image_size**2)
    meters: dict[int, dict[str, _Meter]] = {}
    done = 0
    try:
        for row in calibration.covered:
            here = meters[row] = {name: _Meter() for name in points}
            for name, point in points.items():
                point.observe = lambda x, meter=here[name]: meter.add(x, generator)
            chosen = np.flatnonzero(calibration.rows == row)[:most]
            for start in range(0, len(chosen), _BATCH):
                some = chosen[start : start + _BATCH]
                with torch.no_grad():
                    form.denoise(torch.from_numpy(calibration.samples[some]), torch.from_numpy(calibration.features[some]))
            done += 1
            progress(done, len(calibration.covered))
    finally:
        for point in points.values():
            point.observe = None
    for row, here in meters.items():
        for name, meter in here.items():
            if not np.isfinite([meter.low, meter.high, meter.square]).all():
                raise UsageError(
                    f"the activation {name} is not finite at step {row}",
                    "the model overflows on the calibration inputs: is it trained?",
                )
    covered = np.array(calibration.covered)
    nearest = [int(covered[np.abs(covered - row).argmin()]) for row in range(steps)]
    names = tuple(name for name in points if all(here[name].count for here in meters.values()))

    def table(value: Callable[[_Meter], float]) -> NDArray[np.float64]:
        return np.array([[value(meters[row][name]) for name in names] for row in nearest])

    ranges = Ranges(names, table(lambda m: m.low), table(lambda m: m.high), table(lambda m: m.square / m.count))
    samples = {row: {name: meters[row][name].sample(generator) for name in names} for row in meters}
    return Observations(ranges, {name: [samples[row][name] for row in nearest] for name in names})


def group_errors(
    form: SpectralUNet,
    calibration: Calibration,
    observed: Observations,
    bits: Mapping[str, int],
    cuts: Sequence[Sequence[int]],
    method: RangeMethod,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[float]:
    """Error of the prediction, relative to its power, with activations alone on their grids, for each way to cut the steps.

    Args:
        cuts: the steps with which groups begin.
    """
    points, steps = points_of(form), len(observed.ranges.low)
    judged = calibration.spread(_JUDGED)
    x, features, rows = torch.from_numpy(judged.samples), torch.from_numpy(judged.features), judged.rows.tolist()
    errors = []
    with torch.no_grad():
        exact = [form.denoise(x[[n]], features[[n]]) for n in range(len(rows))]
        for done, starts in enumerate(cuts):
            for name, grids in choose_grids(observed, bits, starts, method).items():
                points[name].grids = grids
            groups, shares = groups_of(starts, steps), []
            for n, (row, expected) in enumerate(zip(rows, exact, strict=True)):
                select(form, next(group for group, steps_of in enumerate(groups) if row in steps_of))
                noise = (form.denoise(x[[n]], features[[n]]) - expected).double().square().mean()
                shares.append((noise / expected.double().square().mean()).item())
            errors.append(float(np.mean(shares)))
            progress(done + 1, len(cuts))
    for point in points.values():
        point.grids, point.program = (), 0
    return errors


def groups_of(starts: Sequence[int], steps: int) -> list[range]:
    """Steps of each group, from where each begins."""
    return [range(start, stop) for start, stop in zip(starts, [*starts[1:], steps], strict=True)]


def choose_grids(
    observed: Observations, bits: Mapping[str, int], starts: Sequence[int], method: RangeMethod
) -> dict[str, tuple[ActivationGrid, ...]]:
    """A grid for each point and group of steps.

    Args:
        bits: of the points that get one.
        starts: the step with which each group begins.
    """
    groups = groups_of(starts, len(observed.ranges.low))
    signed = tuple(f".{place}" for place in SYMMETRIC)
    return {
        name: tuple(
            search_activation_grid(
                torch.from_numpy(np.concatenate([observed.values[name][row] for row in rows])),
                width,
                method,
                symmetric=name.endswith(signed),
            )
            for rows in groups
        )
        for name, width in bits.items()
    }
