"""`python -m edge_sd` is the `edge-sd` command, also from a plain checkout (`PYTHONPATH=.`)."""

from edge_sd.cli.main import main

main()
