"""`edge-sd emulator`: an arm64 board of our own, for correctness on ARM where no board is at hand."""

from typing import Annotated

import typer

from edge_sd.cli import _options as option

emulator = typer.Typer(
    help="Make, start and stop an emulated arm64 board, the device `emulator`. Linux with Debian's packages.\n\n"
    "Example: edge-sd emulator create && edge-sd emulator start",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@emulator.command()
def create(overwrite: option.Overwrite = False) -> None:
    """Make the board from Debian's packages and Python wheels for arm64: about 60 MB to download, 350 MB on disk, half a minute.

    Example: edge-sd emulator create && edge-sd emulator start
    """
    from edge_sd.cli._console import progress, say
    from edge_sd.devices.emulation import create as create_board

    with progress("making the board") as update:
        board = create_board(overwrite=overwrite, observe=update)
    wheels = ", ".join(f"{name} {number}" for name, number in board.wheels.items())
    say(f"Linux {board.kernel}, Python {board.python}, {wheels}")


@emulator.command()
def start(
    memory: Annotated[int, typer.Option("--memory", help="MiB of the board.", min=192)] = 1024,
    cores: Annotated[int, typer.Option("--cores", help="Of the board; each takes one of this machine.", min=1, max=8)] = 2,
) -> None:
    """Start the board and leave it running; print how to reach it. Its disk is as new each time.

    Example: edge-sd emulator start --memory 512
    """
    from edge_sd.cli._console import progress, say
    from edge_sd.devices.emulation import HOST, Settings
    from edge_sd.devices.emulation import start as start_board

    with progress("starting the board") as update:
        running = start_board(Settings(memory_mib=memory, cores=cores), update)
    say("it runs; edge-sd parity BUNDLE --device emulator proves a bundle on it, edge-sd emulator stop ends it")
    import shlex

    print(shlex.join(["ssh", "-F", str(running.config), HOST]))


@emulator.command()
def stop() -> None:
    """Power the board off. What was written to its disk is gone.

    Example: edge-sd emulator stop
    """
    from edge_sd.cli._console import say
    from edge_sd.devices.emulation import stop as stop_board

    say("stopped" if stop_board() else "no board was running")


@emulator.command()
def status(form: option.Form = "text") -> None:
    """Show whether there is a board, whether it runs, and where.

    Example: edge-sd emulator status
    """
    from edge_sd.devices.emulation import board_folder, find_running, read_board
    from edge_sd.errors import EdgeSDError

    found: dict[str, object] = {"created": False, "running": False}
    try:
        board = read_board(whole=False)
        found |= {"created": True, "folder": str(board_folder()), "kernel": board.kernel, "python": board.python, **board.wheels}
    except EdgeSDError as error:
        found["why"] = f"{error.message}: {error.hint}"
    if (running := find_running()) is not None:
        state = running.state
        found |= {"running": True, "process": state.process.pid, "port": state.port, "config": str(running.config)}
        found |= state.settings.model_dump()
    if form == "json":
        import json

        print(json.dumps(found, indent=2))
    else:
        from edge_sd.cli._console import print_table

        words = {True: "yes", False: "no"}
        rows = [(name, words.get(value, value) if isinstance(value, bool) else value) for name, value in found.items()]
        print_table("edge-sd emulator", ("what", "value"), rows)


@emulator.command()
def remove() -> None:
    """Delete the board and all that belongs to it.

    Example: edge-sd emulator remove
    """
    from edge_sd.cli._console import say
    from edge_sd.devices.emulation import remove as remove_board

    say("removed" if remove_board() else "there was no board")
