"""A tiny model that has everything to quantize, what it is calibrated on, and a whole run of it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from edge_sd.checkpoint import Checkpoint, Provenance
from edge_sd.diffusion import SCHEDULES, Plan
from edge_sd.models.unet import SpectralUNet
from edge_sd.quantize._quantize import Quantized, plan_of, quantize
from edge_sd.quantize.calibration import Calibration, CalibrationRequest, capture
from edge_sd.quantize.recipe import Recipe, default_layers
from edge_sd.quantize.reconstruction import ReconstructionSettings

MakeModel = Callable[..., SpectralUNet]


@pytest.fixture(scope="session")
def parent(make_model: MakeModel) -> Checkpoint:
    """16 px; attention over 256 tokens, two heads, and over 64."""
    model = make_model(1, attention=(1,), head_channels=4)
    return Checkpoint.of(model, SCHEDULES["cosine"], "v", Provenance(made_by="train", steps=3, parents={"teacher": "0" * 64}))


@pytest.fixture(scope="session")
def recipe(parent: Checkpoint) -> Recipe:
    """W4A8 under six steps in two groups; a few iterations a block."""
    model = parent.header.model
    return Recipe(
        model=model,
        steps=6,
        groups=2,
        calibration=CalibrationRequest(trajectories=3),
        reconstruction=ReconstructionSettings(iterations=8, batch_size=4),
        layers=default_layers(model, 4, 8),
    )


@pytest.fixture(scope="session")
def plan(parent: Checkpoint, recipe: Recipe) -> Plan:
    return plan_of(parent, recipe)


@pytest.fixture(scope="session")
def calibration(parent: Checkpoint, recipe: Recipe, plan: Plan) -> Calibration:
    return capture(parent.build(), plan, recipe.calibration, parent.header.digest)


@pytest.fixture(scope="session")
def blocks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("quantized") / "blocks"


@pytest.fixture(scope="session")
def quantized(parent: Checkpoint, recipe: Recipe, calibration: Calibration, blocks: Path) -> Quantized:
    torch.manual_seed(99)  # whatever others have drawn before
    return quantize(parent, recipe, calibration, blocks)
