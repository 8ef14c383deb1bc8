"""The decoder of latent diffusion as one module: the denoiser's latent in, an image out."""

from typing import cast

import torch
from torch import Tensor, nn


class LatentDecoder(nn.Module):
    """Undoes the latent's scale and shift, quantizes it where there is a codebook (2112.10752's VQ models), and decodes.

    The names of its tensors are diffusers'.

    Args:
        decoder: (B, C, h, w) → (B, 3, H, W), about −1 … 1.
        codebook: (entries, C) vectors; each cell of the latent becomes the nearest.
    """

    def __init__(
        self, decoder: nn.Module, post_quant_conv: nn.Module | None, codebook: nn.Embedding | None, scale: float, shift: float
    ) -> None:
        super().__init__()
        self.scale, self.shift = scale, shift
        self.decoder = decoder
        self.post_quant_conv = post_quant_conv
        self.quantize = nn.ModuleDict({"embedding": codebook}) if codebook is not None else None

    def forward(self, latent: Tensor) -> Tensor:
        """latent (B, C, h, w), as the denoiser makes it → the image."""
        z = latent / self.scale + self.shift
        if self.quantize is not None:
            z = nearest(z, cast(nn.Embedding, self.quantize["embedding"]).weight)
        if self.post_quant_conv is not None:
            z = self.post_quant_conv(z)
        return cast(Tensor, self.decoder(z))


def nearest(z: Tensor, codebook: Tensor) -> Tensor:
    """z (B, C, h, w), codebook (N, C) → each cell's nearest vector, (B, C, h, w).

    ‖z − e‖² = ‖z‖² − 2·z·e + ‖e‖², whose first term is the same for all e; exporters take this, and not all of them cdist.
    """
    B, C, h, w = z.shape
    cells = z.permute(0, 2, 3, 1).reshape(-1, C)
    distances = codebook.square().sum(1) - 2 * (cells @ codebook.t())  # (B·h·w, N)
    found = nn.functional.embedding(torch.argmin(distances, dim=1), codebook)
    return found.view(B, h, w, C).permute(0, 3, 1, 2)
