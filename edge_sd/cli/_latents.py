"""What the verbs that train share where a model denoises latents: the autoencoder, and the latents it makes."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from edge_sd.cli import _options as option

if TYPE_CHECKING:
    from edge_sd.data import ImageData
    from edge_sd.decoder import Decoder
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
    if autoencoder is None:
        _refuse_other_teacher(model, teacher, None)
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
    _refuse_other_teacher(model, teacher, codec.decoder)
    images = option.read_data(values, image_shape(codec.decoder, model.sample_shape)[-1])
    with progress("encoding images") as update:
        latents = encode_data(images, codec, cast("Path | None", values["cache"]), lambda done, total: update(done, total, ""))
    header = latents.decoder.header
    if not codec.own:
        say(f"latents: scale {header.latent_scale:.4f} and shift {header.latent_shift:.4f}, measured on these images")
    return latents


def _refuse_other_teacher(model: "ModelConfig", teacher: "Foreign | None", decoder: "Decoder | None") -> None:
    """Refuse a teacher of other samples, as far as that is known before a foreign autoencoder's scale is measured.

    Args:
        decoder: the autoencoder's; None where the samples are images.
    """
    from edge_sd.decoder import OWN, latent_space
    from edge_sd.errors import UsageError

    if teacher is None:
        return
    header = teacher.checkpoint.header
    theirs = header.provenance.parents.get("autoencoder")
    if decoder is None or theirs is None:
        other = decoder is not None or theirs is not None
    elif decoder.header.architecture == OWN:
        other = theirs != latent_space(decoder)
    else:  # of a foreign one, whose scale is not known yet, the weights can be compared where the teacher's decoder is there
        other = teacher.decoder is not None and teacher.decoder.header.digest != decoder.header.digest
    if other:
        denoises = "pixels" if theirs is None else f"latents ({theirs[:12]})"
        raise UsageError(
            f"the teacher was trained in another latent space: it denoises {denoises}, "
            f"not {'pixels' if decoder is None else 'these latents'}",
            "give --autoencoder as for the teacher, and the same images",
        )
    if header.model.sample_shape != model.sample_shape:
        raise UsageError(
            f"the teacher denoises {header.model.sample_shape}, the student {model.sample_shape}",
            "a preset of the teacher's size: edge-sd list presets",
        )
