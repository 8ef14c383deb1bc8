"""The folder of stand-ins in which documented commands are run: photos, models and bundles under the names that the pages use."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from once import Once

from documented import Ran, run_page
from edge_sd.autoencoder import AutoencoderFile
from edge_sd.checkpoint import Checkpoint, Provenance
from edge_sd.data import DataConfig, open_data
from edge_sd.data.images import save_png
from edge_sd.export import ExportRequest, export_bundle
from edge_sd.models.autoencoder import Autoencoder, AutoencoderConfig
from verbs import call, succeeded

EXTRACTOR = '''"""What a reader's own features may be."""


class Extractor:
    def __call__(self, images):
        return images.float().flatten(1)[:, ::24]
'''
RunPage = Callable[[Path], list[Ran]]


def _fill(folder: Path, tiny_checkpoint: Checkpoint) -> None:
    data = open_data(DataConfig(count=24), 64)
    for name in ("photos", "held-out"):
        (folder / name).mkdir()
        for index in range(24):
            save_png(folder / name / f"{index:02}.png", data.centre[index].transpose(1, 2, 0))
    (folder / "my_features.py").write_text(EXTRACTOR)
    # A file of a shipped model's name stands for it.
    for name in ("emoji64", "student.safetensors", "other.safetensors"):
        tiny_checkpoint.save(folder / name)
    torch.manual_seed(0)
    autoencoder = AutoencoderFile.of(Autoencoder(AutoencoderConfig()), Provenance(made_by="train-autoencoder"))
    autoencoder.save(folder / "stand-in-autoencoder.safetensors")
    for run in ("runs/teacher", "runs/student", "learnt/teacher"):
        (folder / run).mkdir(parents=True)
        tiny_checkpoint.save(folder / run / "checkpoint.safetensors")
    bundle = export_bundle(tiny_checkpoint, folder / "student.edgesd", ExportRequest(("onnx",), goldens=1))
    for name in ("emoji64.edgesd", "other.edgesd", "student-w8a8/student-w8a8.edgesd"):
        shutil.copytree(bundle.path, folder / name)
    succeeded("plan", "swap", bundle.path, "--steps", 5, "-o", folder / "student-w4a8" / "student-w4a8.edgesd")
    (folder / "plans" / "steps-10").mkdir(parents=True)
    bundle.plan.bare().save(folder / "plans" / "steps-10" / "plan.safetensors")
    bundle.plan.bare().save(folder / "eight.safetensors")


@pytest.fixture(scope="session")
def stand_ins(tiny_checkpoint: Checkpoint, once: Once) -> Path:
    """Made once; each page has a copy."""
    return once("documented", lambda folder: _fill(folder, tiny_checkpoint))


@pytest.fixture
def run_documented(stand_ins: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunPage:
    """A page → what became of its blocks, in a folder of its own."""
    folder = tmp_path / "reader"
    shutil.copytree(stand_ins, folder)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)  # my_features
    monkeypatch.setenv("PYTHONPATH", str(folder))  # of the processes that draw and score

    def run(given: Path) -> list[Ran]:
        failed: list[str] = []
        ran = list(run_page(given, lambda words: call(*words), failed))
        assert not failed, "\n".join(failed)
        return ran

    return run
