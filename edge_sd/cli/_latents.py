"""What the verbs that train share where a model denoises latents: the autoencoder, and the latents it makes."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from edge_sd.cli import _options as option

if TYPE_CHECKING:
    from edge_sd.data import ImageData
    from edge_sd.foreign import Foreign
    from edge_sd.latents import LatentData
    from edge_sd.models import ModelConfig

Autoencoder = Annotated[
    Path | None,
    typer.Option(
        "--autoencoder",
        help="Denoise its latents, not pixels: autoencoder.safetensors, a diffusers folder, or a shipped one: emoji64.",
    ),
]


def read_samples(
    values: Mapping[str, object], model: "ModelConfig", autoencoder: Path | None, teacher: "Foreign | None" = None
) -> "ImageData | LatentData":
    """Open the data that a verb's arguments name, as images or as latents, of the model's size.

    What the arguments alone show to be wrong is refused before an image is read: decoding and encoding may take hours.

    Args:
        teacher: whom the model will follow, if anyone.

    Raises:
        UsageError: latents of another number of channels than the model's, images with a margin, or a teacher of other samples.
    """
    from edge_sd.foreign import refuse_other_teacher

    if autoencoder is None:
        if teacher is not None:
            refuse_other_teacher(teacher, model.sample_shape, None)
        return option.read_data(values, model.image_size)
    from edge_sd.autoencoder import open_autoencoder
    from edge_sd.cli._console import progress, say
    from edge_sd.decoder import image_shape
    from edge_sd.errors import UsageError
    from edge_sd.latents import encode_data, refuse_margin
    from edge_sd.pretrained import autoencoder_path

    refuse_margin(cast(int, values["crop"]))
    codec = open_autoencoder(autoencoder_path(autoencoder))
    if codec.decoder.latent_channels != model.in_channels:
        raise UsageError(
            f"the autoencoder's latents have {codec.decoder.latent_channels} channels, the model takes {model.in_channels}",
            "a preset of as many channels: edge-sd list presets",
        )
    if teacher is not None:
        refuse_other_teacher(teacher, model.sample_shape, codec.decoder)
    images = option.read_data(values, image_shape(codec.decoder, model.sample_shape)[-1])
    with progress("encoding images") as update:
        latents = encode_data(images, codec, cast("Path | None", values["cache"]), lambda done, total: update(done, total, ""))
    header = latents.decoder.header
    if not codec.own:
        say(f"latents: scale {header.latent_scale:.4f} and shift {header.latent_shift:.4f}, measured on these images")
    return latents
