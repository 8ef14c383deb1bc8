"""`edge-sd run`: all of it, from one configuration."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edge_sd.cli import _options as option

if TYPE_CHECKING:
    from collections.abc import Callable


def run(
    config: Annotated[str, typer.Argument(help="YAML file, or a built-in one: demo.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder of the run; out/NAME if left out.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Train again what was trained with other settings.")] = False,
) -> None:
    """Train, distil, export, sample, prove and time, and write a report. Stages that are done are skipped; a cut one goes on.

    Example: edge-sd run demo -o out/demo
    """
    from edge_sd.cli._console import say
    from edge_sd.pipeline.config import load_config
    from edge_sd.pipeline.run import Run
    from edge_sd.report.data import RunReport
    from edge_sd.files import read_model
    from edge_sd.report.render import HTML, JSON, summary

    loaded = load_config(config)
    out = output or Path("out") / loaded.name
    show = _StageBars()
    try:
        Run(loaded, out, overwrite=overwrite, observe=show.stage, update=show.update).walk()
    finally:
        show.close()
        if (out / HTML).exists():
            for line in summary(read_model(RunReport, out / JSON)):
                print(line)
            say(f"report: {out / HTML}")


class _StageBars:
    """One progress bar after the other."""

    def __init__(self) -> None:
        self._label = ""
        self._bar: "Callable[[int, int, str], None] | None" = None
        self._context = None

    def stage(self, name: str, state: str) -> None:
        from edge_sd.cli._console import say

        self.close()
        say(f"{name}: {state}")

    def update(self, label: str, done: int, total: int, note: str) -> None:
        from edge_sd.cli._console import progress

        if label != self._label:
            self.close()
            self._label, self._context = label, progress(label)
            self._bar = self._context.__enter__()
        if self._bar is not None:
            self._bar(done, total, note)

    def close(self) -> None:
        if self._context is not None:
            self._context.__exit__(None, None, None)
        self._label, self._context, self._bar = "", None, None
