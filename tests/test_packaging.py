"""Five folders, one distribution: what the wheel holds, who may import whom, and what no source may do."""

import ast
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
FOLDERS = ("edge_sd", "export", "quantize", "runtimes", "devices")

# Bottom to top; what is not named here is the core, at 0. Who stands side by side may see each other.
LAYERS = {
    "edge_sd.training": 1,
    "edge_sd.quantize": 1,
    "edge_sd.export": 2,
    "edge_sd.runtimes": 3,
    "edge_sd.devices": 4,
    "edge_sd.report": 5,
    "edge_sd.pipeline": 5,
    "edge_sd.api": 6,
    "edge_sd.cli": 7,
    "edge_sd.__main__": 8,
}
# Package → where it may be imported.
KEPT_TO = {"typer": "edge_sd.cli", "rich": "edge_sd.cli", "matplotlib": "edge_sd.report"}
# Package → the modules that wrap it; imported there inside functions only.
WRAPPED_BY = {
    "onnx": {
        "edge_sd.export.onnx",
        "edge_sd.export._qdq",
        "edge_sd.export._shared",
        "edge_sd.quantize.nncf",
        "edge_sd.runtimes.values.onnx",
    },
    "onnxscript": {"edge_sd.export.onnx"},
    "onnxruntime": {
        "edge_sd.runtimes.onnxruntime",
        "edge_sd.devices._agent",  # on boards, where nothing else of ours is
        "edge_sd.export.onnx",
        "edge_sd.quantize.nncf",
        "edge_sd.runtimes.values.onnx",
    },  # export and quantize ask it what ran where, and whether it runs
    "executorch": {"edge_sd.export.executorch", "edge_sd.runtimes.executorch", "edge_sd.runtimes.values.executorch"},
    "coremltools": {
        "edge_sd.devices.apple",
        "edge_sd.export.coreml",
        "edge_sd.export._mil",
        "edge_sd.runtimes.coreml",
        "edge_sd.runtimes.mil.program",
    },
    "diffusers": {"edge_sd.decoder"},
    "torchmetrics": set(),
    "nncf": {"edge_sd.quantize.nncf"},
    "pymoo": {"edge_sd.search.widths"},
    "torchao": set(),
    "datasets": {"edge_sd.data.columns", "edge_sd.data.shards", "edge_sd.data.webdataset"},
    "pyarrow": {"edge_sd.data.parquet"},
    "fsspec": {"edge_sd.data.hub"},
}
UNSAFE_IMPORTS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
UNSAFE_CALLS = {
    "torch.load", "yaml.load", "yaml.full_load", "yaml.unsafe_load", "os.system", "os.popen", "eval", "exec", "np.load",
}  # fmt: skip
# Not pydantic: typer itself loads it for a verb's options.
HEAVY = {
    "torch", "numpy", "safetensors", "pywt", "accelerate", "PIL", "yaml", "matplotlib", "jinja2", "psutil", "onnx", "onnxscript",
    "onnxruntime", "executorch", "coremltools", "diffusers", "torchao", "datasets", "pyarrow",
}  # fmt: skip


def module_name(file: Path, root: Path = ROOT) -> str:
    """export/onnx.py → edge_sd.export.onnx."""
    parts = file.relative_to(root).with_suffix("").parts
    parts = parts[:-1] if parts[-1] == "__init__" else parts
    return ".".join(parts if parts[0] == "edge_sd" else ("edge_sd", *parts))


def sources(root: Path = ROOT) -> dict[str, Path]:
    """Every module of the five folders by its name."""
    return {module_name(file, root): file for folder in FOLDERS for file in sorted((root / folder).rglob("*.py"))}


SOURCES = sources()
TREES = {name: ast.parse(file.read_text(), str(file)) for name, file in SOURCES.items()}


@cache
def imports(name: str) -> list[tuple[str, bool]]:
    """(module, whether at the module's top) for everything that a module imports; `from a import b` is a.b."""
    return list(_imports(name))


def _imports(name: str) -> Iterator[tuple[str, bool]]:
    in_functions = {
        id(node)
        for function in ast.walk(TREES[name])
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for node in ast.walk(function)
    }
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = name.split(".") if SOURCES[name].name == "__init__.py" else name.split(".")[:-1]
            base = [*package[: len(package) + 1 - node.level], node.module] if node.level else [node.module]
            found = [".".join([*(part for part in base if part), alias.name]) for alias in node.names]
        else:
            continue
        for module in found:
            yield module, id(node) not in in_functions


def layer(module: str) -> int:
    return max((rank for package, rank in LAYERS.items() if f"{module}.".startswith(f"{package}.")), default=0)


def dotted(node: ast.expr) -> str:
    """The written name of what is called: torch.load, eval; empty for anything else."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def setuptools_settings() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]  # type: ignore[no-any-return]


# What is shipped

OF_DATA = {"edge_sd.devices.web", "edge_sd.pretrained.emoji64", "edge_sd.runtimes.cpp"}  # folders without a module


def test_every_package_folder_is_declared() -> None:
    found = {name for name, file in SOURCES.items() if file.name == "__init__.py"}
    assert set(setuptools_settings()["packages"]) == found | OF_DATA


def test_every_declared_package_lies_where_package_dir_says() -> None:
    settings = setuptools_settings()
    for package in set(settings["packages"]) - OF_DATA:
        root, parts = package, []
        while root not in settings["package-dir"]:
            root, _, last = root.rpartition(".")
            parts.insert(0, last)
        folder = ROOT.joinpath(settings["package-dir"][root], *parts)
        assert (folder / "__init__.py").is_file(), package
        assert module_name(folder / "__init__.py") == package


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> tuple[set[str], Path]:
    """The names in a wheel built from a copy of the tree as it stands, and the copy: building leaves folders behind."""
    copy = tmp_path_factory.mktemp("tree")
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file() and not name.startswith("tests/"):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
    done = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(copy / "dist"), str(copy)],
        cwd=copy, check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert "Warning" not in done.stdout + done.stderr, done.stderr  # whoever installs it would read it first
    (built,) = (copy / "dist").glob("*.whl")
    with zipfile.ZipFile(built) as archive:
        return set(archive.namelist()), copy


def test_the_wheel_holds_nothing_but_edge_sd(wheel: tuple[set[str], Path]) -> None:
    tops = {name.partition("/")[0] for name in wheel[0]}
    assert len(tops) == 2, tops
    assert "edge_sd" in tops
    assert next(top for top in tops if top != "edge_sd").endswith(".dist-info")


def test_the_wheel_holds_every_source(wheel: tuple[set[str], Path]) -> None:
    names, copy = wheel
    expected = {
        name.replace(".", "/") + ("/__init__.py" if file.name == "__init__.py" else ".py") for name, file in sources(copy).items()
    }
    assert {name for name in names if name.endswith(".py")} == expected


def test_the_wheel_holds_what_is_no_source(wheel: tuple[set[str], Path]) -> None:
    names, copy = wheel
    found = [
        file.relative_to(copy)
        for folder in FOLDERS
        for file in (copy / folder).rglob("*")
        if file.is_file() and file.suffix != ".py"
    ]
    other = {file.as_posix() if file.parts[0] == "edge_sd" else f"edge_sd/{file.as_posix()}" for file in found}
    assert {"edge_sd/py.typed", "edge_sd/pipeline/demo.yaml", "edge_sd/runtimes/cpp/main.cpp"} < other
    assert {"edge_sd/report/report.html.j2", "edge_sd/report/report.md.j2"} <= set(other)
    assert {name for name in names if not name.endswith(".py") and name.startswith("edge_sd/")} == other


# Who imports whom


def test_nobody_imports_upward() -> None:
    upward = {
        f"{name} imports {module}"
        for name in TREES
        if name != "edge_sd"  # the package shows type checkers its functions, and imports nothing
        for module, _ in imports(name)
        if module.startswith("edge_sd") and layer(module) > layer(name)
    }
    assert not upward


@pytest.mark.parametrize(("package", "home"), KEPT_TO.items())
def test_the_terminal_and_the_figures_stay_in_their_folders(package: str, home: str) -> None:
    abroad = {
        name
        for name in TREES
        for module, _ in imports(name)
        if module.split(".")[0] == package and not f"{name}.".startswith(f"{home}.")
    }
    assert not abroad


@pytest.mark.parametrize(("package", "wrappers"), WRAPPED_BY.items())
def test_a_heavy_package_is_imported_late_and_by_its_wrappers_alone(package: str, wrappers: set[str]) -> None:
    wrong = {
        name
        for name in TREES
        for module, at_top in imports(name)
        if module.split(".")[0] == package and (at_top or name not in wrappers)
    }
    assert not wrong


@pytest.mark.parametrize(
    "arguments", [["--help"], ["train", "--help"], ["export", "--help"], ["inspect", "--help"], ["--version"]]
)
def test_help_loads_nothing_heavy(arguments: list[str], tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from edge_sd.cli.main import main\n"
        f"sys.argv = ['edge-sd', *{arguments!r}]\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        "print(*{name.split('.')[0] for name in sys.modules}, file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    loaded = HEAVY & set(done.stderr.split())
    assert not loaded


def test_a_runtime_is_found_without_torch(tmp_path: Path) -> None:
    """What is measured is the runtime's own memory, and the doctor can name a torch that is broken."""
    code = (
        "import sys\n"
        "import edge_sd.devices._work, edge_sd.cli.doctor\n"
        "from edge_sd.runtimes import find_runtime, rows_of, sample_bundle\n"
        "find_runtime('onnxruntime')\n"
        "print(*{name.split('.')[0] for name in sys.modules})\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "numpy" in done.stdout.split()
    assert not {"torch", "executorch", "coremltools", "diffusers"} & set(done.stdout.split())


# What no source may do


def test_no_source_runs_what_it_reads() -> None:
    found = set()
    for name, tree in TREES.items():
        found |= {f"{name} imports {module}" for module, _ in imports(name) if module.split(".")[0] in UNSAFE_IMPORTS}
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call):
                continue
            # A pickle that may hold tensors alone runs nothing.
            tensors_alone = any(word.arg == "weights_only" and getattr(word.value, "value", 0) is True for word in node.keywords)
            if dotted(node.func) in UNSAFE_CALLS and not (dotted(node.func) == "torch.load" and tensors_alone):
                found.add(f"{name}:{node.lineno} calls {dotted(node.func)}")
            for keyword in node.keywords:
                if keyword.arg in ("shell", "allow_pickle") and getattr(keyword.value, "value", True):
                    found.add(f"{name}:{node.lineno} gives {keyword.arg}")
    assert not found


def test_every_error_says_what_to_try() -> None:
    """A message and a hint: the command line prints two lines."""
    errors = {"EdgeSDError", "UsageError", "ParityError", "DeviceError", "InstallationError"}
    found = {
        f"{name}:{node.lineno}"
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and dotted(node.func) in errors and len(node.args) + len(node.keywords) < 2
    }
    assert not found
