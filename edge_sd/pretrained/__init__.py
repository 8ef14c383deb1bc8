"""Models that come with the package, so that a newcomer can draw, export and measure before anything is trained."""

from pathlib import Path

_HERE = Path(__file__).parent
# Name → file. The card beside them says what they were trained on, how, and under which licence the data are.
SHIPPED = {
    "emoji64": _HERE / "emoji64" / "student.safetensors",
    "emoji64-teacher": _HERE / "emoji64" / "teacher.safetensors",
}
DEFAULT = "emoji64"
CARD = _HERE / "emoji64" / "CARD.md"


def model_path(given: str | Path) -> Path:
    """The file of a shipped model, where that is its name and nothing in the current folder is called so; else the path given."""
    path = Path(given)
    return SHIPPED[str(given)] if str(given) in SHIPPED and not path.exists() else path
