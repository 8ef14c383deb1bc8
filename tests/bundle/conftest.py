"""One exported bundle for the session, copies of it to be damaged, and disks that are soon full."""

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from once import Once

from edge_sd.checkpoint import Checkpoint
from edge_sd.export import ExportRequest, export_bundle

MakeDisk = Callable[[int], Path]


@pytest.fixture(scope="session")
def tiny_bundle(tiny_checkpoint: Checkpoint, once: Once) -> Path:
    """tiny.edgesd for torch and ONNX, 4 steps, 2 trajectories."""
    request = ExportRequest(("onnx",), steps=4, seed=5, goldens=2)
    return once("tiny", lambda folder: export_bundle(tiny_checkpoint, folder / "tiny.edgesd", request)) / "tiny.edgesd"


@pytest.fixture
def copied(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / tiny_bundle.name))


@pytest.fixture
def make_disk(tmp_path: Path) -> Iterator[MakeDisk]:
    """(kB) → a disk of its own of that size."""
    disks = []

    def make(size: int) -> Path:
        disk = tmp_path / f"disk{len(disks)}"
        disk.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", disk], check=True)
        disks.append(disk)
        return disk

    yield make
    for disk in disks:
        subprocess.run(["umount", "--lazy", disk], check=True)
