"""`edge-sd init`: a commented configuration for one's own images and device."""

from pathlib import Path
from typing import Annotated

import typer

from edge_sd.cli import _options as option


def init(
    data: Annotated[str, typer.Argument(help="Folder of images.")],
    device: Annotated[
        str, typer.Option("--device", help="Where it will run: android, iphone, mac, browser, board or host.")
    ] = "host",
    name: Annotated[str | None, typer.Option("--name", help="Of the run; the folder's if left out.")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write.")] = Path("edge-sd.yaml"),
    overwrite: option.Overwrite = False,
) -> None:
    """Look at a folder of images and write a configuration of the whole way for them: what is learnt, exported, proved, timed.

    Example: edge-sd init photos/ --device android && edge-sd run edge-sd.yaml
    """
    from edge_sd.cli._console import say
    from edge_sd.errors import UsageError
    from edge_sd.files import plain_name, write_bytes
    from edge_sd.pipeline.scaffold import scaffold, survey

    if output.exists() and not overwrite:
        raise UsageError(f"{output} exists", "give --overwrite to replace it, or another -o")
    found = survey(data)
    named = plain_name(Path(data).name or Path(data).resolve().name).strip(".-")
    write_bytes(output, scaffold(found, device, name or named or "mine").encode())
    say(f"wrote {output} for {found.count} images; next: edge-sd run {output}")
