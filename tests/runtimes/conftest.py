"""A bundle for torch alone: parity needs a reference, a plan and trajectories, and no program of another format."""

from collections.abc import Callable
from typing import Any

import pytest

from edge_sd.bundle import Bundle
from edge_sd.checkpoint import Checkpoint, Provenance
from edge_sd.diffusion import SCHEDULES
from edge_sd.export import ExportRequest, export_bundle
from edge_sd.models.unet import SpectralUNet


@pytest.fixture(scope="session")
def torch_bundle(tiny_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """5 steps, 3 trajectories."""
    path = tmp_path_factory.mktemp("torch") / "tiny.edgesd"
    return export_bundle(tiny_checkpoint, path, ExportRequest((), steps=5, goldens=3))


@pytest.fixture(scope="session")
def make_checkpoint(make_model: Callable[..., SpectralUNet]) -> Callable[..., Checkpoint]:
    """Changes to the tiny configuration, at 8 px → a checkpoint."""

    def make(**changes: Any) -> Checkpoint:
        model = make_model(2, **{"image_size": 8, **changes})
        return Checkpoint.of(model, SCHEDULES["cosine"], "v", Provenance(made_by="train", steps=3))

    return make
