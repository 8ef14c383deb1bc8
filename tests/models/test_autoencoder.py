"""The autoencoder: sizes of every level, what the Haar stem sees, and what standardising its latents changes and does not."""

import math

import numpy as np
import pytest
import pywt
import torch
from pydantic import ValidationError
from torch import nn

from edge_sd.errors import UsageError
from edge_sd.models.autoencoder import Autoencoder, AutoencoderConfig
from edge_sd.models.wavelets import DWT2, IDWT2

FACTORS = (4, 8)


def made(factor: int = 4, width: int = 6, latent_channels: int = 5, **more: int) -> Autoencoder:
    """A small one whose every weight counts: each parameter is moved."""
    torch.manual_seed(1)
    model = Autoencoder(
        AutoencoderConfig.model_validate({"factor": factor, "width": width, "latent_channels": latent_channels, **more})
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.3 / math.sqrt(max(parameter[0].numel(), 1)))
    return model.eval()


def images(count: int = 2, size: int = 32) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(2)) * 2 - 1


def seen(module: nn.Module, x: torch.Tensor) -> list[tuple[str, tuple[int, ...]]]:
    """Class and output's size of each layer of a half, in the order in which they run."""
    found: list[tuple[str, tuple[int, ...]]] = []
    hooks = [
        layer.register_forward_hook(lambda layer, _, out: found.append((type(layer).__name__.lstrip("_"), tuple(out.shape[1:]))))
        for layer in module.layers  # type: ignore[union-attr]
    ]
    with torch.no_grad():
        module(x)
    for hook in hooks:
        hook.remove()
    return found


# Sizes


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize(("height", "width"), [(32, 32), (16, 48)])
@torch.no_grad()
def test_a_latent_is_as_much_coarser_as_the_factor_says(factor: int, height: int, width: int) -> None:
    model, image = made(factor), torch.rand(3, 3, height, width)
    latent = model.encoder(image)
    assert latent.shape == (3, 5, height // factor, width // factor)
    assert model.decoder(latent).shape == image.shape
    torch.testing.assert_close(model(image), model.decoder(latent))


def test_the_levels_of_both_halves() -> None:
    """Haar halves the image before each level; on the way out each level ends in its inverse, the last on three channels."""
    model = made(factor=8, width=6)
    assert model.config.widths == (6, 12, 24)
    assert seen(model.encoder, images()) == [
        ("DWT2", (12, 16, 16)), ("Conv2d", (6, 16, 16)), ("ReLU", (6, 16, 16)), ("Block", (6, 16, 16)),
        ("DWT2", (24, 8, 8)), ("Conv2d", (12, 8, 8)), ("ReLU", (12, 8, 8)), ("Block", (12, 8, 8)),
        ("DWT2", (48, 4, 4)), ("Conv2d", (24, 4, 4)), ("ReLU", (24, 4, 4)), ("Block", (24, 4, 4)),
        ("Conv2d", (5, 4, 4)),
    ]  # fmt: skip
    assert seen(model.decoder, torch.rand(1, 5, 4, 4)) == [
        ("Conv2d", (24, 4, 4)), ("ReLU", (24, 4, 4)), ("Block", (24, 4, 4)), ("Block", (24, 4, 4)),
        ("Conv2d", (48, 4, 4)), ("IDWT2", (12, 8, 8)), ("Block", (12, 8, 8)), ("Block", (12, 8, 8)),
        ("Conv2d", (24, 8, 8)), ("IDWT2", (6, 16, 16)), ("Block", (6, 16, 16)), ("Block", (6, 16, 16)),
        ("Conv2d", (12, 16, 16)), ("IDWT2", (3, 32, 32)),
    ]  # fmt: skip


@pytest.mark.parametrize("factor", FACTORS)
def test_a_level_as_wide_as_the_image_is_one_like_the_others(factor: int) -> None:
    """The kernel that makes the image is 3×3, those between levels are 1×1, whatever the width."""
    kernels = {}
    for width in (3, 4):
        layers = list(made(factor, width=width).decoder.layers)
        kernels[width] = [layer.kernel_size for layer in layers if isinstance(layer, nn.Conv2d)]
    assert kernels[3] == kernels[4] == [(3, 3), *[(1, 1)] * (factor // 4), (3, 3)]


@pytest.mark.parametrize(("encoder", "decoder"), [(1, 2), (2, 1), (3, 4)])
def test_blocks_are_those_of_a_level(encoder: int, decoder: int) -> None:
    model = made(encoder_blocks=encoder, decoder_blocks=decoder)
    for half, blocks in ((model.encoder, encoder), (model.decoder, decoder)):
        assert sum(type(layer).__name__ == "_Block" for layer in half.layers) == 2 * blocks


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("size", [30, 36, 33])
def test_an_image_that_cannot_be_halved_so_often(factor: int, size: int) -> None:
    if size % factor == 0:
        assert made(factor).encoder(images(1, size)).shape[-1] == size // factor
        return
    with pytest.raises(UsageError, match="cannot be halved"):
        made(factor).encoder(images(1, size))


@pytest.mark.parametrize(
    "changes", [{"factor": 2}, {"factor": 6}, {"latent_channels": 0}, {"width": 0}, {"noise": -0.1}, {"noise": float("nan")}]
)
def test_what_cannot_be_configured(changes: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match=next(iter(changes))):
        AutoencoderConfig.model_validate(changes)


# What is computed


@torch.no_grad()
def test_the_stem_is_pywavelets_on_the_image() -> None:
    """The first feature map: LL, LH, HL, HH of red, then of green, then of blue."""
    image = images()
    stem = made().encoder.layers[0]
    assert isinstance(stem, DWT2)
    for picture, subbands in zip(image.double().numpy(), stem(image), strict=True):
        for channel in range(3):
            cA, (cH, cV, cD) = pywt.dwt2(picture[channel], "haar", "periodization")
            np.testing.assert_allclose(subbands[4 * channel : 4 * channel + 4].numpy(), [cA, cH, cV, cD], atol=1e-6)


@torch.no_grad()
def test_the_last_layer_is_pywavelets_inverse() -> None:
    last = made().decoder.layers[-1]
    assert isinstance(last, IDWT2)
    subbands = torch.randn(1, 12, 8, 8, generator=torch.Generator().manual_seed(3))
    for channel, picture in enumerate(last(subbands)[0]):
        cA, cH, cV, cD = subbands[0, 4 * channel : 4 * channel + 4].double().numpy()
        np.testing.assert_allclose(picture.numpy(), pywt.idwt2((cA, (cH, cV, cD)), "haar", "periodization"), atol=1e-6)


@torch.no_grad()
def test_a_block_starts_as_the_identity_but_for_its_bias() -> None:
    """Of what a ReLU let through: depth does not slow the start."""
    torch.manual_seed(0)
    block = Autoencoder(AutoencoderConfig(width=8)).decoder.layers[2]
    x = torch.rand(1, 16, 4, 4)
    torch.testing.assert_close(block(x), torch.relu(x + block.conv2.bias[:, None, None]), rtol=0, atol=0)


@pytest.mark.parametrize("factor", FACTORS)
def test_it_has_no_norm_and_no_attention(factor: int) -> None:
    """Convolutions, fixed ones too, and ReLUs: what every phone runs and every quantizer takes."""
    leaves = {type(module) for module in made(factor).modules() if not list(module.children())}
    assert leaves == {nn.Conv2d, nn.ReLU, DWT2, IDWT2}


def test_haars_constants_are_in_no_file() -> None:
    model = made()
    half = 2 * 2  # mean and std of both halves
    assert len(model.state_dict()) == len(list(model.parameters())) + half


# Cost


def decoder_macs(config: AutoencoderConfig, size: int) -> int:
    """Multiply-accumulates of the decoder's convolutions for an image of `size`, counted on the meta device."""
    with torch.device("meta"):
        decoder = Autoencoder(config).decoder
    macs = 0

    def on_layer(module: nn.Module, inputs: tuple[torch.Tensor, ...], out: torch.Tensor) -> None:
        nonlocal macs
        assert isinstance(module, nn.Conv2d)
        macs += out.numel() * module.weight[0].numel()

    for module in decoder.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(on_layer)
    cells = size // config.factor
    decoder(torch.empty(1, config.latent_channels, cells, cells, device="meta"))
    return macs


def test_macs_by_hand() -> None:
    """Of the defaults at 64 px: 4 → 64 channels, two blocks at 16×16; 64 → 4·32, two blocks at 32×32; 32 → 4·3."""
    at16 = 9 * 4 * 64 + 4 * 9 * 64 * 64 + 64 * 128
    at32 = 4 * 9 * 32 * 32 + 9 * 32 * 12
    assert decoder_macs(AutoencoderConfig(), 64) == at16 * 16**2 + at32 * 32**2


def test_a_phone_decodes_at_the_price_of_a_few_denoising_steps() -> None:
    from edge_sd.models import PRESETS
    from edge_sd.models.count import count

    assert decoder_macs(AutoencoderConfig(), 64) < 2 * count(PRESETS["latent16"].config).macs
    assert decoder_macs(AutoencoderConfig(), 128) == 4 * decoder_macs(AutoencoderConfig(), 64)


# Standardising


def measured(model: Autoencoder, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    raw = model.encoder.raw(image).double()
    return raw.mean((0, 2, 3)), raw.std((0, 2, 3), correction=0)


@pytest.mark.parametrize("factor", FACTORS)
@torch.no_grad()
def test_standardised_latents_have_mean_0_and_deviation_1_and_the_same_images(factor: int) -> None:
    model, image = made(factor), images(4, 64)
    before, latent = model(image), model.encoder(image)
    mean, std = measured(model, image)
    assert mean.abs().max() > 0.01  # there was something to do
    assert (std - 1).abs().max() > 0.1
    model.standardise(mean.float(), std.float())
    after = model.encoder(image)
    torch.testing.assert_close(model(image), before, rtol=0, atol=1e-5)
    torch.testing.assert_close(model.encoder.raw(image), latent, rtol=0, atol=0)
    torch.testing.assert_close(after.mean((0, 2, 3)), torch.zeros(5), rtol=0, atol=1e-5)
    torch.testing.assert_close(after.std((0, 2, 3), correction=0), torch.ones(5), rtol=0, atol=1e-5)


@torch.no_grad()
def test_standardising_once_more_replaces_what_was_measured_before() -> None:
    model, image = made(), images(4)
    before = model(image)
    model.standardise(torch.full((5,), 3.0), torch.full((5,), 0.2))
    model.standardise(*(value.float() for value in measured(model, image)))
    torch.testing.assert_close(model(image), before, rtol=0, atol=1e-5)
    assert model.encoder(image).mean().abs() < 1e-5
    for name in ("mean", "std"):
        assert torch.equal(getattr(model.encoder, name), getattr(model.decoder, name))
