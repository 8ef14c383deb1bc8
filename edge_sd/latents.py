"""Images as latents, computed once and kept on disk under the hash of images and autoencoder."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from edge_sd.autoencoder import Codec
from edge_sd.data import ImageData
from edge_sd.data.cache import cache_folder, locked
from edge_sd.decoder import Decoder, image_shape, latent_space
from edge_sd.errors import EdgeSDError, UsageError
from edge_sd.files import fingerprint
from edge_sd.latent_file import LatentsHeader, read_latents, spooled, write_latents

BATCH = 64


@dataclass(frozen=True)
class LatentData:
    """Latents, mapped into memory: they come from the disk as they are used.

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


def encode_data(
    data: ImageData,
    codec: Codec,
    cache: Path | None = None,
    observe: Callable[[int, int], None] = lambda done, total: None,
) -> LatentData:
    """Encode every image and its mirror image, or find that done.

    A foreign autoencoder's scale and shift are measured on these images, so that the latents have mean 0 and deviation 1,
    and go into the decoder; what its configuration says is not assumed.

    Args:
        cache: folder of the file; $EDGE_SD_CACHE or ~/.cache/edge-sd if left out.

    Raises:
        UsageError: the autoencoder does not take images of this size, or they have a margin to crop.
        EdgeSDError: a latent is not finite, all of them are the same, memory does not hold one image's, or the cache's folder
            cannot be written.
    """
    refuse_margin(data.crop)
    given = codec.digest
    path = cache_folder(cache) / f"latents-{fingerprint({'data': data.digest, 'autoencoder': given})}.safetensors"
    found = _cached(path, data.digest, given)
    if found is None:
        with locked(path):  # of many processes on a machine one encodes
            found = _cached(path, data.digest, given) or _made(path, data, codec, observe)
    header, array = found
    decoder = codec.decoder if codec.own else codec.rescaled(header.latent_scale, header.latent_shift).decoder
    space = latent_space(decoder)
    digest = fingerprint({"data": data.digest, "autoencoder": given, "latent_space": space})
    return LatentData(array, digest, f"{data.about}, as latents", data.labels, decoder, space)


def refuse_margin(crop: int) -> None:
    """Refuse images that are read `crop` pixels larger, to be cut at random.

    Raises:
        UsageError: `crop` is not 0.
    """
    if crop:
        raise UsageError("windows cannot be cut at random out of images whose latents are kept", "leave --crop out")


def _made(
    path: Path, data: ImageData, codec: Codec, observe: Callable[[int, int], None]
) -> tuple[LatentsHeader, NDArray[np.float16]]:
    """Encode, measure a foreign autoencoder's scale, and write the file."""
    given = codec.digest
    if codec.own:
        header = LatentsHeader(data_digest=data.digest, autoencoder=given, latent_scale=1.0, latent_shift=0.0)
        write_latents(path, len(data), (batch.astype(np.float16) for batch in _encoded(data, codec, observe)), header)
    else:
        with spooled(path, _encoded(data, codec.rescaled(1.0, 0.0), observe)) as (shift, deviation, batches):
            if not deviation:
                raise EdgeSDError(f"all latents of these images are {shift:g}", "are the images all of one colour?")
            scale = 1 / deviation
            header = LatentsHeader(data_digest=data.digest, autoencoder=given, latent_scale=scale, latent_shift=shift)
            standardised = (((batch - np.float32(shift)) * np.float32(scale)).astype(np.float16) for batch in batches)
            write_latents(path, len(data), standardised, header)
    made = _cached(path, data.digest, given)
    if made is None:
        raise EdgeSDError(f"{path} is not what was written to it", "is its disk sound? give another folder by --cache")
    return made


def _cached(path: Path, data_digest: str, autoencoder: str) -> tuple[LatentsHeader, NDArray[np.float16]] | None:
    found = read_latents(path)
    return found if found and (found[0].data_digest, found[0].autoencoder) == (data_digest, autoencoder) else None


def _encoded(data: ImageData, codec: Codec, observe: Callable[[int, int], None]) -> Iterator[NDArray[np.float32]]:
    """Batches of (B, 2, C, h, w) float32, smaller ones where memory does not hold more."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    codec.encoder.to(device)
    start, size = 0, BATCH
    try:
        while start < len(data):
            pixels = data.pixels[start : start + size]
            try:
                batch = _pairs(codec, pixels, device)
            except RuntimeError as error:
                if _out_of_memory(error) and size > 1:
                    size //= 2
                    continue
                if _out_of_memory(error):
                    raise EdgeSDError(
                        f"encoding one image of {tuple(pixels.shape[1:])} takes more memory than {device} has free: {error}",
                        "end what else uses it, or smaller images",
                    ) from error
                if start:  # all images are of one size: it is not that
                    raise
                raise UsageError(
                    f"the autoencoder does not take images of {tuple(pixels.shape[1:])}: {error}",
                    "images of a multiple of its factor",
                ) from error
            _refuse_odd(batch, pixels.shape[-1])
            if not start:
                _refuse_other_size(batch, codec, pixels.shape[-1])
            yield batch
            start += len(pixels)
            observe(start, len(data))
    finally:
        codec.encoder.to("cpu")


def _pairs(codec: Codec, pixels: NDArray[np.uint8], device: torch.device) -> NDArray[np.float32]:
    """(B, 3, H, W) → (B, 2, C, h, w): the latents of images and of their mirror images."""
    images = torch.from_numpy(pixels.astype(np.float32) / 127.5 - 1).to(device)
    with torch.inference_mode():
        pair = torch.stack([codec.encoder(images), codec.encoder(images.flip(-1))], 1)
    latents: NDArray[np.float32] = pair.float().cpu().numpy()
    return latents


def _out_of_memory(error: RuntimeError) -> bool:
    """An accelerator's error has a type of its own; that of the CPU's allocator has its name only."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def _refuse_odd(latents: NDArray[np.float32], size: int) -> None:
    """Refuse latents that are no numbers a float16 holds."""
    if not np.isfinite(latents).all() or np.abs(latents).max() > np.finfo(np.float16).max:
        raise EdgeSDError("the autoencoder's latents are not finite", f"is it made for images of {size}×{size}?")


def _refuse_other_size(latents: NDArray[np.float32], codec: Codec, size: int) -> None:
    """Refuse latents that another size of image would come back from."""
    channels, height, width = latents.shape[2:]
    *_, back = image_shape(codec.decoder, (channels, height, width))
    if back != size:
        raise UsageError(
            f"of images of {size} px come latents of {height}×{width}, and of these images of {back} px",
            f"images of {back} px, or of another multiple of {back // height}",
        )
