"""Silence for libraries that report their own internals to the user's terminal."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

_LOG = logging.getLogger("edge_sd")
_LOG.addHandler(logging.NullHandler())  # where there is no log, nothing is said


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep a library's progress bars, notices and warnings off the terminal; exceptions come through.

    What it printed goes to the log, where there is one.
    """
    previous, printed = logging.root.manager.disable, io.StringIO()
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(printed), contextlib.redirect_stdout(printed):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)
        if text := printed.getvalue().strip():
            _LOG.warning("a library printed:\n%s", text)
