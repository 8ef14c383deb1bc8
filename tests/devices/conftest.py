"""One small bundle that every device here is given."""

from collections.abc import Callable

import pytest
from once import Once

from decoders import same_size_decoder
from edge_sd.bundle import Bundle, open_bundle
from edge_sd.checkpoint import Checkpoint, Provenance
from edge_sd.diffusion import SCHEDULES
from edge_sd.export import ExportRequest, export_bundle
from edge_sd.models.unet import SpectralUNet


@pytest.fixture(scope="session")
def bundle(make_model: Callable[..., SpectralUNet], once: Once, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """8 px, 4 steps of a stochastic solver, 2 trajectories; denoiser, temporal and decoder for ONNX and ExecuTorch."""
    checkpoint = Checkpoint.of(make_model(image_size=8), SCHEDULES["cosine"], "v", Provenance(made_by="train", steps=3))
    request = ExportRequest(("onnx", "executorch"), solver="ddpm", steps=4, seed=5, goldens=2, temporal=True)
    decoder = same_size_decoder(tmp_path_factory.mktemp("autoencoder"))
    folder = once("devices", lambda folder: export_bundle(checkpoint, folder / "tiny.edgesd", request, decoder=decoder))
    return open_bundle(folder / "tiny.edgesd")
