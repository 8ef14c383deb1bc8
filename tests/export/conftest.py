"""Bundles that several tests of exports look at, each lowered once for the session."""

from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from once import Once

from edge_sd.bundle import Bundle, open_bundle
from edge_sd.checkpoint import Checkpoint, Provenance
from edge_sd.decoder import Decoder, load_decoder
from edge_sd.diffusion import SCHEDULES
from edge_sd.export import ExportRequest, TargetOptions, export_bundle
from edge_sd.models.unet import SpectralUNet

MakeModel = Callable[..., SpectralUNet]
MakeCheckpoint = Callable[..., Checkpoint]
SMALL: dict[str, Any] = {"image_size": 8, "head_channels": 8}


@pytest.fixture(scope="session")
def make_checkpoint(make_model: MakeModel) -> MakeCheckpoint:
    """Changes to the tiny configuration, at 8 px → a checkpoint."""

    def make(**changes: Any) -> Checkpoint:
        return Checkpoint.of(make_model(2, **{**SMALL, **changes}), SCHEDULES["ldm"], "epsilon", Provenance(made_by="train"))

    return make


@pytest.fixture(scope="session")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    """diffusers' smallest: a latent of 3 channels to an image twice its size, by weights that nobody trained."""
    torch.manual_seed(4)
    theirs = diffusers.AutoencoderTiny(
        encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1), latent_channels=3, scaling_factor=1.5, shift_factor=0.2,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("decoder")
    theirs.save_pretrained(folder)
    return load_decoder(folder)


@pytest.fixture(scope="session")
def latent(make_checkpoint: MakeCheckpoint, decoder: Decoder, once: Once) -> Bundle:
    """Gated, with decoder and temporal, for every target; Core ML for iOS 18."""
    request = ExportRequest(("all",), TargetOptions(coreml_os="iOS18"), steps=4, goldens=2, seed=3, temporal=True)
    folder = once("latent", lambda folder: export_bundle(make_checkpoint(), folder / "latent.edgesd", request, decoder=decoder))
    return open_bundle(folder / "latent.edgesd")


@pytest.fixture(scope="session")
def by_context(make_checkpoint: MakeCheckpoint, once: Once) -> Bundle:
    """Three classes as two context tokens each, for every target; Core ML for iOS 17, single precision."""
    checkpoint = make_checkpoint(num_classes=3, class_conditioning="context", context_dim=6, context_tokens=2)
    options = TargetOptions(coreml_os="iOS17", coreml_precision="fp32")
    request = ExportRequest(("all",), options, solver="ddim", steps=3, goldens=4)
    folder = once("context", lambda folder: export_bundle(checkpoint, folder / "context.edgesd", request))
    return open_bundle(folder / "context.edgesd")


@pytest.fixture(scope="session")
def by_addition(make_checkpoint: MakeCheckpoint, once: Once) -> Bundle:
    """Three classes added to the time embedding; db2, resampling inside of blocks; for ONNX and ExecuTorch."""
    checkpoint = make_checkpoint(num_classes=3, wavelet="db2", resample="block", scale_shift=True)
    request = ExportRequest(("onnx", "executorch"), steps=3, goldens=3)
    folder = once("addition", lambda folder: export_bundle(checkpoint, folder / "addition.edgesd", request))
    return open_bundle(folder / "addition.edgesd")


@pytest.fixture(scope="session")
def onnx_bundle(make_checkpoint: MakeCheckpoint, once: Once) -> Bundle:
    """The plainest: ungated, for ONNX alone; tests that damage it copy it."""
    request = ExportRequest(("onnx",), steps=4, goldens=2, seed=7)
    folder = once("plain", lambda folder: export_bundle(make_checkpoint(gating=False), folder / "plain.edgesd", request))
    return open_bundle(folder / "plain.edgesd")
