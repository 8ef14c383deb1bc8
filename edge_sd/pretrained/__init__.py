"""Models that come with the package, so that a newcomer can draw, export and measure before anything is trained."""

from collections.abc import Mapping
from pathlib import Path

_HERE = Path(__file__).parent
# Name → file. The card beside them says what they were trained on, how, and under which licence the data are.
SHIPPED = {
    "emoji64": _HERE / "emoji64" / "student.safetensors",
    "emoji64-teacher": _HERE / "emoji64" / "teacher.safetensors",
}
# Name → autoencoder of these models' latents, to train further ones in.
AUTOENCODERS = {"emoji64": _HERE / "emoji64" / "autoencoder.safetensors"}
DEFAULT = "emoji64"
CARD = _HERE / "emoji64" / "CARD.md"


def model_path(given: str | Path) -> Path:
    """The file of a shipped model, where that is its name and nothing in the current folder is called so; else the path given."""
    return _path(given, SHIPPED)


def autoencoder_path(given: str | Path) -> Path:
    """The file of a shipped autoencoder, likewise."""
    return _path(given, AUTOENCODERS)


def _path(given: str | Path, named: Mapping[str, Path]) -> Path:
    path = Path(given)
    return named[str(given)] if str(given) in named and not path.exists() else path
