"""Samples of a bundle for an evaluation: classes, latents and other plans as its reference draws them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from edge_sd.autoencoder import AutoencoderFile
from edge_sd.checkpoint import Checkpoint, Provenance
from edge_sd.decoder import latent_space
from edge_sd.errors import UsageError
from edge_sd.evaluation.draw import CheckpointDrawer, PlanChoice, draw
from edge_sd.export import ExportRequest, export_bundle
from edge_sd.models.autoencoder import Autoencoder, AutoencoderConfig
from edge_sd.models.unet import SpectralUNet
from edge_sd.runtimes.draw import BundleDrawer

MakeModel = Callable[..., SpectralUNet]
REQUEST = ExportRequest(targets=("onnx",), steps=2, goldens=1)


@pytest.fixture(scope="module")
def latent(make_model: MakeModel, tiny_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of checkpoint, decoder and bundle: 4 channels of 16 px, three classes, images of 64 px."""
    folder = tmp_path_factory.mktemp("latent")
    torch.manual_seed(0)
    decoder = AutoencoderFile.of(
        Autoencoder(AutoencoderConfig(width=4, latent_channels=4)).eval(), Provenance(made_by="test")
    ).decoder()
    decoder.save(folder / "decoder.safetensors")
    header = tiny_checkpoint.header
    provenance = header.provenance.model_copy(update={"parents": {"autoencoder": latent_space(decoder)}})
    model = make_model(in_channels=4, out_channels=4, num_classes=3)
    checkpoint = Checkpoint.of(model, header.noise_schedule, header.prediction, provenance)
    checkpoint.save(folder / "checkpoint.safetensors")
    export_bundle(checkpoint, folder / "latent.edgesd", REQUEST, decoder=decoder)
    return folder


@pytest.mark.parametrize("runtime", ["onnxruntime", "torch"])
@pytest.mark.parametrize(("plan", "label"), [(None, None), (None, 1), (PlanChoice(solver="ddim", steps=3), None)])
def test_a_bundle_draws_the_images_of_its_checkpoint(
    latent: Path, runtime: str, plan: PlanChoice | None, label: int | None
) -> None:
    bundle = BundleDrawer(latent / "latent.edgesd", runtime, plan, seed=4, label=label)
    checkpoint = CheckpointDrawer(latent / "checkpoint.safetensors", plan or PlanChoice(steps=2), seed=4, label=label)
    assert bundle.size == checkpoint.size == 64
    found, expected = draw(bundle, 4, batch_size=2), draw(checkpoint, 4, batch_size=2)
    assert np.abs(found.astype(int) - expected.astype(int)).max() <= 1
    ours, theirs = bundle.origin, checkpoint.origin
    assert (ours.kind, ours.name, ours.runtime) == ("bundle", "latent.edgesd", runtime)
    assert (ours.solver, ours.nfe, ours.seed, ours.labels) == (theirs.solver, theirs.nfe, theirs.seed, theirs.labels)


def test_a_class_that_the_bundle_does_not_have_is_refused(latent: Path) -> None:
    with pytest.raises(UsageError, match="one of 3 classes"):
        draw(BundleDrawer(latent / "latent.edgesd", label=3), 1)
