"""What the verbs that train share where a model denoises latents."""

from pathlib import Path
from typing import Annotated

import typer

Autoencoder = Annotated[
    Path | None,
    typer.Option(
        "--autoencoder",
        help="Denoise its latents, not pixels: autoencoder.safetensors, a diffusers folder, or a shipped one: emoji64.",
    ),
]
