"""A bundle for torch alone: parity needs a reference, a plan and trajectories, and no program of another format."""

import pytest

from edge_sd.bundle import Bundle
from edge_sd.checkpoint import Checkpoint
from edge_sd.export import ExportRequest, export_bundle


@pytest.fixture(scope="session")
def torch_bundle(tiny_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """5 steps, 3 trajectories."""
    path = tmp_path_factory.mktemp("torch") / "tiny.edgesd"
    return export_bundle(tiny_checkpoint, path, ExportRequest((), steps=5, goldens=3))
