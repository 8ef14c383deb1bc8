"""The full log, in a file: what libraries say of themselves is not the user's business until something goes wrong."""

import logging
import os
from pathlib import Path

from edge_sd.places import home_cache

VARIABLE = "EDGE_SD_LOG"
_MOST_BYTES = 2**20  # then the file is begun anew, the last one kept beside it


def log_file() -> Path:
    """$EDGE_SD_LOG, else edge-sd.log in the cache."""
    return Path(os.environ.get(VARIABLE) or home_cache() / "edge-sd.log")


def log_to_file() -> None:
    """Send all log records and warnings of this process to `log_file`, and none to the terminal."""
    from logging.handlers import RotatingFileHandler

    root = logging.getLogger()
    if any(handler.get_name() == VARIABLE for handler in root.handlers):
        return
    path = log_file()
    handler: logging.Handler
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = RotatingFileHandler(path, maxBytes=_MOST_BYTES, backupCount=1, encoding="utf-8")
    except OSError:  # a home that cannot be written to is no reason to stop
        handler = logging.NullHandler()
    handler.set_name(VARIABLE)
    handler.setFormatter(logging.Formatter("%(asctime)s %(process)d %(levelname)s %(name)s: %(message)s"))
    root.addHandler(handler)
    logging.getLogger("edge_sd").setLevel(logging.INFO)
    logging.captureWarnings(True)
