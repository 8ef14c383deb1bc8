"""The terminal: progress that is a bar for people and a line now and then for log files."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


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


def say(message: str) -> None:
    """Print a line for a person, on stderr: stdout is for results."""
    print(message, file=sys.stderr, flush=True)
