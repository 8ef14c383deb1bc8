"""Who is told how far long work is: nobody, unless the caller says otherwise. The command line tells the terminal."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

Update = Callable[[int, int, str], None]


class Observer:
    """Told of progress and of what a person ought to know; this one keeps it to itself, others override what they need."""

    def progress(self, label: str) -> AbstractContextManager[Update]:
        """Within it, the work called `label` goes on, and update(done, total, note) is called with how far it is."""
        return nullcontext(lambda done, total, note: None)

    def say(self, message: str) -> None:
        """A line for a person."""


SILENT = Observer()
