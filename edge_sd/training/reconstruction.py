"""Training an autoencoder: images come back, texture counts, and the latent stands a little noise."""

from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edge_sd.autoencoder import AutoencoderFile, load_autoencoder
from edge_sd.checkpoint import Provenance
from edge_sd.models.autoencoder import Autoencoder, _Block
from edge_sd.models.wavelets import SUBBANDS, dwt2
from edge_sd.training.batches import draw_images
from edge_sd.training.config import TrainConfig
from edge_sd.training.learner import PREVIEWS, Learner
from edge_sd.training.samples import Samples

LEVELS = 2  # of the Haar transform whose details are compared
LATENT_WEIGHT = 1e-3
_MEASURED = 64  # images a pass when the latent's mean and deviation are measured


class AutoencoderLearner(Learner):
    """L = |x − x̂| + Σ_levels |details(x) − details(x̂)| + 1e-3·mean z²; the decoder sees z + noise.

    Absolute differences, of pixels and of Haar coefficients (LH, HL, HH of two levels), keep edges where a square would blur.
    Noise of a fixed deviation with a penalty on z² is a VAE whose posterior's variance is not learnt (1903.12436): the
    denoiser's small errors then cost little in the image.
    """

    result_name = "autoencoder.safetensors"
    units = (_Block,)

    def __init__(self, model: Autoencoder) -> None:
        super().__init__()
        self.model: Autoencoder = model

    def settings(self) -> dict[str, Any]:
        return {"model": self.model.config.model_dump(mode="json")}

    def draw(self, samples: Samples, config: TrainConfig, step: int, share: slice) -> tuple[Tensor, ...]:
        _, height, width = samples.shape
        factor = self.model.config.factor
        latent = (self.model.config.latent_channels, height // factor, width // factor)
        return draw_images(samples, latent, config, step, share)

    def forward(self, image: Tensor, noise: Tensor) -> dict[str, Tensor]:
        """image (B, 3, H, W) in [−1, 1], noise (B, C, h, w) of deviation 1."""
        z = self.model.encoder.raw(image)
        out = self.model.decoder.raw(z + self.model.config.noise * noise).float()
        terms = {"pixels": (out - image).abs().mean()}
        difference = out - image
        details = []
        for _ in range(LEVELS):
            subbands = dwt2(difference).unflatten(1, (-1, len(SUBBANDS)))
            details.append(subbands[:, :, 1:].abs().mean())
            difference = subbands[:, :, 0] / 2  # the mean of 2×2 pixels: in their units again
        return {**terms, "details": torch.stack(details).sum(), "latent": LATENT_WEIGHT * z.float().square().mean()}

    @torch.inference_mode()
    def finish(self, model: nn.Module, samples: Samples, provenance: Provenance) -> AutoencoderFile:
        """Measures mean and deviation of each latent channel over all training images."""
        autoencoder = cast(Autoencoder, model)
        device = next(model.parameters()).device
        sums = torch.zeros(2, autoencoder.config.latent_channels, dtype=torch.float64)
        cells = 0
        for start in range(0, len(samples), _MEASURED):
            indices = np.arange(start, min(start + _MEASURED, len(samples)))
            images = samples.take(indices, np.zeros(len(indices), bool), np.full((len(indices), 2), 0.5))
            z = autoencoder.encoder.raw(torch.from_numpy(images).to(device)).double().cpu()
            sums += torch.stack([z.sum((0, 2, 3)), z.square().sum((0, 2, 3))])
            cells += z.numel() // z.shape[1]
        mean = sums[0] / cells
        std = (sums[1] / cells - mean.square()).clamp_min(1e-12).sqrt()
        autoencoder.standardise(mean.float(), std.float())
        return AutoencoderFile.of(autoencoder, provenance)

    def load(self, path: Path) -> AutoencoderFile:
        return load_autoencoder(path)

    @torch.inference_mode()
    def preview(self, model: nn.Module, samples: Samples, seed: int) -> NDArray[np.uint8]:
        """Images, and below each row what came back."""
        autoencoder = cast(Autoencoder, model)
        indices = np.arange(PREVIEWS // 2) % len(samples)  # always as many, so that a grid's rows are those
        images = samples.take(indices, np.zeros(len(indices), bool), np.full((len(indices), 2), 0.5))
        device = next(model.parameters()).device
        back = autoencoder.decoder.raw(autoencoder.encoder.raw(torch.from_numpy(images).to(device))).cpu().numpy()
        half = PREVIEWS // 4
        rows = [part[start : start + half] for start in range(0, len(images), half) for part in (images, back)]
        return samples.pictures(np.concatenate(rows))
