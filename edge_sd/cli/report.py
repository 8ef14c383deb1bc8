"""`edge-sd report`: one page of a run or a bundle, or of several side by side."""

from pathlib import Path
from typing import Annotated

import typer


def report(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="PATH…",
            help="Folder of a run or of edge-sd quantize, or a bundle; several are compared with the first. "
            "One report.json is rendered again.",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="NAME.html; report.html in a run's folder, or here, if left out."),
    ] = None,
    results: Annotated[
        list[Path] | None,
        typer.Option("--results", help="File or folder with results that do not lie beside the bundle; several times."),
    ] = None,
    chosen: Annotated[str, typer.Option("--chosen", help="Name of the one to mark among several; the last if left out.")] = "",
    draw: Annotated[
        int, typer.Option("--draw", help="Of several: draw this many pictures anew; 0 shows the golden trajectories.", min=0)
    ] = 0,
    runtime: Annotated[str, typer.Option("--runtime", help="What draws them: edge-sd list runtimes.")] = "onnxruntime",
    cards: Annotated[bool, typer.Option("--cards", help="Write model cards with these figures beside the bundles.")] = False,
) -> None:
    """Write a page, Markdown and JSON of a run or a bundle, with the results that lie beside it, or of several side by side.

    Found are the JSON files of parity, bench, evaluate, quantize and compare that are of the bundle, in its folder and in the
    folders there. What is missing is left out.

    Example: edge-sd report emoji64.edgesd emoji64-w8a8 -o report.html
    """
    from edge_sd.cli._console import say
    from edge_sd.errors import UsageError
    from edge_sd.report.assemble import Choice, assemble
    from edge_sd.report.card import figures_of, write_card
    from edge_sd.report.render import HTML, pictures_folder, render, write_report
    from edge_sd.report.subjects import RUN, bundle_of
    from edge_sd.report.tables import summary

    first = paths[0]
    if len(paths) == 1 and first.is_file() and first.suffix == ".json":
        if output is not None or results or draw or cards:
            raise UsageError(f"{first} is rendered again as it is, where it is", "give the runs or bundles for another report")
        made, page = render(first), first.with_suffix(".html")
    else:
        page = output or (first / HTML if len(paths) == 1 and (first / RUN).is_file() else Path(HTML))
        choice = Choice(results=tuple(results or ()), chosen=chosen, draw=draw, runtime=runtime)
        made, pictures = assemble(paths, pictures_folder(page), choice)
        write_report(made, pictures, page)
        for path, subject in zip(paths if cards else (), made.subjects, strict=False):
            write_card(bundle_of(path), figures_of(subject))
    for line in summary(made):
        print(line)
    for line in made.left_out:
        say(f"left out: {line}")
    say(f"wrote {page}, {page.with_suffix('.md').name} and {page.with_suffix('.json').name}")
