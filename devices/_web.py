"""ONNX Runtime Web: fetched once by npm, checked against the hash that is written here, and kept in the user's cache.

npm is the registry's ordinary client, and takes the user's own configuration: a mirror, a proxy. Only the four files that the
page loads are kept. From then on nothing is fetched.
"""

import base64
import hashlib
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import Final

from filelock import FileLock

from edge_sd.errors import InstallationError
from edge_sd.files import explained, new_folder, write_bytes
from edge_sd.runnable import Availability
from edge_sd.runtimes._native import cache

VERSION: Final = "1.30.0"
# Of the package's archive, as the registry tells it; whoever changes the version changes this.
INTEGRITY: Final = "sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
# By backend: the module, and the WebAssembly that it loads. wasm has a build of its own, without what WebGPU's costs it.
FILES: Final = {
    "wasm": ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"),
    "webgpu": ("ort.webgpu.bundle.min.mjs", "ort-wasm-simd-threaded.asyncify.wasm"),
}
_PACKAGE = f"onnxruntime-web@{VERSION}"
_REMEDY = "apt-get install -y npm, or Node.js from nodejs.org"
_SECONDS = 900


def available() -> Availability:
    """Whether ONNX Runtime Web is in the cache, or npm is there to fetch it. Nothing is fetched."""
    if _folder().is_dir():
        return Availability(True, f"onnxruntime-web {VERSION}")
    if shutil.which("npm") is None:
        return Availability(False, f"npm is missing, which fetches onnxruntime-web {VERSION}", _REMEDY)
    return Availability(True, f"onnxruntime-web {VERSION}, which npm fetches when it is first used")


def fetched() -> dict[str, Path]:
    """The files of `FILES` by name; from npm the first time.

    Raises:
        InstallationError: npm is missing, cannot reach its registry, or brought something else than was expected.
    """
    folder = _folder()
    if not folder.is_dir():
        with explained(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(folder.with_name(f"{folder.name}.lock")):
                for left in folder.parent.glob(f".{folder.name}.*.part"):  # of a process that was killed
                    shutil.rmtree(left, ignore_errors=True)
                if not folder.is_dir():
                    _fetch(folder)
    return {name: folder / name for pair in FILES.values() for name in pair}


def _folder() -> Path:
    return cache().parent / "web" / f"onnxruntime-web-{VERSION}"


def _fetch(folder: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="edge-sd-") as temporary:
        archive = _pack(Path(temporary))
        found = "sha512-" + base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
        if found != INTEGRITY:
            raise InstallationError(
                f"npm brought a {_PACKAGE} that is not the one that was tested: its hash is {found}, not {INTEGRITY}",
                "npm config get registry: is it the one that you mean?",
            )
        with new_folder(folder, overwrite=False) as new, tarfile.open(archive) as package:
            for name in (name for pair in FILES.values() for name in pair):
                member = package.extractfile(f"package/dist/{name}")
                assert member is not None  # noqa: S101 (the hash says what is in it)
                write_bytes(new / name, member.read())


def _pack(folder: Path) -> Path:
    """The package's archive, in an empty folder."""
    npm = shutil.which("npm")
    if npm is None:
        raise InstallationError(f"npm is missing, which fetches {_PACKAGE}", _REMEDY)
    arguments = [npm, "pack", _PACKAGE, "--pack-destination", str(folder), "--ignore-scripts", "--loglevel", "error"]
    try:
        done = subprocess.run(  # noqa: S603 (a list of arguments)
            arguments, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InstallationError(f"npm does not run: {error}", _REMEDY) from error
    archives = list(folder.glob("*.tgz"))
    if done.returncode or len(archives) != 1:
        said = [line for line in done.stderr.splitlines() if line.strip() and "A complete log" not in line]
        raise InstallationError(
            f"npm cannot fetch {_PACKAGE}: {' / '.join(said[:3]) or f'exit code {done.returncode}'}",
            "is its registry reachable? npm ping",
        )
    return archives[0]
