"""Images for the verbs that learn or compare: read, and made latents where a model denoises those."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from edge_sd.api.observer import Observer
from edge_sd.api.settings import pick
from edge_sd.data import DataConfig, ImageData, open_data
from edge_sd.errors import UsageError
from edge_sd.foreign import Foreign, refuse_other_teacher
from edge_sd.models import ModelConfig

if TYPE_CHECKING:
    from edge_sd.latents import LatentData

_NAMED = 50  # of the images that were left out


def image_settings(values: Mapping[str, object]) -> DataConfig:
    """What a verb's arguments say of its images; not its seed, which is of the training.

    Args:
        values: the source as "source", or as "data", and others of `DataConfig`'s fields by their names.
    """
    given = {name: value for name, value in values.items() if name != "seed"}
    return pick(DataConfig, {"source": values.get("data"), **given}, "data")


def read_images(config: DataConfig, size: int, observer: Observer) -> ImageData:
    """Open a data source, and say what had to be left out.

    Args:
        size: height and width in pixels that a model takes; a margin for random windows comes on top.
    """
    # What torchrun and accelerate tell the processes that they start: of a machine's one decodes, and one speaks.
    processes = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("WORLD_SIZE") or 1)
    speaks = os.environ.get("RANK", "0") == "0"
    with observer.progress("reading images") as update:

        def observe(done: int, total: int) -> None:
            update(done, total or done + 1, "" if total else "of unknown many")

        data = open_data(config, size, observe, processes=processes)
    for skip in data.skipped[:_NAMED] if speaks else ():
        observer.say(f"left out: {skip}")
    if data.skipped and speaks:
        more = f", the first {_NAMED} named above" if len(data.skipped) > _NAMED else ""
        observer.say(f"left out {len(data.skipped)} of {len(data) + len(data.skipped)} images{more}")
    return data


def read_samples(
    config: DataConfig, model: ModelConfig, autoencoder: Path | None, observer: Observer, teacher: Foreign | None = None
) -> "ImageData | LatentData":
    """Open a data source as what a model denoises: images, or latents of an autoencoder, of the model's size.

    What the arguments alone show to be wrong is refused before an image is read: decoding and encoding may take hours.

    Args:
        autoencoder: file, diffusers folder or shipped one; None for images.
        teacher: whom the model will follow, if anyone.

    Raises:
        UsageError: latents of another number of channels than the model's, images with a margin, or a teacher of other samples.
    """
    if autoencoder is None:
        if teacher is not None:
            refuse_other_teacher(teacher, model.sample_shape, None)
        return read_images(config, model.image_size, observer)
    from edge_sd.autoencoder import open_autoencoder
    from edge_sd.decoder import image_shape
    from edge_sd.latents import encode_data, refuse_margin
    from edge_sd.pretrained import autoencoder_path

    refuse_margin(config.crop)
    codec = open_autoencoder(autoencoder_path(autoencoder))
    if codec.decoder.latent_channels != model.in_channels:
        raise UsageError(
            f"the autoencoder's latents have {codec.decoder.latent_channels} channels, the model takes {model.in_channels}",
            "a preset of as many channels: edge-sd list presets",
        )
    if teacher is not None:
        refuse_other_teacher(teacher, model.sample_shape, codec.decoder)
    images = read_images(config, image_shape(codec.decoder, model.sample_shape)[-1], observer)
    with observer.progress("encoding images") as update:
        latents = encode_data(images, codec, config.cache, lambda done, total: update(done, total, ""))
    header = latents.decoder.header
    if not codec.own:
        observer.say(f"latents: scale {header.latent_scale:.4f} and shift {header.latent_shift:.4f}, measured on these images")
    return latents
