"""`edge-sd run`: all of it, from one configuration."""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer


def run(
    config: Annotated[str, typer.Argument(help="YAML file, or a built-in one: demo.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder of the run; out/NAME if left out.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Train again what was trained with other settings.")] = False,
) -> None:
    """Train, distil, export, sample, prove and time, and write a report. Stages that are done are skipped; a cut one goes on.

    A file with `kind: ablation` trains and measures each part of the method, over seeds, instead.

    Example: edge-sd run demo -o out/demo
    """
    from edge_sd.cli._console import say
    from edge_sd.files import read_model
    from edge_sd.pipeline.ablation import Ablation, AblationConfig
    from edge_sd.pipeline.config import load_config
    from edge_sd.pipeline.run import Run
    from edge_sd.report.ablation import MARKDOWN, ablation_table, headline
    from edge_sd.report.data import Report
    from edge_sd.report.render import HTML, JSON
    from edge_sd.report.tables import summary

    loaded = load_config(config)
    out = output or Path("out") / loaded.name
    show = _StageBars()
    if isinstance(loaded, AblationConfig):
        try:
            report = Ablation(loaded, out, overwrite=overwrite, observe=show.stage, update=show.update).walk()
        finally:
            show.close()
        print(ablation_table(report, headline(report)))
        say(f"report: {out / MARKDOWN}, ablation.png, frequency.png")
        return
    try:
        Run(loaded, out, overwrite=overwrite, observe=show.stage, update=show.update).walk()
    finally:
        show.close()
        if (out / HTML).exists():
            for line in summary(read_model(Report, out / JSON)):
                print(line)
            say(f"report: {out / HTML}")


class _StageBars:
    """One progress bar after the other."""

    def __init__(self) -> None:
        self._label = ""
        self._bars = ExitStack()
        self._update: Callable[[int, int, str], None] | None = None

    def stage(self, name: str, state: str) -> None:
        """Say that a stage begins, or was done before."""
        from edge_sd.cli._console import say

        self.close()
        say(f"{name}: {state}")

    def update(self, label: str, done: int, total: int, note: str) -> None:
        """Move the bar named `label`, a new one if the last had another name."""
        from edge_sd.cli._console import progress

        if label != self._label or self._update is None:
            self.close()
            self._label, self._update = label, self._bars.enter_context(progress(label))
        self._update(done, total, note)

    def close(self) -> None:
        """End the bar, if there is one."""
        self._bars.close()
        self._label, self._update = "", None
