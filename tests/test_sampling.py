"""Drawing from a model says how far it has come: every step and every image once, the last one too."""

import numpy as np
import pytest
import torch

from edge_sd.autoencoder import AutoencoderFile
from edge_sd.checkpoint import Checkpoint, Provenance
from edge_sd.diffusion import compile_plan
from edge_sd.models.autoencoder import Autoencoder, AutoencoderConfig
from edge_sd.sampling import decode, ready_to_draw, sample_model


def test_a_step_is_told_when_it_is_done(tiny_checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    header, told = tiny_checkpoint.header, []
    plan = compile_plan(header.noise_schedule, 3, solver="dpmpp", prediction=header.prediction)
    model, calls = tiny_checkpoint.build(), 0
    denoise = model.denoise

    def counted(x: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return denoise(x, features)

    monkeypatch.setattr(model, "denoise", counted)
    sample_model(model, plan, count=3, batch_size=2, observe=lambda done, total: told.append((done, total, calls)))
    assert told == [(step, 6, step) for step in range(1, 7)]


def test_decoding_tells_of_each_image() -> None:
    torch.manual_seed(0)
    model = Autoencoder(AutoencoderConfig(width=4, latent_channels=3)).eval()
    latents = np.random.default_rng(0).standard_normal((3, 3, 2, 2)).astype(np.float32)
    told: list[tuple[int, int]] = []
    images = decode(
        AutoencoderFile.of(model, Provenance(made_by="x")).decoder(), latents, lambda done, total: told.append((done, total))
    )
    assert told == [(1, 3), (2, 3), (3, 3)]
    with torch.no_grad():
        np.testing.assert_allclose(images, model.decoder(torch.from_numpy(latents)).numpy(), atol=1e-5)


def test_channels_last_draw_the_same(tiny_checkpoint: Checkpoint) -> None:
    """To a rounding: other sums of the same numbers."""
    header = tiny_checkpoint.header
    plan = compile_plan(header.noise_schedule, 3, solver="dpmpp", prediction=header.prediction)
    plainly, ready = tiny_checkpoint.build(), ready_to_draw(tiny_checkpoint.build())
    if not torch.cuda.is_available():
        assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in ready.parameters() if weight.ndim == 4)
    expected = sample_model(plainly, plan, count=3)
    np.testing.assert_allclose(sample_model(ready.cpu(), plan, count=3), expected, atol=1e-5 * np.abs(expected).max())
