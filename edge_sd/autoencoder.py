"""The autoencoder of latent diffusion: a file of ours, or a diffusers folder, as an encoder and the `Decoder` of a bundle.

A denoiser's latents are those that a decoder takes: `latent_space` names them, and whoever joins a denoiser, latents and a
decoder compares these names. Another encoder may fill the same space with other latents: `Codec.digest` stands for both halves.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from edge_sd.checkpoint import Provenance
from edge_sd.decoder import OWN, Decoder, DecoderHeader, latent_space, load_foreign_autoencoder
from edge_sd.errors import EdgeSDError
from edge_sd.files import fingerprint, read_tensors, tensors_digest, write_tensors
from edge_sd.models.autoencoder import Autoencoder, AutoencoderConfig
from edge_sd.validation import Record


class AutoencoderHeader(Record):
    """The metadata of an autoencoder file."""

    schema_version: Literal[1] = 1
    kind: Literal["autoencoder"] = "autoencoder"
    model: AutoencoderConfig
    provenance: Provenance
    digest: str  # SHA-256 over the tensors


@dataclass(frozen=True)
class AutoencoderFile:
    """EMA weights (float32) of an `Autoencoder` and their header."""

    header: AutoencoderHeader
    weights: dict[str, np.ndarray] = field(repr=False)

    @classmethod
    def of(cls, model: Autoencoder, provenance: Provenance) -> "AutoencoderFile":
        """Take a model's weights, the measured mean and deviation of its latents among them."""
        weights = {name: tensor.detach().float().cpu().numpy().copy() for name, tensor in model.state_dict().items()}
        return cls(AutoencoderHeader(model=model.config, provenance=provenance, digest=tensors_digest(weights)), weights)

    def build(self) -> Autoencoder:
        """Return the model in evaluation mode, on the CPU.

        Raises:
            EdgeSDError: the weights are not those of the configuration; the first that differs is named.
        """
        model = Autoencoder(self.header.model)
        expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        found = {name: value.shape for name, value in self.weights.items()}
        for name in sorted(expected.keys() | found.keys()):
            if expected.get(name) != found.get(name):
                raise EdgeSDError(
                    f"weights do not fit the autoencoder: {name} is {found.get(name)}, expected {expected.get(name)}",
                    "give a file that edge-sd wrote",
                )
        model.load_state_dict({name: torch.from_numpy(value) for name, value in self.weights.items()})
        return model.eval()

    def decoder(self) -> Decoder:
        """The half that a bundle holds."""
        weights = {name.removeprefix("decoder."): value for name, value in self.weights.items() if name.startswith("decoder.")}
        config = self.header.model.model_dump(mode="json")
        header = DecoderHeader(
            architecture=OWN, config=config, latent_scale=1.0, latent_shift=0.0, digest=tensors_digest(weights)
        )
        return Decoder(header, weights)

    def save(self, path: Path) -> None:
        """Write the file, atomically."""
        write_tensors(path, self.weights, self.header)


def load_autoencoder(path: Path) -> AutoencoderFile:
    """Read an autoencoder of ours.

    Raises:
        EdgeSDError: missing, truncated, foreign, not finite, or changed since it was written.
    """
    header, weights = read_tensors(AutoencoderHeader, path)
    if tensors_digest(weights) != header.digest:
        raise EdgeSDError(
            f"{path}: the weights have changed since they were written (their SHA-256 differs)", "copy or make the file again"
        )
    return AutoencoderFile(header, weights)


class _ForeignEncoder(nn.Module):
    """A diffusers autoencoder's way in: image in [−1, 1] → (z − shift)·scale, the posterior's mean where there is one."""

    def __init__(self, module: Any, scale: float, shift: float) -> None:
        super().__init__()
        self.module, self.scale, self.shift = module, scale, shift

    def forward(self, image: Tensor) -> Tensor:
        encoded = self.module.encode(image)
        z = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded[0]
        return cast(Tensor, (z - self.shift) * self.scale)


@dataclass(frozen=True)
class Codec:
    """Both ways between images and latents.

    Attributes:
        encoder: (B, 3, H, W) in [−1, 1] → (B, C, H/f, W/f), in evaluation mode.
        decoder: the way back, as a bundle takes it.
        own: an autoencoder of ours, whose latents are standardised; a foreign one's scale is measured on the data.
    """

    encoder: nn.Module
    decoder: Decoder
    own: bool

    @property
    def latent_space(self) -> str:
        """Its name; see `decoder.latent_space`."""
        return latent_space(self.decoder)

    @property
    def digest(self) -> str:
        """Stands for what it makes of an image: the encoder's weights, and the decoder's with scale and shift; 16 hex digits."""
        weights = {name: tensor.detach().cpu().numpy() for name, tensor in self.encoder.state_dict().items()}
        return fingerprint({"encoder": tensors_digest(weights), "latent_space": self.latent_space})

    def rescaled(self, scale: float, shift: float) -> "Codec":
        """The same with another scale and shift of the latent: (z − shift)·scale."""
        header = self.decoder.header.model_copy(update={"latent_scale": scale, "latent_shift": shift})
        encoder = _ForeignEncoder(cast(_ForeignEncoder, self.encoder).module, scale, shift)
        return replace(self, encoder=encoder.eval(), decoder=Decoder(header, self.decoder.weights))


def open_autoencoder(path: Path) -> Codec:
    """Read a file of ours (autoencoder.safetensors) or the diffusers folder of an AutoencoderTiny, AutoencoderKL or VQModel.

    Raises:
        EdgeSDError: missing, broken, changed, a pickle, or of a class that is not known here.
        InstallationError: a folder, and diffusers is not installed.
    """
    if path.is_dir():
        module, decoder = load_foreign_autoencoder(path)
        encoder = _ForeignEncoder(module, decoder.header.latent_scale, decoder.header.latent_shift)
        return Codec(encoder.eval().requires_grad_(False), decoder, own=False)
    file = load_autoencoder(path)
    return Codec(file.build().encoder.requires_grad_(False), file.decoder(), own=True)
