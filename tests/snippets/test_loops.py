"""The snippets of docs/INTEGRATION.md draw golden images: each is run as a reader would run it, and its values are compared."""

import functools
import http.server
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from numpy.typing import NDArray
from selenium import webdriver

from edge_sd.bundle import Bundle
from edge_sd.devices._web import fetched
from edge_sd.diffusion import noise as specified
from edge_sd.evaluation.metrics import snr_db

ROOT = Path(__file__).resolve().parents[2]
SNIPPETS = ROOT / "snippets"
JVM = Path(__file__).parent / "jvm"
JARS = (Path("/usr/share/java/json-android.jar"), Path("/usr/share/java/kotlin-stdlib.jar"))
LEAST_DB = 80.0
BUNDLES = ("corrected", "classes", "emoji64")


def agrees(bundle: Bundle, index: int, image: NDArray[np.float32]) -> None:
    golden = bundle.golden.trajectories[index]
    wanted = golden.final if golden.image is None else golden.image
    assert image.size == wanted.size
    assert snr_db(wanted, image.reshape(wanted.shape)) >= LEAST_DB


def drawn(command: list[object], bundle: Bundle, index: int, out: Path) -> None:
    """Run `command BUNDLE … INDEX OUT`; what it writes and what it says of itself must agree."""
    done = subprocess.run([*map(str, command), str(index), str(out)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    said = re.search(rf"^image {index}.*: ([\d.]+) dB", done.stdout, re.MULTILINE)
    assert said is not None, done.stdout
    assert float(said[1]) >= LEAST_DB
    agrees(bundle, index, np.fromfile(out, "<f4"))


def index_of(bundle: Bundle) -> int:
    """The last golden trajectory: of another index, and of another class, than 0."""
    return len(bundle.golden.trajectories) - 1


@pytest.mark.parametrize("name", BUNDLES)
def test_python(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    bundle: Bundle = request.getfixturevalue(name)
    drawn([sys.executable, SNIPPETS / "loop.py", bundle.path], bundle, index_of(bundle), tmp_path / "image.f32")


@pytest.mark.parametrize("name", BUNDLES)
def test_node(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    bundle: Bundle = request.getfixturevalue(name)
    command = ["node", SNIPPETS / "loop.mjs", bundle.path, fetched()["ort.wasm.bundle.min.mjs"]]
    drawn(command, bundle, index_of(bundle), tmp_path / "image.f32")


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """loop.cpp, built as its CMakeLists.txt says."""
    folder = tmp_path_factory.mktemp("cpp")
    spec = find_spec("executorch")
    assert spec is not None
    assert spec.submodule_search_locations
    sdk = Path(next(iter(spec.submodule_search_locations)))
    configure = [
        "cmake",
        "-S",
        SNIPPETS,
        "-B",
        folder,
        "-DCMAKE_BUILD_TYPE=Release",
        f"-Dexecutorch_DIR={sdk / 'share' / 'cmake'}",
    ]
    for command in (configure, ["cmake", "--build", folder]):
        done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=500, check=False)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        assert "warning:" not in done.stdout + done.stderr, done.stdout + done.stderr
    return folder / "loop"


def test_cpp(compiled: Path, corrected: Bundle, tmp_path: Path) -> None:
    drawn([compiled, corrected.path], corrected, index_of(corrected), tmp_path / "image.f32")


@pytest.fixture(scope="session")
def on_a_jvm(tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    """Loop.kt, compiled against what it calls of ONNX Runtime's Java API (jvm/): a command that runs it."""
    missing = [program for program in ("kotlinc", "javac", "java") if shutil.which(program) is None]
    missing += [str(jar) for jar in JARS if not jar.exists()]
    assert not missing, f"{missing}: apt-get install -y kotlin default-jdk-headless libandroid-json-org-java"
    folder = tmp_path_factory.mktemp("jvm")
    path = ":".join(map(str, [folder / "classes", folder / "loop.jar", *JARS]))
    for command in (
        ["javac", "-d", folder / "classes", *JVM.glob("ai/onnxruntime/*.java")],
        ["kotlinc", "-cp", path, "-d", folder / "loop.jar", SNIPPETS / "Loop.kt"],
    ):
        done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=500, check=False)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        assert "Loop.kt" not in done.stdout + done.stderr, done.stderr  # a complaint names the file
    return ["java", "-cp", path, "edgesd.LoopKt"]


@pytest.mark.parametrize("name", BUNDLES)
def test_kotlin(
    name: str, on_a_jvm: list[object], tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle: Bundle = request.getfixturevalue(name)
    monkeypatch.setenv("EDGE_SD_PYTHON", sys.executable)
    monkeypatch.setenv("EDGE_SD_SESSION", str(JVM / "session.py"))
    drawn([*on_a_jvm, bundle.path], bundle, index_of(bundle), tmp_path / "image.f32")


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def origin(corrected: Bundle, tmp_path: Path) -> Iterator[str]:
    """A web server with the bundle, the snippet and ONNX Runtime Web."""
    for name, path in {"bundle.edgesd": corrected.path, "loop.mjs": SNIPPETS / "loop.mjs", **fetched()}.items():
        (tmp_path / name).symlink_to(path)
    (tmp_path / "index.html").write_text("<!doctype html><title>loop</title>")
    handler = functools.partial(_Quiet, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


# As the snippet's first lines say, with this server's addresses.
PAGE = """
const done = arguments[arguments.length - 1];
(async () => {
  const ort = await import("/ort.wasm.bundle.min.mjs");
  ort.env.wasm.numThreads = 1;
  ort.env.wasm.wasmPaths = { wasm: "/ort-wasm-simd-threaded.wasm" };
  const { draw } = await import("/loop.mjs");
  const { image, shape } = await draw(ort, async (name) => (await fetch(`bundle.edgesd/${name}`)).arrayBuffer(), 1);
  return { image: Array.from(image), shape };
})().then(done, (error) => done(String(error?.stack ?? error)));
"""


def test_browser(origin: str, corrected: Bundle, browser: webdriver.Chrome) -> None:
    browser.set_script_timeout(120)
    browser.get(f"{origin}/index.html")
    found = browser.execute_async_script(PAGE)
    assert isinstance(found, dict), found
    agrees(corrected, 1, np.array(found["image"], dtype=np.float32))
    assert found["shape"] == list(corrected.golden.trajectories[1].image.shape)  # type: ignore[union-attr]


def loop_py() -> ModuleType:
    spec = importlib.util.spec_from_file_location("loop", SNIPPETS / "loop.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


VECTORS = json.loads(Path(specified.__file__).with_name("vectors.json").read_text())["gaussian"]


def test_noise_is_the_specification_to_the_bit(tmp_path: Path) -> None:
    """In Python and in JavaScript; C++ takes the runner's header, which has a test of its own."""
    module = loop_py()
    script = tmp_path / "noise.mjs"
    script.write_text(
        f"import {{ gaussian }} from {json.dumps((SNIPPETS / 'loop.mjs').as_uri())};\n"
        "const [seed, index, row] = process.argv.slice(2);\n"
        "const values = gaussian(BigInt(seed), BigInt(index), Number(row), 3072);\n"
        "process.stdout.write(Buffer.from(values.buffer));\n"
    )
    assert len(VECTORS) >= 4
    for vector in VECTORS:
        seed, index, row = vector["seed"], vector["index"], vector["row"]
        wanted = specified.gaussian(seed, index, row, (3072,)).tobytes()
        assert module.gaussian(seed, index, row, (3072,)).tobytes() == wanted, vector
        said = subprocess.run(["node", script, str(seed), str(index), str(row)], capture_output=True, timeout=60, check=True)
        assert said.stdout == wanted, vector


def test_a_changed_file_is_refused(corrected: Bundle, tmp_path: Path) -> None:
    copy = tmp_path / "copy.edgesd"
    shutil.copytree(corrected.path, copy)
    data = bytearray((copy / "denoiser.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (copy / "denoiser.onnx").write_bytes(data)
    for command in ([sys.executable, SNIPPETS / "loop.py"], ["node", SNIPPETS / "loop.mjs"]):
        more = [fetched()["ort.wasm.bundle.min.mjs"]] if command[0] == "node" else []
        done = subprocess.run([*map(str, [*command, copy, *more])], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode != 0
        assert "denoiser.onnx has changed" in done.stderr


def test_what_nobody_compiled_says_so() -> None:
    page = (ROOT / "docs" / "INTEGRATION.md").read_text()
    row = next(line for line in page.splitlines() if "Loop.swift" in line)
    assert "**unverified**" in row
    assert "NOT VERIFIED" in (SNIPPETS / "Loop.swift").read_text()[:400]
