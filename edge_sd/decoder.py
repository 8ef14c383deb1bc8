"""Latent decoders: what turns the latents of a denoiser into images.

They are our own (`models.autoencoder`) or diffusers' (AutoencoderTiny, AutoencoderKL, VQModel); only the weights between
latent and image are kept.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
from pydantic import Field, ValidationError, model_validator
from typing_extensions import Self

from edge_sd.errors import EdgeSDError, InstallationError
from edge_sd.files import fingerprint, read_tensors, tensors_digest, write_tensors
from edge_sd.quiet import quiet
from edge_sd.validation import Record, first_fault, validated

if TYPE_CHECKING:
    import torch

Architecture = Literal["edge-sd", "AutoencoderTiny", "AutoencoderKL", "VQModel"]
OWN: Literal["edge-sd"] = "edge-sd"  # `models.autoencoder.LatentDecoder`

# Where a configuration is silent, diffusers' own: (scaling_factor, latent_channels).
_DEFAULTS: dict[str, tuple[float, int]] = {"AutoencoderTiny": (1.0, 4), "AutoencoderKL": (0.18215, 4), "VQModel": (0.18215, 3)}
_KEPT = ("decoder.", "post_quant_conv.", "quantize.embedding.")
_ENCODER = ("encoder.", "quant_conv.")
# Setting → the values under which `decode` is what it is here.
_PLAIN: dict[str, tuple[Any, ...]] = {"latents_mean": (None,), "latents_std": (None,), "norm_type": ("group",)}


class DecoderHeader(Record):
    """The metadata of a decoder file."""

    schema_version: Literal[1] = 1
    kind: Literal["decoder"] = "decoder"
    architecture: Architecture
    config: dict[str, Any]  # settings of the whole autoencoder, diffusers' or our own
    latent_scale: float = Field(gt=0, allow_inf_nan=False)  # the denoiser's latent is (z − shift)·scale
    latent_shift: float = Field(allow_inf_nan=False)
    digest: str  # SHA-256 over the tensors

    @model_validator(mode="after")
    def _channels(self) -> Self:
        if not isinstance(self.latent_channels, int) or self.latent_channels < 1:
            raise ValueError(f"config has {self.latent_channels!r} latent channels")
        return self

    @property
    def latent_channels(self) -> int:
        """C of the latent that it takes."""
        default = _DEFAULTS[self.architecture][1] if self.architecture in _DEFAULTS else None
        return cast(int, self.config.get("vq_embed_dim") or self.config.get("latent_channels", default))


@dataclass(frozen=True)
class Decoder:
    """A decoder's weights (float32, named as in its class) and their header."""

    header: DecoderHeader
    weights: dict[str, np.ndarray] = field(repr=False)

    @property
    def latent_channels(self) -> int:
        """C of the latent that it takes."""
        return self.header.latent_channels

    def build(self) -> "torch.nn.Module":
        """Return the module in evaluation mode, on the CPU: latent (B, C, h, w) as the denoiser makes it → image (B, 3, H, W).

        Both are float32; the image's values are about −1 … 1.

        Raises:
            InstallationError: diffusers is not installed.
            EdgeSDError: the weights are not those of the configuration; the first that differs is named.
        """
        import torch

        module = _skeleton(self.header, "cpu" if self.header.architecture == OWN else "meta")
        expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
        found = {name: value.shape for name, value in self.weights.items()}
        for name in sorted(expected.keys() | found.keys()):
            if expected.get(name) != found.get(name):
                place = f"is {expected[name]}" if name in expected else "has no place"
                raise EdgeSDError(
                    f"weights do not fit the {self.header.architecture} of config.json: tensor {name} {place} there, "
                    f"and {f'is {found[name]}' if name in found else 'missing'} here",
                    "does config.json belong to these weights?",
                )
        module.load_state_dict({name: torch.from_numpy(value.copy()) for name, value in self.weights.items()}, assign=True)
        return module.eval()

    def save(self, path: Path) -> None:
        """Write the file, atomically."""
        write_tensors(path, self.weights, self.header)


def load_decoder(path: Path) -> Decoder:
    """Read a decoder from a file of ours, or from the diffusers folder of an autoencoder.

    Raises:
        EdgeSDError: missing, broken, changed since it was written, a pickle, or of a class or a setting that is not known here.
    """
    if path.is_dir():
        return _from_diffusers(path)[0]
    header, weights = read_tensors(DecoderHeader, path)
    if tensors_digest(weights) != header.digest:
        raise EdgeSDError(
            f"{path}: the weights have changed since they were written (their SHA-256 differs)", "copy or make the file again"
        )
    return Decoder(header, weights)


def latent_space(decoder: Decoder) -> str:
    """The name of the latents that it takes: 16 hex digits that stand for weights, scale and shift."""
    header = decoder.header
    return fingerprint({"decoder": header.digest, "scale": header.latent_scale, "shift": header.latent_shift})


def image_shape(decoder: Decoder, latent_shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """(C, h, w) of a latent → (3, H, W) of its image. Nothing is computed and no weights are needed.

    Raises:
        EdgeSDError: it is no latent of this decoder.
    """
    import torch

    if latent_shape[0] != decoder.latent_channels:
        raise EdgeSDError(
            f"the {decoder.header.architecture} takes {decoder.latent_channels} latent channels, these are {latent_shape[0]}",
            "give the decoder that the denoiser was trained with",
        )
    with torch.no_grad():
        image = _skeleton(decoder.header)(torch.empty(1, *latent_shape, device="meta"))
    return cast(tuple[int, int, int], tuple(image.shape[1:]))


def _from_diffusers(folder: Path) -> tuple[Decoder, dict[str, np.ndarray]]:
    """The decoder of a diffusers folder, and all tensors of the folder, the encoder's too."""
    from edge_sd.foreign.weights import CONFIG, class_of, read_json, read_weights  # here: that package imports this module

    source = folder / CONFIG
    config = read_json(source)
    architecture = class_of(config, source)
    if architecture not in _DEFAULTS:
        raise EdgeSDError(
            f"{source}: {architecture} is an autoencoder that has no counterpart here",
            f"those that have one: {', '.join(_DEFAULTS)}",
        )
    for key, plain in _PLAIN.items():
        if config.get(key, plain[0]) not in plain:
            raise EdgeSDError(
                f"{source}: {key} is {config[key]!r}, which is not decoded here", f"it can be {', '.join(map(repr, plain))}"
            )
    tensors = read_weights(folder)
    for name in tensors:
        if not name.startswith(_KEPT + _ENCODER):
            raise EdgeSDError(f"{folder} holds the tensor {name}, which is unknown", "does config.json belong to these weights?")
    weights = {name: value for name, value in tensors.items() if name.startswith(_KEPT)}
    header = _header(architecture, config, tensors_digest(weights), source)
    return Decoder(header, weights), tensors


def _header(architecture: str, config: Mapping[str, Any], digest: str, source: Path) -> DecoderHeader:
    scale, shift = config.get("scaling_factor"), config.get("shift_factor")
    values = {
        "architecture": architecture,
        "config": {name: value for name, value in config.items() if not name.startswith("_")},
        "latent_scale": _DEFAULTS[architecture][0] if scale is None else scale,
        "latent_shift": 0.0 if shift is None else shift,
        "digest": digest,
    }
    try:
        return DecoderHeader.model_validate(values)
    except ValidationError as error:
        raise EdgeSDError(f"{source}: {first_fault(error)}", "compare it with what diffusers writes for this class") from error


def _skeleton(header: DecoderHeader, device: str = "meta") -> "torch.nn.Module":
    """The module without its weights. One of ours has constants that no file brings: what is to run is not on meta."""
    import torch

    if header.architecture == OWN:
        from edge_sd.models.autoencoder import AutoencoderConfig
        from edge_sd.models.autoencoder import LatentDecoder as OwnDecoder

        with torch.device(device):
            return OwnDecoder(validated(AutoencoderConfig, header.config, "the decoder's configuration"))
    from edge_sd.models.latent import LatentDecoder

    whole = _diffusers_module(header)
    codebook = whole.quantize.embedding if header.architecture == "VQModel" else None
    conv = getattr(whole, "post_quant_conv", None)
    return LatentDecoder(whole.decoder, conv, codebook, header.latent_scale, header.latent_shift)


def _diffusers_module(header: DecoderHeader) -> Any:
    """The whole autoencoder without weights, on the meta device."""
    import torch

    try:
        with quiet():
            import diffusers
    except ImportError as error:
        raise InstallationError(
            f"the {header.architecture} needs diffusers, which is not installed", 'pip install "edge-sd[diffusers]"'
        ) from error
    try:
        with quiet(), torch.device("meta"):
            return getattr(diffusers, header.architecture).from_config(header.config)
    # What a constructor raises for a configuration that is wrong somewhere, whichever line stumbles over it; said, not hidden.
    except (TypeError, ValueError, AttributeError, RuntimeError, ArithmeticError, LookupError, NotImplementedError) as error:
        raise EdgeSDError(
            f"diffusers makes no {header.architecture} of this configuration: {error}", "compare it with what diffusers writes"
        ) from error


def load_foreign_autoencoder(folder: Path) -> "tuple[torch.nn.Module, Decoder]":
    """The whole autoencoder of a diffusers folder that `load_decoder` takes, in evaluation mode, and its decoder; read once.

    Raises:
        EdgeSDError: what `load_decoder` raises, or its weights are not those of its configuration.
    """
    import torch

    decoder, tensors = _from_diffusers(folder)
    module = _diffusers_module(decoder.header)
    try:
        module.load_state_dict({name: torch.from_numpy(value.copy()) for name, value in tensors.items()}, assign=True)
    except RuntimeError as error:
        raise EdgeSDError(f"{folder}: weights do not fit: {' '.join(str(error).split())}", "was it copied whole?") from error
    return cast("torch.nn.Module", module.eval()), decoder
