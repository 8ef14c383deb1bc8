"""The command line: every verb, one way to report an error, documented exit codes."""

import logging
import signal
import sys
from typing import Annotated

import typer

import edge_sd
from edge_sd.cli.bench import bench
from edge_sd.cli.compare import compare
from edge_sd.cli.distill import distill
from edge_sd.cli.doctor import doctor
from edge_sd.cli.emulator import emulator
from edge_sd.cli.evaluate import evaluate
from edge_sd.cli.export import export
from edge_sd.cli.init import init
from edge_sd.cli.inspect import inspect
from edge_sd.cli.list import list_
from edge_sd.cli.parity import parity
from edge_sd.cli.plan import plan
from edge_sd.cli.quantize import quantize
from edge_sd.cli.report import report
from edge_sd.cli.run import run
from edge_sd.cli.sample import sample
from edge_sd.cli.search import search
from edge_sd.cli.selftest import selftest
from edge_sd.cli.serve import serve
from edge_sd.cli.train import train
from edge_sd.cli.train_autoencoder import train_autoencoder
from edge_sd.cli.widths import widths
from edge_sd.errors import EdgeSDError, ExitCode

app = typer.Typer(
    help="Take a diffusion model from a GPU to a phone: slim, distil, quantize, export, prove, measure.",
    epilog="Exit codes: 0 ok, 1 failure, 2 usage, 3 parity failed, 4 device unavailable, 5 environment.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
_LOG = logging.getLogger("edge_sd")
for verb in (
    init,
    run,
    train,
    distill,
    sample,
    quantize,
    export,
    search,
    widths,
    inspect,
    parity,
    bench,
    compare,
    serve,
    evaluate,
    report,
    doctor,
    selftest,
):
    app.command()(verb)
app.command("list")(list_)
app.command("train-autoencoder")(train_autoencoder)
app.add_typer(emulator, name="emulator")
app.add_typer(plan, name="plan")


def _version(asked: bool) -> None:
    if asked:
        print(f"edge-sd {edge_sd.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """Options before the verb."""
    from edge_sd.cli._log import log_to_file

    log_to_file()


def main() -> None:
    """Run the command line; an `EdgeSDError` becomes two lines on stderr and its exit code."""
    # As Ctrl-C does, so that what runs on devices is ended and removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        app()
    except EdgeSDError as error:
        _LOG.info("%s", error, exc_info=error)
        print(f"error: {error.message}", file=sys.stderr)
        print(f"try: {error.hint}", file=sys.stderr)
        sys.exit(int(error.code))
    except SystemExit as end:
        if end.code == 130:  # typer's answer to Ctrl-C
            print("interrupted; the same command goes on where it can", file=sys.stderr)
            sys.exit(int(ExitCode.FAILURE))
        raise
    except ImportError as error:
        _LOG.exception("an import failed")
        print(f"error: the installation is broken: {error}", file=sys.stderr)
        print("try: edge-sd doctor", file=sys.stderr)
        sys.exit(int(ExitCode.ENVIRONMENT))
    except Exception:
        from edge_sd.cli._log import log_file

        _LOG.exception("not foreseen")
        print(f"this is a fault of edge-sd; {log_file()} has the details", file=sys.stderr)
        raise
