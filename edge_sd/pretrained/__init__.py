"""Models that come with the package, so that a newcomer can draw, export and measure before anything is trained."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
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


@dataclass(frozen=True)
class Note:
    """What a bundle's card says of weights that come with the package; sentences from the card beside them."""

    data: str
    data_licence: str
    licence: str
    limits: str


_NOTE = Note(
    data="3,213 images of googlefonts/noto-emoji at commit b3e3051a0880, png/128, on white, at 64 px. Copyright Google.",
    data_licence="Apache-2.0 for most image resources, SIL Open Font License 1.1 for the repository as a whole; flags are public "
    "domain.",
    licence="Apache-2.0.",
    limits="About half of the samples are emoji that one recognises; the rest is coloured shapes with edges. The training images "
    "are few, so samples can come near to some.",
)


def note_of(digests: Collection[str]) -> Note | None:
    """The note of a shipped model, where one of the digests of weights is its; None of all other weights."""
    return _NOTE if _digests() & {*digests} else None


@cache
def _digests() -> frozenset[str]:
    """Of the weights that come with the package."""
    from edge_sd.checkpoint import CheckpointHeader
    from edge_sd.files import read_tensors

    return frozenset(read_tensors(CheckpointHeader, path)[0].digest for path in SHIPPED.values())


def model_path(given: str | Path) -> Path:
    """The file of a shipped model, where that is its name and nothing in the current folder is called so; else the path given."""
    return _path(given, SHIPPED)


def autoencoder_path(given: str | Path) -> Path:
    """The file of a shipped autoencoder, likewise."""
    return _path(given, AUTOENCODERS)


def _path(given: str | Path, named: Mapping[str, Path]) -> Path:
    path = Path(given)
    return named[str(given)] if str(given) in named and not path.exists() else path
