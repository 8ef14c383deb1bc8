"""Images as latents, computed once and kept on disk under the hash of images and autoencoder."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from edge_sd.autoencoder import Codec
from edge_sd.data import ImageData
from edge_sd.decoder import Decoder
from edge_sd.errors import EdgeSDError, UsageError
from edge_sd.files import fingerprint, read_tensors, write_tensors
from edge_sd.validation import Record

BATCH = 64


class LatentsHeader(Record):
    """The metadata of a file of latents: what they were made of, and the foreign autoencoder's measured scale."""

    schema_version: Literal[1] = 1
    kind: Literal["latents"] = "latents"
    data_digest: str
    autoencoder: str  # latent space of the autoencoder as it was given
    latent_scale: float
    latent_shift: float


@dataclass(frozen=True)
class LatentData:
    """Latents in memory.

    Attributes:
        latents: (N, 2, C, h, w) float16: of each image, and of its mirror image.
        digest: stands for images and autoencoder.
        about: where they come from, for a person.
        labels: (N,) int64, the images' classes, or None.
        decoder: the way back to images.
        latent_space: its name.
    """

    latents: NDArray[np.float16]
    digest: str
    about: str
    labels: NDArray[np.int64] | None
    decoder: Decoder
    latent_space: str

    def __len__(self) -> int:
        return len(self.latents)


def cache_folder() -> Path:
    """Where computed latents lie: $EDGE_SD_CACHE, or ~/.cache/edge-sd."""
    return Path(os.environ.get("EDGE_SD_CACHE") or Path.home() / ".cache" / "edge-sd")


def encode_data(
    data: ImageData,
    codec: Codec,
    cache: Path | None = None,
    observe: Callable[[int, int], None] = lambda done, total: None,
) -> LatentData:
    """Encode every image and its mirror image, or find that done.

    A foreign autoencoder's scale and shift are measured on these images, so that the latents have mean 0 and deviation 1,
    and go into the decoder; what its configuration says is not assumed.

    Raises:
        UsageError: the autoencoder does not take images of this size.
        EdgeSDError: a latent is not finite.
    """
    size = data.pixels.shape[-1]
    given = codec.latent_space
    path = (cache or cache_folder()) / f"latents-{fingerprint({'data': data.digest, 'autoencoder': given})[:32]}.safetensors"
    found = _cached(path, data.digest, given)
    if found is None:
        if not codec.own:
            codec = codec.rescaled(1.0, 0.0)
        latents = _encode(data, codec, observe)
        scale, shift = 1.0, 0.0
        if not codec.own:
            shift = float(latents.mean(dtype=np.float64))
            scale = 1 / float(latents.std(dtype=np.float64))
            latents = (latents - np.float32(shift)) * np.float32(scale)
        header = LatentsHeader(data_digest=data.digest, autoencoder=given, latent_scale=scale, latent_shift=shift)
        array = latents.astype(np.float16)
        if not np.isfinite(array).all():
            raise EdgeSDError("the autoencoder's latents are not finite", f"is it made for images of {size}×{size}?")
        write_tensors(path, {"latents": array}, header)
        found = header, array
    header, array = found
    decoder = codec.decoder if codec.own else codec.rescaled(header.latent_scale, header.latent_shift).decoder
    space = Codec(codec.encoder, decoder, codec.own).latent_space
    digest = fingerprint({"data": data.digest, "autoencoder": space})
    return LatentData(array, digest, f"{data.about}, as latents", getattr(data, "labels", None), decoder, space)


def _cached(path: Path, data_digest: str, autoencoder: str) -> tuple[LatentsHeader, NDArray[np.float16]] | None:
    if not path.exists():
        return None
    try:
        header, tensors = read_tensors(LatentsHeader, path)
    except EdgeSDError:  # by another version, or damaged: it can be made again
        return None
    latents = tensors.get("latents")
    if (header.data_digest, header.autoencoder) != (data_digest, autoencoder) or latents is None or latents.ndim != 5:
        return None
    return header, latents


def _encode(data: ImageData, codec: Codec, observe: Callable[[int, int], None]) -> NDArray[np.float32]:
    """(N, 2, C, h, w) float32."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    encoder = codec.encoder.to(device)
    parts = []
    for start in range(0, len(data), BATCH):
        images = torch.from_numpy(data.pixels[start : start + BATCH].astype(np.float32) / 127.5 - 1).to(device)
        try:
            with torch.inference_mode():
                pair = torch.stack([encoder(images), encoder(images.flip(-1))], 1)
        except RuntimeError as error:
            raise UsageError(
                f"the autoencoder does not take images of {tuple(images.shape[1:])}: {error}",
                "images of a multiple of its factor",
            ) from error
        parts.append(pair.float().cpu().numpy())
        observe(start + len(images), len(data))
    codec.encoder.to("cpu")
    return np.concatenate(parts)
