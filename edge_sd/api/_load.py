"""Whatever edge-sd writes, read back and checked."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edge_sd.bundle import Bundle
    from edge_sd.quantize.checkpoint import Opened


def load(path: str | Path) -> "Bundle | Opened":
    """Read a bundle, or a checkpoint with the decoder that belongs to it.

    Args:
        path: NAME.edgesd; a checkpoint, quantized or not; a diffusers folder; or the name of a shipped model: emoji64.

    Returns:
        A `Bundle` of a bundle, else an `Opened`, whose `checkpoint.build()` is the model in torch.

    Raises:
        EdgeSDError: it is not there, is something else, or is damaged.
    """
    from edge_sd.bundle.bundle import is_bundle, open_bundle
    from edge_sd.pretrained import model_path
    from edge_sd.quantize.checkpoint import open_any

    found = model_path(path)
    return open_bundle(found) if is_bundle(found) else open_any(found)
