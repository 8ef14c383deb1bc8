"""Where edge-sd keeps on this machine what it can make again: decoded images, builds, boards, its log."""

import os
from pathlib import Path


def home_cache() -> Path:
    """$XDG_CACHE_HOME/edge-sd where that is an absolute path, else ~/.cache/edge-sd."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if Path(base).is_absolute() else Path.home() / ".cache") / "edge-sd"
