"""The page's server: what it gives, and to whom; the verb serve; ONNX Runtime Web from npm."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from edge_sd.bundle import Bundle
from edge_sd.bundle.manifest import MANIFEST, FileEntry
from edge_sd.devices import _web as web
from edge_sd.devices._serve import PAGE, Post, Site, is_loopback
from edge_sd.devices.browser import page_report
from edge_sd.errors import InstallationError, UsageError
from verbs import call

SETUP = {"mode": "page", "name": "tiny", "digest": "0" * 64, "job": None, "backend": "wasm"}
JSON = {"Content-Type": "application/json"}


@pytest.fixture
def site(bundle: Bundle) -> Iterator[Site]:
    with Site(SETUP, bundle, ("failure", "result")) as site:
        yield site


def ask(
    site: Site, path: str, method: str = "GET", body: bytes | None = None, headers: dict[str, str] | None = None
) -> tuple[int, bytes, dict[str, str]]:
    """A request whose path is sent as it is."""
    connection = http.client.HTTPConnection("127.0.0.1", site.port, timeout=20)
    try:
        connection.putrequest(method, path, skip_host="Host" in (headers or {}))
        for name, value in (headers or {}).items():
            connection.putheader(name, value)
        if body is not None and "Content-Length" not in (headers or {}):
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders()
        if body is not None:
            connection.send(body)
        answer = connection.getresponse()
        return answer.status, answer.read(), dict(answer.getheaders())
    finally:
        connection.close()


# What it gives


def test_it_gives_the_page_the_runtime_and_the_bundle(site: Site, bundle: Bundle) -> None:
    status, body, headers = ask(site, site.path)
    assert (status, body) == (200, (PAGE / "index.html").read_bytes())
    assert headers["Cross-Origin-Opener-Policy"] == "same-origin"
    assert headers["Cross-Origin-Embedder-Policy"] == "require-corp"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cache-Control"] == "no-store"
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    setup = json.loads(ask(site, f"{site.path}setup.json")[1])
    assert set(setup["files"]) == {MANIFEST, *bundle.manifest.files}
    for name, address in setup["files"].items():
        assert ask(site, site.path + address)[:2] == (200, (bundle.path / name).read_bytes())
    for pair in setup["runtime"]["files"].values():
        module, wasm = (ask(site, site.path + address) for address in pair)
        assert module[2]["Content-Type"].startswith("text/javascript")
        assert wasm[2]["Content-Type"] == "application/wasm"
        assert wasm[1][:4] == b"\0asm"


def test_every_module_of_the_page_is_served(site: Site) -> None:
    for file in PAGE.iterdir():
        assert ask(site, f"{site.path}{file.name}")[:2] == (200, file.read_bytes()), file


def test_a_name_may_hold_anything(bundle: Bundle, tmp_path: Path) -> None:
    """Names never are part of an address."""
    name = "a \"quoted'\n<script>\u00e9%2e%2e?#.bin"
    copy = replace(bundle, path=tmp_path)
    (tmp_path / name).write_bytes(b"odd")
    files = {**bundle.manifest.files, name: FileEntry(sha256="0" * 64, bytes=3)}
    copy = replace(copy, manifest=bundle.manifest.model_copy(update={"files": files}))
    with Site(SETUP, copy, ()) as site:
        setup = json.loads(ask(site, f"{site.path}setup.json")[1])
        assert ask(site, site.path + setup["files"][name])[:2] == (200, b"odd")
        assert ask(site, site.path + setup["files"]["plan.safetensors"])[0] == 410  # not in this folder


# What it refuses


@pytest.mark.parametrize(
    "path",
    [
        "/", "/setup.json", "/aaaaaaaaaaaaaaaa/", "{path}manifest.json", "{path}file/0/..", "{path}file/99",
        "{path}../setup.json",
        "{path}..%2f..%2fetc/passwd", "{path}/etc/passwd", "{path}....//....//etc/passwd", "{path}%00", "{path}setup.json?",
        "{path}_serve.py", "{path}ort/", "{path}ort/../setup.json", "{path}\"'<>",
    ],
)  # fmt: skip
def test_what_it_does_not_know_it_does_not_give(site: Site, path: str) -> None:
    status, body, _ = ask(site, path.format(path=site.path))
    assert (status, body) == (404, b"404 Not Found\n")


def test_another_hosts_name_is_refused(site: Site) -> None:
    for host in ("attacker.test", f"attacker.test:{site.port}", "127.0.0.1", f"127.0.0.1:{site.port + 1}", ""):
        assert ask(site, site.path, headers={"Host": host})[0] == 403, host
    assert ask(site, site.path, headers={"Host": f"localhost:{site.port}"})[0] == 200


def test_another_pages_request_is_refused(site: Site) -> None:
    assert ask(site, f"{site.path}result", "POST", b"{}", {**JSON, "Origin": "http://attacker.test"})[0] == 403
    assert ask(site, f"{site.path}result", "POST", b"{}", {**JSON, "Origin": f"http://127.0.0.1:{site.port}"})[0] == 204
    assert site.posts.get(timeout=5) == Post("result", b"{}")


def test_posts_are_bounded_and_of_the_kinds_that_were_asked_for(site: Site) -> None:
    result = f"{site.path}result"
    assert ask(site, result, "POST", b"{}", {"Content-Type": "text/plain"})[0] == 415
    assert ask(site, result, "POST", b"", {**JSON, "Content-Length": str(2**26 + 1)})[0] == 413
    assert ask(site, result, "POST", b"", {**JSON, "Content-Length": "9" * 400})[0] == 411
    assert ask(site, result, "POST", b"", {**JSON, "Content-Length": "-1"})[0] == 411
    assert ask(site, result, "POST", b"", {**JSON, "Transfer-Encoding": "chunked", "Content-Length": "0"})[0] == 411
    assert ask(site, f"{site.path}evidence", "POST", b"", {"Content-Type": "application/octet-stream"})[0] == 404
    assert ask(site, site.path, "POST", b"", JSON)[0] == 404
    assert ask(site, "/result", "POST", b"{}", JSON)[0] == 404
    for method in ("PUT", "DELETE", "OPTIONS", "HEAD", "TRACE"):
        assert ask(site, result, method)[0] == 501
    assert site.posts.empty()


def test_half_a_request_and_none_at_all_disturb_nobody(site: Site, capfd: pytest.CaptureFixture[str]) -> None:
    for sent in (b"", b"GET", b"\x16\x03\x01\x02\0\x01\0", b"POST " + site.path.encode() + b"result HTTP/1.1\r\nContent-Le"):
        with socket.create_connection(("127.0.0.1", site.port), timeout=5) as connection:
            connection.sendall(sent)
    assert ask(site, site.path)[0] == 200
    assert capfd.readouterr().err == ""


def test_where_it_cannot_listen_it_says_so(site: Site, bundle: Bundle) -> None:
    for host, port in (("127.0.0.1", site.port), ("192.0.2.1", 0), ("no such host", 0)):
        with pytest.raises(UsageError, match="cannot listen on"):
            Site(SETUP, bundle, (), host=host, port=port)
    assert [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "example.org", "::")] == [True] * 3 + [False] * 2


def test_what_a_page_posts_is_told_without_moving_the_cursor() -> None:
    assert page_report(Post("failure", b'{"message": "a\\u001b[2Jb", "hint": "c"}')) == "failed: a [2Jb"
    assert "not a valid PageResult" in page_report(Post("result", b"{"))
    assert page_report(Post("result", b'{"measurement": null, "runtime_version": "x"}')) == "x: drawn"


# The verb


@pytest.fixture
def serving(bundle: Bundle) -> Iterator[subprocess.Popen[str]]:
    """`edge-sd serve` at work; a shell's background would make it deaf to Ctrl-C."""
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from edge_sd.cli.main import main; main()"
    arguments = [sys.executable, "-c", code, "serve", str(bundle.path), "--host", "0.0.0.0"]  # noqa: S104
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd="/")
    yield process
    process.kill()
    process.communicate()


def test_serve_prints_the_address_warns_and_ends_by_ctrl_c(serving: subprocess.Popen[str]) -> None:
    assert serving.stdout
    address = serving.stdout.readline().strip()
    assert address.startswith("http://0.0.0.0:")
    port, path = int(address.split(":")[2].partition("/")[0]), "/" + address.split("/", 3)[3]
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request("GET", path, headers={"Host": "any.example:80"})
    assert connection.getresponse().status == 200
    connection.close()
    serving.send_signal(signal.SIGINT)
    out, err = serving.communicate(timeout=20)
    assert (serving.returncode, out) == (0, "")
    assert "can be read by everyone who reaches port" in err
    assert "one thread, no WebGPU" in err
    assert err.endswith("ended\n")


def test_serve_refuses_what_no_browser_runs(
    tmp_path: Path, bundle: Bundle, site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("serve", str(tmp_path)).failed_with(2, "is not a bundle")
    assert call("serve", str(bundle.path), "--port", str(site.port)).failed_with(2, "cannot listen on 127.0.0.1")


# ONNX Runtime Web


def test_npm_brings_what_was_tested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    files = web.fetched()
    assert {name for name in files if files[name].stat().st_size > 50_000} == {
        name for pair in web.FILES.values() for name in pair
    }
    assert {path.name for path in (tmp_path / "edge-sd" / "web").iterdir()} <= {files[name].parent.name for name in files} | {
        f"onnxruntime-web-{web.VERSION}.lock"
    }
    monkeypatch.setenv("PATH", "")  # from now on nothing is fetched
    assert web.available().ok
    assert web.fetched() == files


def test_what_npm_brings_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(web, "INTEGRITY", "sha512-AAAA")
    with pytest.raises(InstallationError, match="not the one that was tested"):
        web.fetched()
    assert not list(tmp_path.rglob("*.mjs"))


def test_no_npm_and_no_registry_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name, value in {"registry": "http://127.0.0.1:9/", "fetch_retries": "0", "cache": str(tmp_path / "npm")}.items():
        monkeypatch.setenv(f"npm_config_{name}", value)
    with pytest.raises(InstallationError, match="npm cannot fetch onnxruntime-web@"):
        web.fetched()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not web.available().ok
    with pytest.raises(InstallationError, match="npm is missing"):
        web.fetched()
    assert os.listdir(tmp_path / "cache" / "edge-sd" / "web") == [f"onnxruntime-web-{web.VERSION}.lock"]  # noqa: PTH208
