"""`edge-sd report`: render a run's report again."""

from pathlib import Path
from typing import Annotated

import typer


def report(run: Annotated[Path, typer.Argument(help="Folder of a run, with its report.json.")]) -> None:
    """Render report.html and report.md again from a run's report.json.

    Example: edge-sd report out/demo
    """
    from edge_sd.cli._console import say
    from edge_sd.report.render import HTML, render, summary

    for line in summary(render(run)):
        print(line)
    say(f"wrote {run / HTML}")
