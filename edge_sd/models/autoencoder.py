"""A tiny autoencoder for latent diffusion: images to a grid that is four or eight times coarser, and back.

Resampling is the Haar transform: on the way in the image's subbands are its first feature map, on the way out subbands are
predicted and transformed back, so fine texture has coefficients of its own. No norms: convolutions and ReLUs alone are what
every phone runs fast and every quantizer takes.
"""

from typing import Literal, cast

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from edge_sd.models.wavelets import DWT2, IDWT2, SUBBANDS
from edge_sd.validation import Record


class AutoencoderConfig(Record):
    """Configuration of an `Autoencoder`.

    Attributes:
        factor: how much coarser the latent is, height and width alike.
        width: channels at half the image's size; doubled at each level below.
        encoder_blocks, decoder_blocks: residual blocks a level. A phone runs the decoder alone.
        noise: standard deviation of what is added to the latent in training, in the latent's own units.
    """

    factor: Literal[4, 8] = 4
    latent_channels: PositiveInt = 4
    width: PositiveInt = 32
    encoder_blocks: PositiveInt = 1
    decoder_blocks: PositiveInt = 2
    noise: float = Field(default=0.1, ge=0, le=1)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of the levels, finest first."""
        return tuple(self.width * 2**level for level in range(self.factor.bit_length() - 1))


class _Block(nn.Module):
    """x + conv(ReLU(conv(x))), then ReLU: (B, C, h, w) → the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)  # the identity at first: depth does not slow the start

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + cast(Tensor, self.conv2(torch.relu(self.conv1(x)))))


class LatentEncoder(nn.Module):
    """(B, 3, H, W) in [−1, 1], H and W multiples of the factor → (B, C, H/f, W/f), each channel of mean 0 and deviation 1 over
    the training images: `mean` and `std` are measured when the training ends, not assumed."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width in config.widths:
            layers += [DWT2(channels), nn.Conv2d(channels * len(SUBBANDS), width, 3, padding=1), nn.ReLU()]
            layers += [_Block(width) for _ in range(config.encoder_blocks)]
            channels = width
        layers.append(nn.Conv2d(channels, config.latent_channels, 3, padding=1))
        self.layers = nn.Sequential(*layers)
        self.register_buffer("mean", torch.zeros(config.latent_channels))
        self.register_buffer("std", torch.ones(config.latent_channels))

    def raw(self, image: Tensor) -> Tensor:
        """The latent before it is standardised."""
        return cast(Tensor, self.layers(image))

    def forward(self, image: Tensor) -> Tensor:
        return (self.raw(image) - self.mean[:, None, None]) / self.std[:, None, None]


class LatentDecoder(nn.Module):
    """(B, C, h, w), as the encoder makes it → (B, 3, f·h, f·w), about −1 … 1."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        *finer, coarsest = config.widths
        layers: list[nn.Module] = [nn.Conv2d(config.latent_channels, coarsest, 3, padding=1), nn.ReLU()]
        channels = coarsest
        for width in reversed(finer):
            layers += [_Block(channels) for _ in range(config.decoder_blocks)]
            layers += [nn.Conv2d(channels, width * len(SUBBANDS), 1), IDWT2(width)]
            channels = width
        layers += [_Block(channels) for _ in range(config.decoder_blocks)]
        layers += [nn.Conv2d(channels, 3 * len(SUBBANDS), 3, padding=1), IDWT2(3)]
        self.layers = nn.Sequential(*layers)
        self.register_buffer("mean", torch.zeros(config.latent_channels))
        self.register_buffer("std", torch.ones(config.latent_channels))

    def raw(self, z: Tensor) -> Tensor:
        """Decode a latent that was not standardised."""
        return cast(Tensor, self.layers(z))

    def forward(self, latent: Tensor) -> Tensor:
        return self.raw(latent * self.std[:, None, None] + self.mean[:, None, None])


class Autoencoder(nn.Module):
    """Encoder and decoder; the second is what a bundle holds."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder, self.decoder = LatentEncoder(config), LatentDecoder(config)

    def forward(self, image: Tensor) -> Tensor:
        """Image → latent → image."""
        return cast(Tensor, self.decoder(self.encoder(image)))

    @torch.no_grad()
    def standardise(self, mean: Tensor, std: Tensor) -> None:
        """Set each channel's mean and standard deviation, (C,) each, std > 0, of the raw latents."""
        for half in (self.encoder, self.decoder):
            half.mean.copy_(mean)
            half.std.copy_(std)
