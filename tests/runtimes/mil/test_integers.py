"""Quantized models: integers of weights and of activations, several functions in a package, against the same in PyTorch."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_sd.bundle import Bundle
from edge_sd.checkpoint import Checkpoint, Provenance
from edge_sd.diffusion import SCHEDULES
from edge_sd.export import ExportRequest, TargetOptions, export_bundle
from edge_sd.models.unet import SpectralUNet
from edge_sd.quantize.checkpoint import quantized_checkpoint
from edge_sd.quantize.form import quantizable_form
from edge_sd.quantize.grid import activation_grid, rounded_weight, symmetric_grid, weight_scales
from edge_sd.quantize.layers import layers_of, points_of
from edge_sd.quantize.recipe import Recipe, default_layers
from edge_sd.runtimes.coreml_reference import CoreMLReferenceRuntime

MakeModel = Callable[..., SpectralUNet]
# In this trajectory no activation lies so near to an edge of its grid that a last bit decides; a third of all calls have such.
CLEAR = 2
CASES = [(8, "iOS17"), (4, "iOS18")]


@pytest.fixture(scope="module", params=CASES, ids=[f"w{bits}a8-{system}" for bits, system in CASES])
def bundle(request: pytest.FixtureRequest, make_model: MakeModel, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Two groups of steps, each with ranges of its own, which nobody calibrated; 144 tokens, so that attention counts in."""
    bits, system = request.param
    checkpoint = Checkpoint.of(
        make_model(2, image_size=24, head_channels=8), SCHEDULES["ldm"], "epsilon", Provenance(made_by="train")
    )
    model = checkpoint.header.model
    recipe = Recipe(model=model, steps=4, starts=(0, 1), layers=default_layers(model, bits, 8))
    form = quantizable_form(checkpoint.build())
    for name, layer in layers_of(form).items():
        grid = recipe.layers[name].grid
        if grid is not None:
            weight = layer.weights()
            scales = weight_scales(weight, grid)
            layer.store(rounded_weight(weight, scales, grid), scales, grid)
    random, points = np.random.default_rng(5), points_of(form)
    for name, width in recipe.point_bits(form).items():
        make_grid = symmetric_grid if points[name].symmetric else activation_grid
        points[name].grids = tuple(make_grid(-random.uniform(0.5, 3), random.uniform(0.5, 3), width) for _ in range(2))
    quantized = quantized_checkpoint(
        form, checkpoint, recipe, provenance=Provenance(made_by="quantize"), calibration="", blocks=()
    )
    options: Any = TargetOptions(coreml_os=system, coreml_precision="fp32")
    path: Path = tmp_path_factory.mktemp("quantized") / "x.edgesd"
    return export_bundle(quantized, path, ExportRequest(("coreml",), options, steps=4, goldens=3))


@pytest.mark.parametrize("program", [0, 1])
def test_integers_of_8_bits_come_out_as_in_torch(program: int, bundle: Bundle) -> None:
    """As near as floats: not one activation falls to another number of its grid."""
    name = "denoiser" if program == 0 else f"denoiser.{program}"
    session = CoreMLReferenceRuntime().load(bundle, program=name)
    kinds = set(session.evaluator.operators.values())  # type: ignore[attr-defined]
    assert {"quantize", "dequantize"} <= kinds
    assert kinds & {"constexpr_affine_dequantize", "constexpr_blockwise_shift_scale"}
    golden = bundle.golden.trajectories[CLEAR]
    rows = [row for row in range(len(bundle.plan)) if bundle.plan.program[row] == program]
    assert rows
    for row in rows:
        found = session(golden.samples[row : row + 1], golden.features[row : row + 1])[0]
        assert np.abs(found - golden.predictions[row]).max() <= 1e-5


def test_the_functions_of_a_package_are_told_apart(bundle: Bundle) -> None:
    golden = bundle.golden.trajectories[CLEAR]
    entries = [bundle.program("coreml", name).entry for name in ("denoiser", "denoiser.1")]
    assert entries == (["", ""] if bundle.program("coreml").options["os"] == "iOS17" else ["denoiser", "denoiser.1"])
    first, second = (
        CoreMLReferenceRuntime().load(bundle, program=name)(golden.samples[:1], golden.features[:1])
        for name in ("denoiser", "denoiser.1")
    )
    assert np.abs(first - second).max() > 1e-3
