"""A browser on this machine, without a window: programs for ONNX in ONNX Runtime Web, on the processor or by WebGPU.

The page (`web/`) does the whole job by itself: it checks every file's hash, follows the golden trajectories with its own noise
and its own loop, takes times, and posts what it found to the server that served it.
"""

import queue
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import Final

from pydantic import Field

from edge_sd.bundle import Bundle
from edge_sd.devices import _web as web
from edge_sd.devices._chromium import VARIABLE, Chromium, find
from edge_sd.devices._device import Connection, Device, Observe, unobserved
from edge_sd.devices._fingerprint import DeviceInfo
from edge_sd.devices._job import Job, Latency, Measurement, Outcome
from edge_sd.devices._serve import Post, Site
from edge_sd.devices.host import describe_host
from edge_sd.errors import DeviceError, EdgeSDError, UsageError
from edge_sd.files import parse_model, write_bytes
from edge_sd.runnable import Availability
from edge_sd.runtimes.evidence import load_evidence
from edge_sd.validation import Record

RUNTIME: Final = "onnxruntime-web"
_TARGET = "onnx"
# What a browser needs to show its adapter: the machine's own, or, where there is none, one that is imitated on the processor.
_FLAGS: Final = {
    "wasm": (("--disable-gpu",),),
    "webgpu": (
        ("--enable-unsafe-webgpu", "--enable-features=Vulkan"),
        ("--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"),
    ),
}
_ANSWER_SECONDS = 60.0  # to say what it is
_LOOK_SECONDS = 1.0  # between two looks whether it still runs


class Adapter(Record):
    """A graphics processor, as WebGPU names it; software: it is imitated on the processor."""

    name: str = Field(max_length=300)
    software: bool


class About(Record):
    """What a browser says of itself."""

    browser: str = Field(max_length=300)
    isolated: bool
    adapter: Adapter | None


class Progress(Record):
    """How far a job is."""

    stage: str = Field(max_length=100)
    done: int = Field(ge=0)
    total: int = Field(ge=0)


class PageFailure(Record):
    """An error's two lines, from the page."""

    message: str
    hint: str


class PageResult(Record):
    """What a job found; the evidence comes by itself."""

    measurement: Measurement | None
    runtime_version: str = Field(max_length=300)


class Browser(Device):
    """The first browser of the Chromium family that is found here, or the one that EDGE_SD_BROWSER names."""

    name = "browser"
    about = "a browser without a window on this machine: ONNX Runtime Web by wasm or WebGPU"
    address = "[wasm|webgpu]"
    own_runtimes = MappingProxyType({RUNTIME: _TARGET})
    shares_host = True

    def available(self) -> Availability:
        program = find()
        if program is None:
            return Availability(
                False, "no browser of the Chromium family found", f"apt-get install -y chromium; or set {VARIABLE}"
            )
        runtime = web.available()
        return Availability(True, f"{program}, {runtime.detail}") if runtime.ok else runtime

    def open(self, address: str) -> Connection:
        backend = address or "wasm"
        if backend not in _FLAGS:
            raise UsageError(f"a browser runs by {' or '.join(_FLAGS)}, not {backend!r}", "--device browser:wasm")
        return BrowserConnection(backend)


class BrowserConnection(Connection):
    """Jobs in a browser that is started for each."""

    def __init__(self, backend: str) -> None:
        """Ask a browser what it is.

        Raises:
            DeviceError: it does not start, or shows no graphics processor where one is asked for.
        """
        self._backend = backend
        self._site: Site | None = None
        self._bundle: Bundle | None = None
        self._job: Job | None = None
        self._posts: dict[str, bytes] = {}
        for self._flags in _FLAGS[backend]:
            self._about = self._ask()
            if backend == "wasm" or self._about.adapter is not None:
                break
        else:
            raise DeviceError(f"{self._about.browser} shows no graphics processor by WebGPU", "--device browser:wasm")
        if not self._about.isolated:
            raise DeviceError(f"{self._about.browser} does not isolate the page, so that it has no threads", f"set {VARIABLE}")

    def info(self) -> DeviceInfo:
        adapter = self._about.adapter if self._backend == "webgpu" else None
        own = {"device": Browser.name, "address": self._backend, "model": self._about.browser}
        if adapter is not None:
            own |= {"processor": adapter.name}
        emulated = adapter is not None and adapter.software
        return describe_host().model_copy(update={**own, "emulated": emulated})

    def runtimes(self, bundle: Bundle) -> tuple[str, ...]:
        return (RUNTIME,) if any(program.target == _TARGET for program in bundle.manifest.programs) else ()

    def push(self, bundle: Bundle, job: Job, observe: Observe = unobserved) -> None:
        if job.runtime != RUNTIME:
            raise UsageError(f"runtime {job.runtime!r} does not run in a browser", f"--runtime {RUNTIME}")
        if job.memory_mib is not None or job.processors:
            raise UsageError(
                "a browser's memory and processors cannot be set", "--device host can, or start a browser's machine so"
            )
        for name in bundle.plan.header.programs:
            bundle.program(_TARGET, name)
        self.close()
        setup = {
            "mode": "job",
            "name": bundle.manifest.name,
            "digest": bundle.manifest.digest,
            "job": job.model_dump(mode="json"),
            "backend": self._backend,
        }
        self._site = Site(setup, bundle, ("progress", "failure", "evidence", "result"))
        self._bundle, self._job = bundle, job

    def run(self, observe: Observe = unobserved) -> None:
        assert self._site, "push comes first"  # noqa: S101
        assert self._job, "push comes first"  # noqa: S101
        self._posts = {}

        def take(name: str, body: bytes) -> bool:
            if name == "progress":
                step = parse_model(Progress, body, "the page's progress")
                observe(step.done, step.total, step.stage)
                return False
            self._posts[name] = body
            return name == "result"

        self._visit(self._site, self._job.patience, take)

    def pull(self) -> Outcome:
        assert self._bundle, "run comes first"  # noqa: S101
        assert self._job, "run comes first"  # noqa: S101
        result = parse_model(PageResult, self._posts.get("result", b""), "the page's result")
        if self._job.iterations and result.measurement is None:
            raise EdgeSDError("the page posted no times, although they were asked for", "give the same command again")
        if not self._job.prove:
            return Outcome(result.measurement, None, result.runtime_version)
        with tempfile.TemporaryDirectory(prefix="edge-sd-") as folder:
            path = Path(folder) / "evidence.safetensors"
            write_bytes(path, self._posts.get("evidence", b""))
            header, evidence = load_evidence(path, self._bundle)
        return Outcome(result.measurement, evidence, header.runtime_version)

    def close(self) -> None:
        if self._site is not None:
            self._site.close()
        self._site = None

    def _ask(self) -> About:
        found: list[About] = []

        def take(name: str, body: bytes) -> bool:
            found.append(parse_model(About, body, "what the browser says of itself"))
            return True

        with Site({"mode": "about", "name": "edge-sd"}, None, ("about",)) as site:
            self._visit(site, _ANSWER_SECONDS, take)
        return found[0]

    def _visit(self, site: Site, patience: float, take: Callable[[str, bytes], bool]) -> None:
        """Open the page in a browser until `take`, called with each post, says that this was the last.

        Raises:
            DeviceError: the browser ended, or was silent for longer than `patience` seconds.
            EdgeSDError: the page says that it failed.
        """
        with Chromium(site.url, self._flags) as browser:
            heard = time.monotonic()
            while True:
                try:
                    post = site.posts.get(timeout=_LOOK_SECONDS)
                except queue.Empty:
                    if ended := browser.ended():
                        raise DeviceError(f"the browser {ended}{_quoted(browser.said())}", _hint(ended)) from None
                    if time.monotonic() > heard + patience:
                        raise DeviceError(
                            f"the browser said nothing for {patience:g} s{_quoted(browser.said())}", "--patience waits longer"
                        ) from None
                    continue
                heard = time.monotonic()
                if post.name == "failure":
                    failure = parse_model(PageFailure, post.body, "the page's failure")
                    raise EdgeSDError(f"{Browser.name}:{self._backend}: {_plain(failure.message)}", _plain(failure.hint))
                if take(post.name, post.body):
                    return


def page_report(post: Post) -> str:
    """What a page that a person runs has posted, in one line."""
    try:
        if post.name == "failure":
            failure = parse_model(PageFailure, post.body, "the page's failure")
            return f"failed: {_plain(failure.message)}"
        result = parse_model(PageResult, post.body, "the page's result")
    except EdgeSDError as error:
        return _plain(error.message)
    title = _plain(result.runtime_version)
    if result.measurement is None:
        return f"{title}: drawn"
    latency = Latency.of(result.measurement.samples_ms)
    return f"{title}: {latency.p50_ms:.1f} ms a call (p90 {latency.p90_ms:.1f}, {len(result.measurement.samples_ms)} calls)"


def _plain(text: str) -> str:
    """Without what would move a terminal's cursor."""
    return "".join(letter if letter.isprintable() else " " for letter in text)[:2000]


def _quoted(said: str) -> str:
    return f"; it last said: {_plain(said)}" if said else ""


def _hint(ended: str) -> str:
    return (
        "is there memory enough? edge-sd inspect forecasts" if "lost" in ended or "signal" in ended else "does it start by hand?"
    )
