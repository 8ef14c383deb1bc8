"""Images as latents, computed once and kept on disk under the hash of images and autoencoder."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from edge_sd.autoencoder import Codec
from edge_sd.data import ImageData
from edge_sd.data.cache import cache_folder, locked
from edge_sd.decoder import Decoder, image_shape, latent_space
from edge_sd.errors import EdgeSDError, UsageError
from edge_sd.files import fingerprint, read_tensors, tensors_digest, write_tensors
from edge_sd.validation import Record

BATCH = 64


class LatentsHeader(Record):
    """The metadata of a file of latents: what they were made of, and the foreign autoencoder's measured scale."""

    schema_version: Literal[1] = 1
    kind: Literal["latents"] = "latents"
    data_digest: str
    autoencoder: str  # digest of the autoencoder as it was given
    latent_scale: float
    latent_shift: float
    digest: str  # SHA-256 over the tensors


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
        EdgeSDError: a latent is not finite, or all of them are the same.
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
    given, scale, shift = codec.digest, 1.0, 0.0
    if not codec.own:
        codec = codec.rescaled(scale, shift)
    latents = _encode(data, codec, observe)
    _refuse_odd(latents, codec, data.pixels.shape[-1])
    if not codec.own:
        shift, deviation = float(latents.mean(dtype=np.float64)), float(latents.std(dtype=np.float64))
        if not deviation:
            raise EdgeSDError(f"all latents of these images are {shift:g}", "are the images all of one colour?")
        scale = 1 / deviation
        latents = (latents - np.float32(shift)) * np.float32(scale)
    array = latents.astype(np.float16)
    header = LatentsHeader(
        data_digest=data.digest, autoencoder=given, latent_scale=scale, latent_shift=shift,
        digest=tensors_digest({"latents": array}),
    )  # fmt: skip
    write_tensors(path, {"latents": array}, header)
    return header, array


def _cached(path: Path, data_digest: str, autoencoder: str) -> tuple[LatentsHeader, NDArray[np.float16]] | None:
    if not path.exists():
        return None
    try:
        header, tensors = read_tensors(LatentsHeader, path)
    except EdgeSDError:  # by another version, or damaged: it can be made again
        return None
    if (header.data_digest, header.autoencoder) != (data_digest, autoencoder) or header.digest != tensors_digest(tensors):
        return None
    return header, tensors["latents"]


def _refuse_odd(latents: NDArray[np.float32], codec: Codec, size: int) -> None:
    """Refuse latents that are no numbers a float16 holds, or that another size of image would come back from."""
    if not np.isfinite(latents).all() or np.abs(latents).max() > np.finfo(np.float16).max:
        raise EdgeSDError("the autoencoder's latents are not finite", f"is it made for images of {size}×{size}?")
    channels, height, width = latents.shape[2:]
    *_, back = image_shape(codec.decoder, (channels, height, width))
    if back != size:
        raise UsageError(
            f"of images of {size} px come latents of {height}×{width}, and of these images of {back} px",
            f"images of {back} px, or of another multiple of {back // height}",
        )


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
