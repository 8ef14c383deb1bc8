"""The terminal: progress that is a bar for people and a line now and then for log files."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

from edge_sd.api.observer import Observer, Update

_STATES = {"ok": "green", "missing": "yellow", "untested": "yellow", "broken": "red", "yes": "green", "no": "yellow"}


@contextmanager
def progress(label: str) -> Iterator[Callable[[int, int, str], None]]:
    """Yield update(done, total, note): a bar with the time left on a terminal, elsewhere a line every ten seconds; on stderr."""
    if not sys.stderr.isatty():
        last = time.monotonic()

        def print_line(done: int, total: int, note: str = "") -> None:
            nonlocal last
            if done == total or time.monotonic() - last >= 10:
                last = time.monotonic()
                print(f"{label}: {done}/{total} {note}".rstrip(), file=sys.stderr, flush=True)

        yield print_line
        return

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.fields[note]}"), console=Console(stderr=True)) as bar:
        task = bar.add_task(label, total=None, note="")

        def update(done: int, total: int, note: str = "") -> None:
            bar.update(task, completed=done, total=total, note=note)

        yield update


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], note: str = "") -> None:
    """Print a table on stdout, as wide as it needs to be where there is no terminal; floats stand right, with two decimals."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left")
    for index, name in enumerate(columns):
        numeric = all(row[index] is None or _cell(row[index]).replace(".", "").isdecimal() for row in rows)
        table.add_column(name, justify="right" if numeric else "left", overflow="fold", no_wrap=numeric or index == 0)
    for row in rows:
        table.add_row(*(Text(_cell(value), style=_STATES.get(str(value), "")) for value in row))
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    console.print(table)
    if note:
        console.print(note, markup=False)


def _cell(value: object) -> str:
    return "–" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)


def say(message: str) -> None:
    """Print a line for a person, on stderr: stdout is for results."""
    print(message, file=sys.stderr, flush=True)


class _Terminal(Observer):
    """Shows a person how far work is."""

    def progress(self, label: str) -> AbstractContextManager[Update]:
        return progress(label)

    def say(self, message: str) -> None:
        say(message)


TERMINAL = _Terminal()
