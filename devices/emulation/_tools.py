"""Programs that make the board: their words go to a log, and their failure is an error that names it."""

from collections.abc import Sequence
from pathlib import Path

from edge_sd.devices._process import listen
from edge_sd.errors import DeviceError, InstallationError

_PATIENCE = 300.0  # seconds without a word: a large package on a slow line


def run_tool(
    arguments: Sequence[str | Path],
    log: Path,
    *,
    hint: str = "read the log",
    environment: dict[str, str] | None = None,
    folder: Path | None = None,
) -> str:
    """Run a program to its end.

    Returns:
        What it printed on standard output.

    Raises:
        InstallationError: it is not there, fails or falls silent; the log and its last line are named.
    """
    words = [str(argument) for argument in arguments]
    try:
        done = listen(words, patience=_PATIENCE, environment=environment, folder=folder)
    except DeviceError as error:
        raise InstallationError(f"the board cannot be made: {error.message}", hint) from error
    said = done.out.decode(errors="replace")
    with log.open("a") as file:
        file.write(f"$ {words!r}\n{said}{done.err}\n")
    if done.status:
        last = (done.err.strip() or said.strip()).rpartition("\n")[2]
        raise InstallationError(f"the board cannot be made: {words[0]}: {last} (all of it: {log})", hint)
    return said
