"""`edge-sd serve`: a page that runs a bundle in a person's own browser, on this computer or on another."""

from pathlib import Path
from typing import Annotated

import typer

from edge_sd.cli import _options as option


def serve(
    bundle: Annotated[Path, typer.Argument(help="Bundle NAME.edgesd with programs for ONNX.")],
    host: Annotated[
        str, typer.Option("--host", help="Address to listen on; 0.0.0.0 for every one that this computer has.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="Port to listen on; 0 for one that is free.", min=0, max=65535)] = 0,
    iterations: Annotated[int, typer.Option("--iterations", help="Timed calls of the denoiser; 0 for none.", min=0)] = 50,
    threads: option.Threads = None,
    open_page: Annotated[bool, typer.Option("--open/--no-open", help="Open the page in this computer's browser.")] = False,
) -> None:
    """Serve a page that draws a bundle's golden samples in the browser that opens it, proves them, and takes times.

    Nothing is loaded from elsewhere. Ctrl-C ends it. A phone can open the page with --host 0.0.0.0: unencrypted, so that its
    browser gives it one thread and no WebGPU.

    Example: edge-sd serve student.edgesd --open
    """
    import os
    import webbrowser

    from edge_sd.bundle import open_bundle
    from edge_sd.cli._console import say
    from edge_sd.devices import Job
    from edge_sd.devices._serve import Site, is_loopback
    from edge_sd.devices.browser import RUNTIME, page_report

    opened = open_bundle(bundle)
    for name in opened.plan.header.programs:
        opened.program("onnx", name)
    job = Job(runtime=RUNTIME, threads=threads or os.cpu_count() or 1, iterations=iterations, most_seconds=20)
    setup = {
        "mode": "page",
        "name": opened.manifest.name,
        "digest": opened.manifest.digest,
        "job": job.model_dump(mode="json"),
        "backend": "wasm",
    }
    try:
        with Site(setup, opened, ("failure", "result"), host=host, port=port) as site:
            print(site.url, flush=True)
            if not is_loopback(host):
                say(f"{opened.manifest.name} can be read by everyone who reaches port {site.port} and knows the address above")
                say("from other computers the page comes unencrypted: one thread, no WebGPU, hashes by a SHA-256 of our own")
            if host in ("0.0.0.0", "::"):  # noqa: S104 (this is what it warns of)
                say(f"from another computer: http://{_own_address()}:{site.port}{site.path}")
            say("Ctrl-C ends it")
            if open_page:
                webbrowser.open(site.url)
            while True:
                say(page_report(site.posts.get()))
    except KeyboardInterrupt:
        say("ended")


def _own_address() -> str:
    """The address by which others most likely reach this computer. Nothing is sent."""
    import socket

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # of documentation (RFC 5737): to connect datagrams only looks up a route
            address: str = probe.getsockname()[0]
        except OSError:
            return socket.gethostname()
        return address
