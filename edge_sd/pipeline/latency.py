"""A latency budget: as many layers stay in float as the time allows, the most sensitive first; time is measured."""

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from edge_sd.bundle import Bundle
from edge_sd.checkpoint import Checkpoint
from edge_sd.errors import EdgeSDError
from edge_sd.export import ExportRequest, export_bundle
from edge_sd.quantize import quantize
from edge_sd.quantize.calibration import Calibration
from edge_sd.quantize.form import quantizable_form
from edge_sd.quantize.layers import points_of
from edge_sd.quantize.ranges import choose_grids, observe
from edge_sd.quantize.recipe import Recipe
from edge_sd.runnable import Session
from edge_sd.runtimes import find_runtime

RUNTIME = "onnxruntime"
_INPUTS, _ROUNDS = 16, 40
WHY = "the latency budget leaves it in float"


def under_latency(
    parent: Checkpoint,
    recipe: Recipe,
    calibration: Calibration,
    bound: float,
    folder: Path,
    progress: Callable[[int, int, str], None] = lambda done, total, note: None,
) -> tuple[Recipe, float]:
    """Put as many layers' activations into float as keeps a step below `bound` of full precision's time in ONNX Runtime.

    Args:
        folder: for the bundles that are timed.

    Returns:
        The recipe, and the share that it was measured at.

    Raises:
        EdgeSDError: not even with all layers in integers.
    """
    few = calibration.spread(_INPUTS)
    order = activation_sensitivity(parent, recipe, few)
    exact = export_bundle(parent, folder / "float.edgesd", _request(recipe), overwrite=True)
    trials = 0

    def share(count: int) -> float:
        nonlocal trials
        trials += 1
        candidate = in_float(recipe, order[:count])
        nearest = {"reconstruction": recipe.reconstruction.model_copy(update={"iterations": 0}), "groups": 1, "starts": ()}
        found = quantize(parent, candidate.model_copy(update=nearest), few, folder / "blocks")
        bundle = export_bundle(found.checkpoint, folder / "integer.edgesd", _request(recipe), overwrite=True)
        ratio = interleaved_share(exact, bundle)
        progress(trials, len(order).bit_length() + 1, f"{count} layers in float: {ratio:.2f}×")
        return ratio

    low, high = 0, len(order)
    if bound >= 1 and (measured := share(high)) <= bound:  # as long as float32 takes, or longer: all may well stay in float
        return in_float(recipe, order), measured
    best = share(low)
    if best > bound:
        raise EdgeSDError(
            f"with all it can in integers a step takes {best:.2f}× of float32's time here, the budget is {bound:g}×",
            f"latency<={best + 0.02:.2f}x, or fewer layers that are kept in float",
        )
    while low < high:
        middle = (low + high + 1) // 2
        if (measured := share(middle)) <= bound:
            low, best = middle, measured
        else:
            high = middle - 1
    return in_float(recipe, order[:low]), best


def activation_sensitivity(parent: Checkpoint, recipe: Recipe, calibration: Calibration) -> list[str]:
    """Layers whose activations are on grids, those whose grids alone move the prediction most first."""
    form = quantizable_form(parent.build())
    observed = observe(form, calibration, recipe.steps)
    grids = choose_grids(observed, recipe.point_bits(form), [0], recipe.ranges)
    x, features = torch.from_numpy(calibration.samples), torch.from_numpy(calibration.features)
    points, errors = points_of(form), {}
    with torch.no_grad():
        expected = form.denoise(x, features)
        for name, layer in recipe.layers.items():
            own = [place for place in grids if place.rpartition(".")[0] == name]
            if layer.bits is None or not own:
                continue
            for place in own:
                points[place].grids = grids[place]
            errors[name] = (form.denoise(x, features) - expected).square().mean().item()
            for place in own:
                points[place].grids = ()
    return sorted(errors, key=lambda name: -errors[name])


def in_float(recipe: Recipe, names: list[str]) -> Recipe:
    """A recipe with some layers' activations in float."""
    changed = {name: recipe.layers[name].model_copy(update={"input": None, "output": None, "why": WHY}) for name in names}
    return recipe.model_copy(update={"layers": {**recipe.layers, **changed}})


def interleaved_share(exact: Bundle, quantized: Bundle) -> float:
    """Median over pairs of calls, in turn A B B A, of the second's time as a share of the first's."""
    golden, runtime = exact.golden.trajectories[0], find_runtime(RUNTIME)
    sessions = [runtime.load(bundle, threads=1) for bundle in (exact, quantized)]

    def call(session: Session, row: int) -> float:
        start = time.perf_counter()
        session(golden.samples[row : row + 1], golden.features[row : row + 1])
        return time.perf_counter() - start

    shares = []
    for number in range(-4, _ROUNDS):  # the first ones warm up
        order = sessions if number % 2 else sessions[::-1]
        spent = {id(session): call(session, number % len(golden.samples)) for session in order}
        if number >= 0:
            shares.append(spent[id(sessions[1])] / spent[id(sessions[0])])
    return statistics.median(shares)


def _request(recipe: Recipe) -> ExportRequest:
    return ExportRequest(targets=("onnx",), solver=recipe.solver, steps=recipe.steps, spacing=recipe.spacing, goldens=1)
