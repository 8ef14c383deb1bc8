"""The C++ runner (`cpp/`), built where it is first used, and kept in the user's cache.

It is compiled against the executorch wheel, which is a C++ SDK too: the installed one for this machine, the same version's
aarch64 wheel, fetched by pip, for ARM. A build is found again by a hash of the sources, executorch's version, the architecture
and the compiler's version; it holds the runner and the libraries that it needs, and moves as a whole.
"""

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from filelock import FileLock
from packaging.version import Version

from edge_sd.errors import InstallationError
from edge_sd.files import explained, fingerprint, new_folder
from edge_sd.places import home_cache
from edge_sd.runnable import Availability

SOURCES = Path(__file__).parent / "cpp"
RUNNER = "edgesd-runner"
# The first whose wheel holds libraries and headers for C++.
_OLDEST = "1.5.1"
_EXECUTORCH = 'pip install "edge-sd[executorch]"'
_SECONDS = 900
# Would change what is compiled, or how: the arithmetic must be as it is written.
_ENVIRONMENT = ("CXX", "CXXFLAGS", "CPPFLAGS", "LDFLAGS", "CPLUS_INCLUDE_PATH", "CPATH", "LIBRARY_PATH")


@dataclass(frozen=True)
class Machine:
    """What the runner is built for, and with.

    Attributes:
        name: its architecture; empty for the machine that edge-sd runs on.
        compiler: what compiles for it.
        packages: Debian's package of each program that is needed.
        toolchain: file of `cpp/` for CMake.
        emulator: what stands before the runner's arguments.
        loader: libraries of the system, its loader first, that a folder for a device without them must hold.
    """

    name: str
    compiler: str
    packages: dict[str, str]
    toolchain: str = ""
    emulator: tuple[str, ...] = ()
    loader: tuple[str, ...] = ()

    @property
    def architecture(self) -> str:
        """As `platform.machine` names it."""
        return self.name or platform.machine()


# The system's own libraries that the runner asks for, its loader aside.
_LIBRARIES = ("libc.so.6", "libm.so.6", "libdl.so.2", "libpthread.so.0", "librt.so.1", "libstdc++.so.6", "libgcc_s.so.1")
_LOADERS = {"x86_64": "ld-linux-x86-64.so.2", "aarch64": "ld-linux-aarch64.so.1"}


def _loader(architecture: str) -> tuple[str, ...]:
    return (_LOADERS[architecture], *_LIBRARIES) if architecture in _LOADERS else ()


HOST = Machine("", "g++", {"g++": "g++", "cmake": "cmake", "ninja": "ninja-build"}, loader=_loader(platform.machine()))
AARCH64 = Machine(
    "aarch64",
    "aarch64-linux-gnu-g++",
    {
        "aarch64-linux-gnu-g++": "g++-aarch64-linux-gnu",
        "cmake": "cmake",
        "ninja": "ninja-build",
        "qemu-aarch64-static": "qemu-user-static",
    },
    "aarch64.cmake",
    # The richest processor that qemu 7.2 imitates right: with its SME, XNNPACK's int8 convolutions come out wrong.
    ("qemu-aarch64-static", "-cpu", "max,sme=off", "-L", "/usr/aarch64-linux-gnu"),
    _loader("aarch64"),
)


def machine_of(architecture: str) -> Machine:
    """What the runner is built for, for a device of that architecture (as `uname -m` names it).

    Raises:
        InstallationError: it is built for no such machine.
    """
    if architecture == platform.machine():
        return HOST
    if architecture == AARCH64.architecture:
        return AARCH64
    known = " and ".join(dict.fromkeys((platform.machine(), AARCH64.architecture)))
    raise InstallationError(
        f"the C++ runner is not built for {architecture}, only for {known}",
        "use a 64-bit system on the device",
    )


def tools_available(machine: Machine, *, to_run: bool = True) -> Availability:
    """Whether everything is there that building the runner takes, and running it here. Nothing is built."""
    if sys.platform != "linux":
        return Availability(False, "the C++ runner is built on Linux only so far", "use the runtime executorch")
    try:
        found = version("executorch")
    except PackageNotFoundError:
        return Availability(False, "executorch is not installed", _EXECUTORCH)
    if Version(found) < Version(_OLDEST):
        return Availability(False, f"executorch {found} has no libraries for C++, {_OLDEST} has", _EXECUTORCH)
    wanted = {tool: package for tool, package in machine.packages.items() if to_run or tool not in machine.emulator}
    missing = {tool: package for tool, package in wanted.items() if shutil.which(tool) is None}
    if missing:
        return Availability(False, f"{', '.join(missing)} missing", f"apt-get install -y {' '.join(missing.values())}")
    return Availability(True, f"executorch {found}" + (f", emulated by {machine.emulator[0]}" if machine.emulator else ""))


def command(machine: Machine) -> list[str]:
    """How the runner is started here; built on the first call.

    Raises:
        InstallationError: a tool is missing, or the build fails; its log is named.
    """
    available = tools_available(machine)
    if not available.ok:
        raise InstallationError(f"the C++ runner: {available.detail}", available.remedy)
    return [*machine.emulator, str(build(machine) / RUNNER)]


def build(machine: Machine) -> Path:
    """The folder of the runner and its libraries; errors as `command`'s."""
    available = tools_available(machine, to_run=False)
    if not available.ok:
        raise InstallationError(f"the C++ runner: {available.detail}", available.remedy)
    folder = cache() / _key(machine)
    if ";" in f"{folder}{SOURCES}":  # CMake would write to what stands behind it
        raise InstallationError(f"the C++ runner cannot be built in {folder}: CMake takes no semicolon", "set XDG_CACHE_HOME")
    if not folder.is_dir():
        with _locked(folder):
            if not folder.is_dir():
                sdk = _aarch64_wheel() if machine.name else _installed_wheel()
                with new_folder(folder, overwrite=False) as new:
                    _compile(machine, sdk, new, _beside(folder, "log"))
    return folder


def assemble(machine: Machine, folder: Path) -> list[str]:
    """Fill a folder with all that a device needs, which may have nothing of its own (a phone); errors as `command`'s.

    Returns:
        How the runner is started from inside the folder.
    """
    source = build(machine)
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for file in source.iterdir():
            shutil.copy2(file, folder / file.name)
        for name in machine.loader:
            shutil.copy2(_ask(machine.compiler, f"-print-file-name={name}"), folder / name)
    if not machine.loader:
        return [f"./{RUNNER}"]
    return [f"./{machine.loader[0]}", "--library-path", ".", f"./{RUNNER}"]


def cache() -> Path:
    """Where builds are kept."""
    return home_cache() / "native"


def _key(machine: Machine) -> str:
    sources = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in SOURCES.iterdir() if file.is_file()}
    compiler = _ask(machine.compiler, "--version").partition("\n")[0]
    return f"{machine.architecture}-" + fingerprint([sources, version("executorch"), machine.architecture, compiler])


def _beside(folder: Path, kind: str) -> Path:
    return folder.with_name(f"{folder.name}.{kind}")


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One process makes the folder, the others wait; what a killed one left behind is cleared away."""
    with explained(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(_beside(folder, "lock")):
            for left in folder.parent.glob(f".{folder.name}.*.part"):
                shutil.rmtree(left, ignore_errors=True)
            yield


def _compile(machine: Machine, sdk: Path, folder: Path, log: Path) -> None:
    made = folder / "build"
    configure = [
        "cmake", "-S", str(SOURCES), "-B", str(made), "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release",
        f"-DCMAKE_CXX_COMPILER={shutil.which(machine.compiler)}", f"-Dexecutorch_DIR={sdk / 'share' / 'cmake'}",
    ]  # fmt: skip
    if machine.toolchain:
        configure.append(f"-DCMAKE_TOOLCHAIN_FILE={SOURCES / machine.toolchain}")
    log.unlink(missing_ok=True)
    _run(configure, log)
    _run(["cmake", "--build", str(made)], log)
    for file in (made / "bin").iterdir():
        file.rename(folder / file.name)
    shutil.rmtree(made)


def _installed_wheel() -> Path:
    spec = find_spec("executorch")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    if not folders:
        raise InstallationError("executorch is installed, but not where Python finds it", _EXECUTORCH)
    return Path(folders[0])


def _aarch64_wheel() -> Path:
    """The SDK inside the aarch64 wheel of the installed version; any Python's wheel has the same."""
    wanted = Version(version("executorch")).public
    folder = cache() / f"executorch-{wanted}-aarch64"
    if not folder.is_dir():
        with _locked(folder):
            if not folder.is_dir():
                with new_folder(folder, overwrite=False) as new:
                    _fetch(wanted, new, _beside(folder, "log"))
    return folder / "executorch"


def _fetch(wanted: str, folder: Path, log: Path) -> None:
    log.unlink(missing_ok=True)
    _run(
        [
            sys.executable, "-m", "pip", "download", f"executorch=={wanted}", "--no-deps", "--only-binary=:all:",
            "--platform", "manylinux_2_28_aarch64", "--python-version", "3.11", "--disable-pip-version-check",
            "--dest", str(folder),
        ],
        log,
        "is the package index reachable? pip is asked for executorch's aarch64 wheel",
    )  # fmt: skip
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        needed = ("executorch/include/", "executorch/lib/", "executorch/share/")
        archive.extractall(folder, [name for name in archive.namelist() if name.startswith(needed)])
    wheel.unlink()


def _run(arguments: Sequence[str], log: Path, hint: str = "") -> None:
    """Run a tool, its words into the log.

    Raises:
        InstallationError: it fails; the log and its last line are named.
    """
    environment = {
        name: value for name, value in os.environ.items() if name not in _ENVIRONMENT and not name.startswith("CMAKE_")
    }
    with log.open("ab") as out:
        out.write(f"\n$ {arguments!r}\n".encode(errors="replace"))
        out.flush()
        try:
            status = subprocess.run(  # noqa: S603 (cmake or pip, a list of arguments)
                arguments, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=environment, timeout=_SECONDS, check=False
            ).returncode
        except (OSError, subprocess.TimeoutExpired) as error:
            raise InstallationError(f"the C++ runner: {arguments[0]} does not run: {error}", "edge-sd doctor") from error
    if status:
        last = log.read_text(errors="replace").strip().rpartition("\n")[2]
        what = "fetched" if "pip" in arguments else "built"
        raise InstallationError(
            f"the C++ runner cannot be {what}: {last} (all of it: {log})", hint or "read the log; edge-sd doctor"
        )


@lru_cache
def _ask(tool: str, question: str) -> str:
    """What a compiler answers."""
    done = subprocess.run([shutil.which(tool) or tool, question], capture_output=True, text=True, timeout=60, check=False)  # noqa: S603
    return done.stdout.strip()
