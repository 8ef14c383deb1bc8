"""The cache: what is mapped is what would be in memory; it is made once, by one process, and never half."""

import errno
import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from edge_sd.api.images import image_settings, read_images
from edge_sd.cli._console import TERMINAL
from edge_sd.data import DataConfig, ImageData, open_data
from edge_sd.errors import EdgeSDError

SIZE = 8


def assert_same(data: ImageData, other: ImageData) -> None:
    np.testing.assert_array_equal(data.pixels, other.pixels)
    np.testing.assert_array_equal(data.labels, other.labels)  # type: ignore[arg-type]
    assert (data.digest, data.about, data.classes, data.skipped, data.crop) == (
        other.digest, other.about, other.classes, other.skipped, other.crop,
    )  # fmt: skip


@pytest.fixture
def folder(pictures: Any, write_folder: Any, tmp_path: Path) -> Path:
    """Seven images, one of them broken, in two classes."""
    images = pictures(7)
    images[3] = b"broken"
    return write_folder(tmp_path / "pets", images, ["cat", "dog", "cat", "dog", "dog", "dog", "cat"])  # type: ignore[no-any-return]


def settings(folder: Path, **changes: Any) -> DataConfig:
    return DataConfig(**{"source": str(folder), "labels": True, "max_broken": 1, **changes})


def test_mapped_is_as_in_memory(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_SD_CACHE", str(tmp_path / "default"))
    held = open_data(settings(folder), SIZE)
    assert not (tmp_path / "default").exists()
    for data in (
        open_data(settings(folder, cache=tmp_path / "cache"), SIZE),
        open_data(settings(folder, cache=tmp_path / "cache"), SIZE),
        open_data(settings(folder), SIZE, memory=6 * 3 * SIZE * SIZE),
    ):
        assert_same(data, held)
        assert isinstance(data.pixels.base, np.memmap)
        assert not data.pixels.flags.writeable
    assert len(list((tmp_path / "default").glob("*.safetensors"))) == 1
    unlabelled = open_data(settings(folder, labels=False, cache=tmp_path / "cache"), SIZE)
    assert unlabelled.labels is None


def test_a_set_that_fits_is_held_in_memory(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_SD_CACHE", str(tmp_path / "default"))
    open_data(settings(folder), SIZE, memory=7 * 3 * SIZE * SIZE)
    assert not (tmp_path / "default").exists()


def test_the_file_is_one_that_safetensors_reads(folder: Path, tmp_path: Path) -> None:
    data = open_data(settings(folder, cache=tmp_path / "cache"), SIZE)
    (file,) = (tmp_path / "cache").glob("*.safetensors")
    tensors = load_file(file)
    np.testing.assert_array_equal(tensors["pixels"], data.pixels)
    np.testing.assert_array_equal(tensors["labels"], data.labels)  # type: ignore[arg-type]
    assert json.loads(tensors["record"].tobytes())["classes"] == ["cat", "dog"]


def test_settings_and_files_decide_which_file_it_is(folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"

    def files(size: int = SIZE, **changes: Any) -> int:
        open_data(settings(folder, cache=cache, resize=True, **changes), size)
        return len(list(cache.glob("*.safetensors")))

    assert [files(), files(max_broken=3), files(16), files(crop=2), files(labels=False), files(limit=2), files()] == [
        1,
        1,
        2,
        3,
        4,
        5,
        5,
    ]
    os.utime(folder / "cat" / "0000.png", ns=(1, 1))
    assert files() == 6


def test_fewer_broken_images_are_asked_of_a_cache_too(folder: Path, tmp_path: Path) -> None:
    open_data(settings(folder, cache=tmp_path / "cache"), SIZE)
    with pytest.raises(EdgeSDError, match=r"0003\.png is not a readable image"):
        open_data(settings(folder, cache=tmp_path / "cache", max_broken=0), SIZE)


@pytest.mark.parametrize("share", [0, 0.001, 0.3, 0.99])
def test_a_damaged_cache_is_made_again(share: float, folder: Path, tmp_path: Path) -> None:
    first = open_data(settings(folder, cache=tmp_path / "cache"), SIZE)
    held = ImageData(first.pixels.copy(), *list(vars(first).values())[1:])
    (file,) = (tmp_path / "cache").glob("*.safetensors")
    content = file.read_bytes()
    file.unlink()  # it may be mapped
    file.write_bytes(content[: int(share * len(content))])
    assert_same(open_data(settings(folder, cache=tmp_path / "cache"), SIZE), held)


def test_a_cache_can_be_read_by_whom_the_umask_allows(folder: Path, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        open_data(settings(folder, cache=tmp_path / "cache"), SIZE)
    finally:
        os.umask(before)
    (file,) = (tmp_path / "cache").glob("*.safetensors")
    assert stat.S_IMODE(file.stat().st_mode) == 0o640


def test_a_cache_that_may_not_be_read_is_named_and_not_made_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it is for another person; to an administrator, who may run the tests, no file is closed."""
    open_data(settings(folder, cache=tmp_path / "cache"), SIZE)
    (file,) = (tmp_path / "cache").glob("*.safetensors")
    opened = Path.open

    def refuse(path: Path, *arguments: Any, **options: Any) -> Any:
        if path == file:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, *arguments, **options)

    made = file.stat().st_mtime_ns
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(EdgeSDError, match=rf"cannot read {re.escape(str(file))}: Permission denied") as caught:
        open_data(settings(folder, cache=tmp_path / "cache"), SIZE)
    assert "--cache" in caught.value.hint
    assert file.stat().st_mtime_ns == made


def test_a_failed_reading_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(EdgeSDError, match="not a readable image"):
        open_data(settings(folder, cache=tmp_path / "cache", max_broken=0), SIZE)
    assert [file.suffix for file in (tmp_path / "cache").iterdir()] in ([], [".lock"])


def test_a_full_disk_is_named(pictures: Any, write_folder: Any, tiny_disk: Path, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "pets", pictures(400))
    with pytest.raises(EdgeSDError, match="cannot keep decoded images") as caught:
        open_data(DataConfig(source=str(folder), cache=tiny_disk / "cache"), SIZE)
    assert "--cache" in caught.value.hint
    assert not list((tiny_disk / "cache").glob("*.part"))


# Processes. Each decoding of an image adds a byte to a file.

CODE = """
import sys, time
import edge_sd.data.sources as sources
from edge_sd.data import DataConfig, open_data
source, cache, log, pause = sys.argv[1:]
decode = sources.decode
def slow(*arguments, **options):
    with open(log, "a") as file:
        file.write(".")
    time.sleep(float(pause))
    return decode(*arguments, **options)
sources.decode = slow
print(open_data(DataConfig(source=source, cache=cache), 8, processes=3).digest)
"""


def start(folder: Path, tmp_path: Path, pause: float) -> subprocess.Popen[str]:
    arguments = [str(folder), str(tmp_path / "cache"), str(tmp_path / "log"), str(pause)]
    return subprocess.Popen([sys.executable, "-c", CODE, *arguments], stdout=subprocess.PIPE, text=True)


def test_of_several_processes_one_decodes(pictures: Any, write_folder: Any, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "pets", pictures(30))
    processes = [start(folder, tmp_path, 0.1) for _ in range(3)]
    digests = {process.communicate()[0] for process in processes}
    assert digests == {open_data(DataConfig(source=str(folder)), SIZE).digest + "\n"}
    assert (tmp_path / "log").stat().st_size == 30


def test_the_command_knows_how_many_processes_there_are_and_one_speaks(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = image_settings({"source": str(folder), "max_broken": 1, "seed": 7})
    monkeypatch.setenv("EDGE_SD_CACHE", str(tmp_path / "cache"))
    alone = read_images(settings, SIZE, TERMINAL)
    assert not (tmp_path / "cache").exists()
    assert "left out 1 of 7 images" in capsys.readouterr().err
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert_same(read_images(settings, SIZE, TERMINAL), alone)
    assert len(list((tmp_path / "cache").glob("*.safetensors"))) == 1
    assert "left out" not in capsys.readouterr().err


def test_a_killed_process_leaves_no_half_file_and_the_next_one_starts_anew(
    pictures: Any, write_folder: Any, tmp_path: Path
) -> None:
    folder = write_folder(tmp_path / "pets", pictures(60))
    process = start(folder, tmp_path, 0.2)
    while not (tmp_path / "log").exists() or (tmp_path / "log").stat().st_size < 30:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not list((tmp_path / "cache").glob("*.safetensors"))
    assert len(list((tmp_path / "cache").glob(".*.part"))) == 1
    data = open_data(DataConfig(source=str(folder), cache=tmp_path / "cache"), SIZE)
    assert data.digest == open_data(DataConfig(source=str(folder)), SIZE).digest
    assert not list((tmp_path / "cache").glob(".*.part"))
