"""A diffusers folder → a checkpoint and, for latent diffusion, its decoder.

Read are the folder of a UNet2DModel and those of DDPMPipeline, DDIMPipeline, PNDMPipeline and LDMPipeline. As in diffusers, a
component that has no folder of its own lies in the pipeline's (what the first pipelines on the Hub look like).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_sd.checkpoint import Checkpoint, CheckpointHeader, Provenance, load_checkpoint, versions
from edge_sd.decoder import OWN, Decoder, latent_space, load_decoder
from edge_sd.diffusion.plan import Prediction
from edge_sd.diffusion.schedule import NoiseSchedule
from edge_sd.errors import EdgeSDError, UsageError
from edge_sd.files import tensors_digest
from edge_sd.foreign.mapping import map_weights
from edge_sd.foreign.schedule import read_schedule
from edge_sd.foreign.unet import read_unet_config
from edge_sd.foreign.weights import CONFIG, class_of, read_json, read_weights

_INDEX, _SCHEDULER = "model_index.json", "scheduler_config.json"
# Pipeline → its components.
_PIPELINES = {
    "DDPMPipeline": ("unet", "scheduler"),
    "DDIMPipeline": ("unet", "scheduler"),
    "PNDMPipeline": ("unet", "scheduler"),
    "LDMPipeline": ("unet", "scheduler", "vqvae"),
}


@dataclass(frozen=True)
class Foreign:
    """A model that was trained elsewhere.

    Attributes:
        checkpoint: the denoiser, as if it had been trained here; `provenance.settings` say what it was read from.
        decoder: its latents → images; None for a model of pixels.
    """

    checkpoint: Checkpoint
    decoder: Decoder | None


def load_foreign(path: Path) -> Foreign:
    """Read a folder that diffusers wrote. Nothing of it is run, and diffusers need not be installed.

    A folder without a scheduler gets the defaults of DDPMScheduler (linear β, ε-prediction); `provenance.settings` say so.

    Raises:
        EdgeSDError: something in it has no counterpart here, is missing, broken or a pickle; it is named.
    """
    if not path.is_dir():
        raise EdgeSDError(f"{path} is not a folder" if path.exists() else f"{path} does not exist", "give a diffusers folder")
    settings: dict[str, Any] = {}
    decoder = None
    if (path / _INDEX).is_file():
        pipeline = class_of(read_json(path / _INDEX), path / _INDEX)
        if pipeline not in _PIPELINES:
            raise EdgeSDError(
                f"{path / _INDEX}: {pipeline} has no counterpart here", f"those that have one: {', '.join(_PIPELINES)}"
            )
        settings["pipeline"] = pipeline
        if "vqvae" in _PIPELINES[pipeline]:
            decoder = load_decoder(_component(path, "vqvae"))
    noise_schedule, prediction, scheduler = _schedule_of(_component(path, "scheduler") / _SCHEDULER, settings)
    checkpoint = _checkpoint_of(_component(path, "unet"), noise_schedule, prediction, {**settings, **scheduler})
    channels = checkpoint.header.model.in_channels
    if decoder is not None and decoder.latent_channels != channels:
        raise EdgeSDError(
            f"{path}: the denoiser makes {channels} channels, its {decoder.header.architecture} takes {decoder.latent_channels}",
            "are its parts from different pipelines?",
        )
    return Foreign(checkpoint, decoder)


def open_model(path: Path) -> Foreign:
    """Read a checkpoint of ours (a file) or a folder that diffusers wrote; see `load_checkpoint` and `load_foreign`.

    Beside a checkpoint of latents lies their decoder, decoder.safetensors; without it `decoder` is None.

    Raises:
        EdgeSDError: that decoder is of another latent space.
    """
    if path.is_dir():
        return load_foreign(path)
    checkpoint, beside = load_checkpoint(path), path.with_name("decoder.safetensors")
    if "autoencoder" not in checkpoint.header.provenance.parents or not beside.exists():
        return Foreign(checkpoint, None)
    decoder = load_decoder(beside)
    refuse_other_latents(checkpoint, decoder)
    return Foreign(checkpoint, decoder)


def refuse_missing_decoder(model: Foreign, path: Path) -> None:
    """Refuse a denoiser of latents that nothing here decodes.

    Raises:
        EdgeSDError: `open_model` found no decoder beside the checkpoint at `path`.
    """
    if model.decoder is None and "autoencoder" in model.checkpoint.header.provenance.parents:
        raise EdgeSDError(
            f"{path} denoises latents, and decoder.safetensors is not beside it", "put it there; training left one in its folder"
        )


def refuse_other_latents(checkpoint: Checkpoint, decoder: Decoder) -> None:
    """Refuse a decoder that does not belong to the latents that a denoiser was trained on, where the checkpoint names them.

    Raises:
        EdgeSDError: it does not.
    """
    provenance = checkpoint.header.provenance
    trained_on = provenance.parents.get("autoencoder")
    if trained_on is None and provenance.made_by in ("train", "distill"):
        raise EdgeSDError("the denoiser was trained on pixels, and a decoder takes latents", "leave the decoder out")
    if trained_on is not None and trained_on != (given := latent_space(decoder)):
        raise EdgeSDError(
            f"the denoiser was trained on latents {trained_on[:12]}, the decoder takes {given[:12]}",
            "give the decoder.safetensors that lies beside the checkpoint",
        )


def refuse_other_teacher(teacher: Foreign, sample_shape: tuple[int, int, int], decoder: Decoder | None) -> None:
    """Refuse a teacher of other samples, as far as that is known before a foreign autoencoder's scale is measured.

    Args:
        sample_shape: (C, H, W) of what the student denoises.
        decoder: of the autoencoder that makes it; None where the samples are images.

    Raises:
        UsageError: it was trained on other latents, on pixels in place of latents or the reverse, or on another shape.
    """
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
    if header.model.sample_shape != sample_shape:
        raise UsageError(
            f"the teacher denoises {header.model.sample_shape}, the student {sample_shape}",
            "a preset of the teacher's size: edge-sd list presets",
        )


def _component(path: Path, name: str) -> Path:
    return path / name if (path / name).is_dir() else path


def _schedule_of(path: Path, settings: dict[str, Any]) -> tuple[NoiseSchedule, Prediction, dict[str, Any]]:
    """The schedule, the prediction, and what the provenance says of them."""
    if path.is_file():
        values = read_json(path)
        return *read_schedule(values, path), {"scheduler": values}
    if "pipeline" in settings:
        raise EdgeSDError(f"{path} does not exist", "was the folder copied whole?")
    return NoiseSchedule(), "epsilon", {"scheduler": "none in the folder; assumed: DDPMScheduler's defaults, linear, epsilon"}


def _checkpoint_of(folder: Path, noise_schedule: NoiseSchedule, prediction: Prediction, settings: dict[str, Any]) -> Checkpoint:
    values, source = read_json(folder / CONFIG), folder / CONFIG
    if (name := class_of(values, source)) != "UNet2DModel":
        raise EdgeSDError(f"{source}: {name} has no counterpart here", "give the folder of a UNet2DModel or of its pipeline")
    theirs, config = read_unet_config(values, source)
    weights = map_weights(read_weights(folder), theirs, config, folder)
    header = CheckpointHeader(
        model=config,
        noise_schedule=noise_schedule,
        prediction=prediction,
        provenance=Provenance(made_by="import", settings={"class": name, **settings}, versions=versions()),
        digest=tensors_digest(weights),
    )
    return Checkpoint(header, weights)
