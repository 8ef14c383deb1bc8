"""One bundle with every program for every target, which each runtime and each device must treat alike."""

from collections.abc import Callable

import pytest
from once import Once

from decoders import same_size_decoder
from edge_sd.bundle import Bundle, open_bundle
from edge_sd.checkpoint import Checkpoint, Provenance
from edge_sd.decoder import Decoder
from edge_sd.diffusion import SCHEDULES
from edge_sd.export import ExportRequest, TargetOptions, export_bundle
from edge_sd.models.unet import SpectralUNet


@pytest.fixture(scope="session")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    return same_size_decoder(tmp_path_factory.mktemp("autoencoder"))


@pytest.fixture(scope="session")
def bundle(make_model: Callable[..., SpectralUNet], decoder: Decoder, once: Once) -> Bundle:
    """8 px, 4 steps, 2 trajectories; denoiser, temporal and decoder for each target there is: none is passed over."""
    checkpoint = Checkpoint.of(make_model(image_size=8), SCHEDULES["cosine"], "v", Provenance(made_by="train", steps=3))
    # Core ML's default is half precision, some 60 dB: in single precision it is held to what every other format is held to.
    options = TargetOptions(coreml_precision="fp32")
    request = ExportRequest(("all",), options, steps=4, seed=5, goldens=2, temporal=True)
    folder = once("contract", lambda folder: export_bundle(checkpoint, folder / "tiny.edgesd", request, decoder=decoder))
    return open_bundle(folder / "tiny.edgesd")
