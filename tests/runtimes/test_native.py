"""The C++ runner: it is built when it is first used, it draws the same noise to the bit, and it refuses what is damaged."""

import json
import os
import shutil
import struct
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_sd.diffusion import gaussian
from edge_sd.errors import InstallationError
from edge_sd.runtimes import _native
from edge_sd.runtimes._native import AARCH64, HOST, Machine

VECTORS = json.loads(files("edge_sd.diffusion").joinpath("vectors.json").read_text())
MACHINES = pytest.mark.parametrize("machine", [HOST, AARCH64], ids=["host", "aarch64"])


def noise(machine: Machine, seed: int, index: int, row: int, count: int) -> np.ndarray:
    words = [*_native.command(machine), "noise", *map(str, (seed, index, row, count))]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return np.array([int(line, 16) for line in done.stdout.split()], dtype=np.uint32)


# Noise


@MACHINES
@pytest.mark.parametrize("case", VECTORS["gaussian"])
def test_its_noise_is_that_of_the_test_vectors(case: dict[str, Any], machine: Machine) -> None:
    bits = noise(machine, case["seed"], case["index"], case["row"], 3072)
    assert [f"{value:08x}" for value in bits[:8]] == case["values"]
    assert int(bits.astype(np.uint64).sum()) % 2**32 == case["sum"]


@MACHINES
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.integers(-1, 2**32 - 2), st.integers(1, 41))
def test_its_noise_is_ours_for_any_seed_and_any_row(machine: Machine, seed: int, index: int, row: int, count: int) -> None:
    np.testing.assert_array_equal(noise(machine, seed, index, row, count), gaussian(seed, index, row, (count,)).view(np.uint32))


@MACHINES
def test_its_noise_is_ours_over_a_million_values(machine: Machine) -> None:
    """Tails that few values reach, too."""
    np.testing.assert_array_equal(noise(machine, 9, 1, 2, 2**20), gaussian(9, 1, 2, (2**20,)).view(np.uint32))


# Arguments


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "say what to do"),
        (["fly"], "unknown mode fly"),
        (["noise", "1", "2", "3"], "noise takes"),
        (["noise", "-1", "0", "0", "1"], "SEED is a number"),
        (["noise", "18446744073709551616", "0", "0", "1"], "SEED is a number"),
        (["noise", "1", "0", "4294967295", "1"], "ROW is a number"),
        (["serve"], "--program is missing"),
        (["serve", "--program"], "--program needs a value"),
        (["serve", "--program", "a:b", "--threads", "0"], "--threads is a number"),
        (["serve", "--program", "a:b", "--threads", "1", "--threads", "1"], "given twice"),
        (["prove", "--speed", "9"], "unknown option --speed"),
    ],
)
def test_wrong_arguments_are_named_with_exit_code_2(words: list[str], said: str) -> None:
    done = subprocess.run([*_native.command(HOST), *words], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert said in done.stderr
    assert "usage: edgesd-runner serve" in done.stderr
    assert not done.stdout


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("nowhere.pte:forward", "cannot read nowhere.pte: No such file"),
        ("nowhere.pte", "given as FILE:METHOD, unlike nowhere.pte"),
        ("nowhere.pte:", "given as FILE:METHOD"),
        (":forward", "given as FILE:METHOD"),
    ],
)
def test_a_program_that_is_not_there_is_named_with_exit_code_1(program: str, said: str, tmp_path: Path) -> None:
    words = [*_native.command(HOST), "serve", "--program", program]
    done = subprocess.run(words, capture_output=True, input=b"", cwd=tmp_path, check=False)
    assert done.returncode == 1
    assert said in done.stderr.decode()
    status, length = struct.unpack("<2I", done.stdout[:8])
    assert (status, length) == (1, len(done.stdout) - 8)
    assert said in json.loads(done.stdout[8:])["message"]


# Building


@MACHINES
def test_a_missing_tool_is_named_with_the_command_that_installs_it(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    found = _native.tools_available(machine)
    assert not found.ok
    assert found.detail == f"{', '.join(machine.packages)} missing"
    assert found.remedy == f"apt-get install -y {' '.join(machine.packages.values())}"
    with pytest.raises(InstallationError, match="missing") as caught:
        _native.command(machine)
    assert caught.value.hint == found.remedy
    with pytest.raises(InstallationError, match="missing") as caught:  # a device of that kind needs no emulator
        _native.build(machine)
    assert "qemu" not in caught.value.hint


def test_an_executorch_without_libraries_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_native, "version", lambda name: "1.4.1")
    found = _native.tools_available(HOST)
    assert not found.ok
    assert "1.4.1 has no libraries" in found.detail
    assert found.remedy.startswith("pip install")


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, of a name that a shell or a linker might stumble over."""
    path = tmp_path / "a cache, it's"
    monkeypatch.setenv("XDG_CACHE_HOME", str(path))
    return path / "edge-sd" / "native"


def test_several_processes_build_it_once_and_sweep_up_what_a_killed_one_left(own_cache: Path) -> None:
    folder = own_cache / _native._key(HOST)
    left = own_cache / f".{folder.name}.killed.part"
    (left / "build").mkdir(parents=True)
    code = "from edge_sd.runtimes._native import HOST, command; print(command(HOST)[0])"
    environment = {**os.environ, "CXXFLAGS": "-ffast-math -no-such-option"}  # the runner's arithmetic is not the user's choice
    running = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd="/", env=environment)
        for _ in range(2)
    ]
    assert {process.communicate()[0].strip() for process in running} == {str(folder / "edgesd-runner")}
    assert [process.returncode for process in running] == [0, 0]
    log = folder.with_name(f"{folder.name}.log").read_text()
    assert log.count("$ ['cmake', '--build'") == 1
    assert {path.name for path in own_cache.iterdir()} <= {folder.name, f"{folder.name}.log", f"{folder.name}.lock"}
    assert {path.name for path in folder.iterdir()} > {"edgesd-runner", "libexecutorch.so", "libexecutorch_backend_xnnpack.so"}
    moved = shutil.copytree(folder, own_cache / "moved")
    done = subprocess.run([moved / "edgesd-runner", "noise", "0", "0", "-1", "1"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == VECTORS["gaussian"][0]["values"][0]


def test_a_build_that_fails_names_its_log_and_leaves_nothing(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = shutil.copytree(_native.SOURCES, tmp_path / "cpp")
    (broken / "main.cpp").write_text("this is no C++")
    monkeypatch.setattr(_native, "SOURCES", broken)
    with pytest.raises(InstallationError, match=r"cannot be built: .* \(all of it: (.*\.log)\)") as caught:
        _native.build(HOST)
    log = Path(caught.value.message.partition("all of it: ")[2].rstrip(")"))
    assert "this is no C++" in log.read_text()
    assert {path.suffix for path in own_cache.iterdir()} <= {".log", ".lock"}


def test_a_wheel_that_cannot_be_fetched_is_named_with_its_log(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(InstallationError, match=r"cannot be fetched: .*executorch.*aarch64\.log") as caught:
        _native.build(AARCH64)
    assert "package index" in caught.value.hint
    assert {path.suffix for path in own_cache.iterdir()} <= {".log", ".lock"}


def test_a_folder_that_cmake_cannot_name_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a;b"))
    with pytest.raises(InstallationError, match="semicolon"):
        _native.build(HOST)
    assert not list(tmp_path.iterdir())


def test_another_source_is_another_build(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = _native._key(HOST)
    changed = shutil.copytree(_native.SOURCES, tmp_path / "cpp")
    monkeypatch.setattr(_native, "SOURCES", changed)
    assert _native._key(HOST) == before
    with (changed / "noise.h").open("a") as file:
        file.write("\n")
    assert _native._key(HOST) != before
    assert _native._key(AARCH64).startswith("aarch64-")


# A folder for a device


def test_a_folder_for_a_phone_needs_nothing_of_the_device(tmp_path: Path) -> None:
    """Emulated without a system's libraries to fall back on (no -L)."""
    words = _native.assemble(AARCH64, tmp_path / "phone")
    done = subprocess.run(
        ["qemu-aarch64-static", *words, "noise", "0", "0", "-1", "1"],
        cwd=tmp_path / "phone", capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == VECTORS["gaussian"][0]["values"][0]
    assert words[0] == "./ld-linux-aarch64.so.1"
    assert sum(file.stat().st_size for file in (tmp_path / "phone").iterdir()) < 30e6


def test_a_folder_for_this_kind_of_machine_runs(tmp_path: Path) -> None:
    words = _native.assemble(HOST, tmp_path / "board")
    done = subprocess.run(
        [*words, "noise", "0", "0", "-1", "1"], cwd=tmp_path / "board", capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == VECTORS["gaussian"][0]["values"][0]
