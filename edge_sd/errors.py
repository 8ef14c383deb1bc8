"""The errors that a user meets, and the exit codes that a script meets."""

from collections.abc import Iterable
from difflib import get_close_matches
from enum import IntEnum


class ExitCode(IntEnum):
    """What `edge-sd` returns to the shell."""

    OK = 0
    FAILURE = 1
    USAGE = 2
    PARITY = 3
    DEVICE = 4
    ENVIRONMENT = 5


class EdgeSDError(Exception):
    """Something the user can mend: `message` says what is wrong, with the numbers; `hint` says what to try."""

    code: ExitCode = ExitCode.FAILURE

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message, hint)  # both, so that it comes whole out of another process
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} (try: {self.hint})"


class UsageError(EdgeSDError):
    """An argument or a configuration that cannot be meant."""

    code = ExitCode.USAGE


def unknown(kind: str, name: str, known: Iterable[str], also: str = "") -> UsageError:
    """The error of a name that there is not, with the one that may be meant and all that there are.

    Args:
        also: what stands for several of them, at the end of the list: "or all".
    """
    names = list(known)
    near = get_close_matches(name.lower(), [each.lower() for each in names], 1, 0.6)
    meant = next((each for each in names if near and each.lower() == near[0]), None)
    listed = f"one of {', '.join(names)}{also and f', {also}'}"
    return UsageError(f"unknown {kind} {name!r}", listed if meant is None else f"{meant}? {listed}")


class ParityError(EdgeSDError):
    """An exported program that does not draw what the reference draws."""

    code = ExitCode.PARITY


class DeviceError(EdgeSDError):
    """A device that is not there, or went away."""

    code = ExitCode.DEVICE


class InstallationError(EdgeSDError):
    """A missing or broken piece of the installation."""

    code = ExitCode.ENVIRONMENT
