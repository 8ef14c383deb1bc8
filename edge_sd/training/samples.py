"""What a learner draws its batches from: images, or latents that were computed once."""

from collections.abc import Mapping
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from edge_sd.data import ImageData, rgb, windows
from edge_sd.latents import LatentData


class Samples(Protocol):
    """Clean samples by their index."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one."""

    @property
    def digest(self) -> str:
        """Of all of them."""

    @property
    def about(self) -> str:
        """Where they come from, for a person."""

    @property
    def parents(self) -> Mapping[str, str]:
        """Role → digest of the weights that made them: {"autoencoder": …} for latents, else empty."""

    @property
    def labels(self) -> NDArray[np.int64] | None:
        """The class of each, where that was asked for."""

    def __len__(self) -> int: ...

    def take(self, indices: NDArray[np.int64], mirrored: NDArray[np.bool_], places: NDArray[np.float64]) -> NDArray[np.float32]:
        """(B, C, H, W) float32: the samples of `indices`, some mirrored, cut out at `places` (B, 2) in [0, 1) where there is a
        margin to cut in."""

    def pictures(self, samples: NDArray[np.floating]) -> NDArray[np.uint8]:
        """(B, C, H, W) of this kind → (B, height, width, 3)."""


class PixelSamples:
    """Images in [−1, 1]."""

    labels: NDArray[np.int64] | None
    parents: Mapping[str, str] = {}

    def __init__(self, data: ImageData) -> None:
        self._pixels, self.digest, self.about = data.pixels, data.digest, data.about
        self.labels, self._crop = data.labels, data.crop
        channels, height, width = data.pixels.shape[1:]
        self.shape = (channels, height - data.crop, width - data.crop)

    def __len__(self) -> int:
        return len(self._pixels)

    def take(self, indices: NDArray[np.int64], mirrored: NDArray[np.bool_], places: NDArray[np.float64]) -> NDArray[np.float32]:
        taken = self._pixels[indices]
        if self._crop:
            taken = windows(taken, (places * (self._crop + 1)).astype(np.int64), self.shape[-1])
        x0: NDArray[np.float32] = taken.astype(np.float32) / 127.5 - 1
        x0[mirrored] = x0[mirrored, ..., ::-1]
        return x0

    def pictures(self, samples: NDArray[np.floating]) -> NDArray[np.uint8]:
        return rgb(samples)


class LatentSamples:
    """Latents, each kept with that of its mirror image."""

    def __init__(self, data: LatentData) -> None:
        self._data = data
        self.digest, self.about, self.labels = data.digest, data.about, data.labels
        self.parents: Mapping[str, str] = {"autoencoder": data.latent_space}
        channels, height, width = data.latents.shape[2:]
        self.shape = (channels, height, width)

    def __len__(self) -> int:
        return len(self._data.latents)

    def take(self, indices: NDArray[np.int64], mirrored: NDArray[np.bool_], places: NDArray[np.float64]) -> NDArray[np.float32]:
        taken: NDArray[np.float32] = self._data.latents[indices, mirrored.astype(np.int64)].astype(np.float32)
        return taken

    @cached_property
    def _decoder(self) -> torch.nn.Module:
        return self._data.decoder.build()

    def pictures(self, samples: NDArray[np.floating]) -> NDArray[np.uint8]:
        with torch.inference_mode():
            images = self._decoder(torch.from_numpy(np.asarray(samples, np.float32)))
        return rgb(images.numpy())


def samples_of(data: ImageData | LatentData) -> Samples:
    """What to draw from, for either kind of data."""
    return LatentSamples(data) if isinstance(data, LatentData) else PixelSamples(data)
