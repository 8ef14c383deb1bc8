"""What happens to a phone while it is talked to: a few kinds of steps, each a value, each once unless it says otherwise."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, TypeVar


@dataclass(frozen=True)
class Step:
    """Something that happens."""


@dataclass(frozen=True)
class During(Step):
    """Something that happens while files are pushed, or while a command runs.

    Attributes:
        sent: when so many bytes of pushed files have come.
        command: or when a command was started that has this in it,
        after: and so many seconds have passed.
    """

    sent: int | None = None
    command: str | None = None
    after: float = 0.3


@dataclass(frozen=True)
class Unplug(During):
    """The cable is pulled: connections break, and what runs there is hung up on.

    Attributes:
        back: seconds until it is plugged in again; None: never.
    """

    back: float | None = None


@dataclass(frozen=True)
class Stall(During):
    """The device goes on to hold the connection, and says nothing more in it."""


@dataclass(frozen=True)
class Kill(During):
    """The system takes the memory back: of the processes that the command started, the one with most of it gets SIGKILL."""


@dataclass(frozen=True)
class CutOutput(Step):
    """A command's stream ends early.

    Attributes:
        keep: bytes of its standard output that still come.
    """

    command: str
    keep: int


@dataclass(frozen=True)
class CutFile(Step):
    """A file that is pulled ends early, as if that were all of it; every time.

    Attributes:
        name: how its path ends.
        keep: bytes of it that come.
    """

    name: str
    keep: int


@dataclass(frozen=True)
class Slow(Step):
    """A slow link, in both directions, as long as the phone lives."""

    bytes_per_second: int


@dataclass(frozen=True)
class Throttle(Step):
    """The phone grows hot while a command runs that has `command` in it, and its processors slow down; it cools down afterwards.

    Attributes:
        celsius_per_second: of the thermal zone, from 30 °C up to 95 °C.
        limit: above this the frequency falls to a third, and the command's processes run a third of the time.
    """

    command: str
    celsius_per_second: float = 20.0
    limit: float = 60.0


@dataclass(frozen=True)
class Locked(Step):
    """Nobody has accepted this computer's key on the phone's screen yet.

    Attributes:
        accepted: seconds after which somebody does; None: never.
    """

    accepted: float | None = None


@dataclass(frozen=True)
class Silent(Step):
    """The phone takes connections and never greets: adb calls that offline."""


_KINDS: dict[str, type[Step]] = {
    kind.__name__: kind for kind in (Unplug, Stall, Kill, CutOutput, CutFile, Slow, Throttle, Locked, Silent)
}
S = TypeVar("S", bound=Step)


class Script:
    """The steps that have not happened yet."""

    def __init__(self, steps: list[Step]) -> None:
        self._steps = steps

    @classmethod
    def read(cls, steps: list[dict[str, Any]]) -> "Script":
        """What `written` wrote."""
        return cls([_KINDS[step.pop("kind")](**step) for step in steps])

    def all(self, kind: type[S]) -> Iterator[S]:
        """The steps of a kind that are still to come."""
        return (step for step in list(self._steps) if isinstance(step, kind))

    def first(self, kind: type[S]) -> S | None:
        """The first of them."""
        return next(self.all(kind), None)

    def done(self, step: Step) -> None:
        """It has happened."""
        self._steps.remove(step)

    def due(self, *, sent: int = -1, command: str = "") -> list[During]:
        """The steps that begin now, each of which is told once."""
        found = [
            step
            for step in self.all(During)
            if (step.sent is not None and sent >= step.sent) or (step.command is not None and step.command in command)
        ]
        for step in found:
            self.done(step)
        return found


def written(steps: tuple[Step, ...]) -> list[dict[str, Any]]:
    """Steps in a form for JSON."""
    return [{"kind": type(step).__name__, **asdict(step)} for step in steps]
