"""The server of the page: one bundle, ONNX Runtime Web and the page itself, and nothing else.

What can be asked for is a dictionary that is made before the first request: no part of a request ever becomes part of a path.
Every address begins with a random token, so that other pages and users of this machine can neither read nor post. Where it
listens on this machine alone, requests by another host's name are refused (DNS rebinding). Headers keep the page from loading
anything from elsewhere, and give it threads and a fine clock (cross-origin isolation).
"""

import json
import queue
import secrets
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from threading import Thread
from typing import Any, Final

from typing_extensions import Self

from edge_sd.bundle import Bundle
from edge_sd.bundle.manifest import MANIFEST
from edge_sd.devices import _web as web
from edge_sd.errors import UsageError

LOOPBACK: Final = "127.0.0.1"
PAGE: Final = Path(__file__).parent / "web"
_TYPES = {
    ".html": "text/html; charset=utf-8", ".css": "text/css; charset=utf-8", ".mjs": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml", ".json": "application/json", ".wasm": "application/wasm",
}  # fmt: skip
_BYTES, _JSON = "application/octet-stream", "application/json"
# What the page may post: its type, and the most bytes of it.
_POSTS = {
    "about": (_JSON, 2**16),
    "progress": (_JSON, 2**12),
    "failure": (_JSON, 2**16),
    "result": (_JSON, 2**26),
    "evidence": (_BYTES, 2**24),  # and four times the goldens
}
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self' 'wasm-unsafe-eval'",
        "worker-src 'self'",
        "connect-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
# A person may have to type it into a phone: no 0 and o, no 1 and l.
_LETTERS, _TOKEN_LENGTH = "abcdefghijkmnpqrstuvwxyz23456789", 16
_IDLE_SECONDS = 60


@dataclass(frozen=True)
class Post:
    """Something that the page sent; its name is one of those that the server was told to take."""

    name: str
    body: bytes


class Site:
    """A server that runs until it is closed.

    Attributes:
        posts: what came from the page, in order.
        url: of the page.
    """

    def __init__(
        self, setup: Mapping[str, Any], bundle: Bundle | None, posts: Sequence[str], *, host: str = LOOPBACK, port: int = 0
    ) -> None:
        """Serve.

        Args:
            setup: what the page is to do; see page.mjs.
            posts: names of what the page is asked to post; what else it posts is refused.
            port: 0 for any that is free.

        Raises:
            UsageError: it cannot listen there.
            InstallationError: ONNX Runtime Web cannot be fetched.
        """
        self.posts: queue.SimpleQueue[Post] = queue.SimpleQueue()
        token = "".join(secrets.choice(_LETTERS) for _ in range(_TOKEN_LENGTH))
        files = {f"file/{number}": name for number, name in enumerate([MANIFEST, *bundle.manifest.files] if bundle else ())}
        setup = {
            **setup,
            "files": {name: address for address, name in files.items()},
            "runtime": {
                "version": web.VERSION,
                "files": {name: [f"ort/{file}" for file in pair] for name, pair in web.FILES.items()},
            },
            "reports": list(posts),
        }
        items: dict[str, Path | bytes] = {file.name: file for file in PAGE.iterdir() if file.suffix in _TYPES}
        items |= {"": PAGE / "index.html", "setup.json": json.dumps(setup).encode()}
        if bundle:
            items |= {f"ort/{name}": file for name, file in web.fetched().items()}
            items |= {address: bundle.path / name for address, name in files.items()}
        limits = {name: _POSTS[name] for name in posts}
        if bundle and "evidence" in limits:
            limits["evidence"] = (_BYTES, _POSTS["evidence"][1] + 4 * bundle.manifest.files["golden.safetensors"].bytes)
        self._server = _listen(host, port)
        actual = self._server.server_address[1]
        self._server.open_to(
            {f"/{token}/{name}": item for name, item in items.items()},
            {f"/{token}/{name}": (name, *limit) for name, limit in limits.items()},
            _names(host, int(actual)) if is_loopback(host) else None,
            self.posts,
        )
        shown = f"[{host}]" if ":" in host else host
        self.path = f"/{token}/"
        self.port = int(actual)
        self.url = f"http://{shown}:{actual}{self.path}"
        self._thread = Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop serving; may be called twice."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def is_loopback(host: str) -> bool:
    """Whether nobody but this machine can reach it."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _names(host: str, port: int) -> frozenset[str]:
    """What a request may call a server on loopback."""
    shown = f"[{host}]" if ":" in host else host
    known = {shown, LOOPBACK, "localhost", "[::1]"}
    return frozenset({f"{name}:{port}" for name in known} | (known if port == 80 else set()))


def _listen(host: str, port: int) -> "_Server":
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return _Server(family, (host, port))
    except (OSError, OverflowError, UnicodeError) as error:
        raise UsageError(
            f"cannot listen on {host}:{port}: {getattr(error, 'strerror', None) or error}", "another --port, or --host 127.0.0.1"
        ) from error


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, family: socket.AddressFamily, address: tuple[str, int]) -> None:
        self.address_family = family
        super().__init__(address, _Handler)

    def open_to(
        self,
        items: Mapping[str, Path | bytes],
        takes: Mapping[str, tuple[str, str, int]],
        names: frozenset[str] | None,
        posts: "queue.SimpleQueue[Post]",
    ) -> None:
        """Say what is served and taken, by path, and by which names of this host; None: by any."""
        self.items, self.takes, self.names, self.posts = items, takes, names, posts

    def handle_error(self, request: object, client_address: object) -> None:
        """A browser that goes away in the middle is nothing to print."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = _IDLE_SECONDS
    server: _Server

    def do_GET(self) -> None:
        if not self._welcome():
            return self._refuse(HTTPStatus.FORBIDDEN)
        item = self.server.items.get(self.path)
        if item is None:
            return self._refuse(HTTPStatus.NOT_FOUND)
        if isinstance(item, bytes):
            self._head(HTTPStatus.OK, _JSON, len(item))
            self.wfile.write(item)
            return None
        try:
            file = item.open("rb")
        except OSError:  # it was there when the server began
            return self._refuse(HTTPStatus.GONE)
        with file:
            size = file.seek(0, 2)
            file.seek(0)
            self._head(HTTPStatus.OK, _TYPES.get(item.suffix, _BYTES), size)
            left = size
            while left and (block := file.read(min(left, 1 << 20))):
                self.wfile.write(block)
                left -= len(block)
        self.close_connection = self.close_connection or bool(left)
        return None

    def do_POST(self) -> None:
        if not self._welcome():
            return self._refuse(HTTPStatus.FORBIDDEN)
        if self.path not in self.server.takes:
            return self._refuse(HTTPStatus.NOT_FOUND)
        name, kind, most = self.server.takes[self.path]
        length = self.headers.get("Content-Length", "")
        if self.headers.get("Content-Type") != kind:
            return self._refuse(HTTPStatus.UNSUPPORTED_MEDIA_TYPE)
        if not (length.isascii() and length.isdecimal() and len(length) < 20) or "Transfer-Encoding" in self.headers:
            return self._refuse(HTTPStatus.LENGTH_REQUIRED)
        if int(length) > most:
            return self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        body = self.rfile.read(int(length))
        if len(body) == int(length):
            self.server.posts.put(Post(name, body))
            self._head(HTTPStatus.NO_CONTENT, _BYTES, None)
        return None

    def _welcome(self) -> bool:
        """Whether it is asked by one of its own names, and for a page of its own."""
        host, origin = self.headers.get("Host", ""), self.headers.get("Origin")
        return (self.server.names is None or host in self.server.names) and origin in (None, f"http://{host}")

    def _refuse(self, status: HTTPStatus) -> None:
        self.close_connection = True  # a body that came with it is not read
        text = f"{status.value} {status.phrase}\n".encode()
        self._head(status, "text/plain; charset=utf-8", len(text))
        self.wfile.write(text)

    def _head(self, status: HTTPStatus, kind: str, length: int | None) -> None:
        self.send_response_only(status)
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        if length is not None:
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(length))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Of what is no request that this server knows."""
        with suppress(OSError):
            self._refuse(HTTPStatus(code))

    def log_message(self, format: str, *args: object) -> None:
        """Nobody reads it."""
