"""One bundle for every target that works here, which each runtime and each device must treat alike."""

import pytest

from edge_sd.bundle import Bundle, open_bundle
from edge_sd.checkpoint import Checkpoint
from edge_sd.export import export_bundle, targets


@pytest.fixture(scope="session")
def bundle(tiny_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """4 steps, 2 trajectories, and a program for each target whose packages are installed."""
    path = tmp_path_factory.mktemp("contract") / "tiny.edgesd"
    export_bundle(tiny_checkpoint, path, [name for name, target in targets().items() if target.available().ok], steps=4, seed=5)
    return open_bundle(path)
