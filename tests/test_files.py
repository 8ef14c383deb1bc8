"""Files and folders at the worst moment: a full disk, an exception, a kill. A reader finds the old one or the new one."""

import errno
import json
import os
import re
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from pydantic import BaseModel

from edge_sd import files
from edge_sd.errors import EdgeSDError, ExitCode, UsageError
from edge_sd.files import (
    explained,
    fingerprint,
    new_folder,
    parse_model,
    read_model,
    read_tensors,
    sha256,
    tensors_digest,
    write_bytes,
    write_model,
    write_tensors,
    write_text,
)

arrays = npst.arrays(np.float32, npst.array_shapes(min_dims=0, min_side=0), elements=st.floats(-9, 9, width=32))
tables = st.dictionaries(st.text("abcxyz.", min_size=1), arrays, max_size=4)


class Note(BaseModel):
    """A schema for these tests."""

    title: str
    pages: int = 0


def contents(folder: Path) -> dict[str, str]:
    """Everything below a folder, hidden names too."""
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def kill_when_it_says_so(code: str, *arguments: Path) -> None:
    """Run Python code in a process that prints a line and waits, and is then killed."""
    process = subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "now\n"
    process.kill()
    process.stdout.close()
    assert process.wait() == -signal.SIGKILL


# One file


def test_a_file_is_written_with_the_folders_above_it(tmp_path: Path) -> None:
    write_bytes(tmp_path / "a" / "b" / "file", b"\x00\xff")
    assert (tmp_path / "a" / "b" / "file").read_bytes() == b"\x00\xff"
    write_text(tmp_path / "a" / "b" / "file", "ᾱ, second edition")
    assert (tmp_path / "a" / "b" / "file").read_text("utf-8") == "ᾱ, second edition"
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["file"]


def test_a_file_can_be_read_by_whom_the_umask_allows(tmp_path: Path) -> None:
    """A temporary file is its owner's alone; what it becomes must not be."""
    before = os.umask(0o027)
    try:
        write_bytes(tmp_path / "file", b"")
        with new_folder(tmp_path / "folder", overwrite=False):
            pass
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o750


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), KeyboardInterrupt(), MemoryError()])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    call: str, error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_text(tmp_path / "file", "old")

    def fail(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(*((files.os, "fsync") if call == "fsync" else (Path, "replace")), fail)
    expected = EdgeSDError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected, match="cannot write .*file: Input/output error" if isinstance(error, OSError) else None):
        write_text(tmp_path / "file", "new")
    monkeypatch.undo()
    assert contents(tmp_path) == {"file": "old"}


def test_a_kill_before_the_rename_leaves_the_old_file(tmp_path: Path) -> None:
    write_text(tmp_path / "file", "old")
    code = """
import os, sys, time
from pathlib import Path
from edge_sd.files import write_text
os.fsync = lambda handle: (print("now", flush=True), time.sleep(60))
write_text(Path(sys.argv[1]), "new")
"""
    kill_when_it_says_so(code, tmp_path / "file")
    assert (tmp_path / "file").read_text() == "old"
    write_text(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "new"


def test_places_where_nothing_can_be_written(tmp_path: Path) -> None:
    write_text(tmp_path / "file", "")
    (tmp_path / "folder").mkdir()
    for place in (tmp_path / "file" / "below", tmp_path / "folder", Path("/proc/edge-sd")):
        with pytest.raises(EdgeSDError, match=f"cannot write {place}: ") as caught:
            write_text(place, "text")
        assert caught.value.code == ExitCode.FAILURE
        assert caught.value.hint
    assert contents(tmp_path) == {"file": ""}


def test_a_full_disk_is_named_and_the_old_file_left(tiny_disk: Path) -> None:
    write_text(tiny_disk / "file", "old")
    for big in (100_000, 10_000_000):
        with pytest.raises(EdgeSDError, match=f"no space left on the disk of {tiny_disk / 'file'}") as caught:
            write_bytes(tiny_disk / "file", bytes(big))
        assert "free some space" in caught.value.hint
        assert contents(tiny_disk) == {"file": "old"}
    write_bytes(tiny_disk / "file", bytes(1000))


def test_tensors_on_a_full_disk_leave_the_old_file(tiny_disk: Path) -> None:
    write_tensors(tiny_disk / "file", {"x": np.arange(5.0)}, Note(title="old"))
    with pytest.raises(EdgeSDError, match="no space left"):
        write_tensors(tiny_disk / "file", {"x": np.zeros(100_000)}, Note(title="new"))
    assert read_tensors(Note, tiny_disk / "file")[0].title == "old"
    assert [path.name for path in tiny_disk.iterdir()] == ["file"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_quota_is_a_full_disk(number: int) -> None:
    with pytest.raises(EdgeSDError, match="no space left on the disk of out"), explained(Path("out")):
        raise OSError(number, os.strerror(number))


def test_other_errors_pass_unexplained() -> None:
    with pytest.raises(ZeroDivisionError), explained(Path("out")):
        raise ZeroDivisionError
    with pytest.raises(UsageError, match="mine"), explained(Path("out")):
        raise UsageError("mine", "yours")


# A folder


def test_a_new_folder_takes_its_place_when_the_block_ends(tmp_path: Path) -> None:
    with new_folder(tmp_path / "a" / "out", overwrite=False) as folder:
        write_text(folder / "file", "new")
        assert not (tmp_path / "a" / "out").exists()
    assert contents(tmp_path) == {"a/out/file": "new"}
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["out"]


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_exists_is_not_replaced_unasked(kind: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_text(out / "file" if kind == "folder" else out, "old")
    with pytest.raises(UsageError, match=f"{out} exists") as caught, new_folder(out, overwrite=False):
        pytest.fail("the block was entered")
    assert "--overwrite" in caught.value.hint
    assert contents(tmp_path) == {"out/file" if kind == "folder" else "out": "old"}


@pytest.mark.parametrize("kind", ["folder", "empty folder", "file", "link to a folder"])
@pytest.mark.parametrize("exchange", [True, False])
def test_what_exists_is_replaced_when_asked_and_nothing_is_left_over(
    kind: str, exchange: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one exchange on Linux, and by two renames where a system has none."""
    if not exchange:
        monkeypatch.setattr(files.ctypes, "CDLL", lambda *arguments, **options: object())
    place, out = tmp_path / "place", tmp_path / "place" / "out"
    place.mkdir()
    if kind == "folder":
        write_text(out / "deep" / "old", "old")
    elif kind == "empty folder":
        out.mkdir()
    elif kind == "file":
        write_text(out, "old")
    else:
        write_text(tmp_path / "elsewhere" / "old", "old")
        out.symlink_to(tmp_path / "elsewhere")
    with new_folder(out, overwrite=True) as folder:
        write_text(folder / "new", "new")
    assert [path.name for path in place.iterdir()] == ["out"]
    assert contents(out) == {"new": "new"}
    if kind == "link to a folder":
        assert contents(tmp_path / "elsewhere") == {"old": "old"}


def test_a_reader_never_finds_the_place_empty(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with new_folder(out, overwrite=False) as folder:
        write_text(folder / "0", "")
    missing, done = [], threading.Event()

    def look() -> None:
        while not done.is_set():
            if not out.is_dir():
                missing.append(1)

    reader = threading.Thread(target=look)
    reader.start()
    for round_ in range(100):
        with new_folder(out, overwrite=True) as folder:
            (folder / str(round_)).touch()
    done.set()
    reader.join()
    assert not missing
    assert list(contents(out)) == ["99"]


@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt(), EdgeSDError("mine", "yours")])
@pytest.mark.parametrize("old", [True, False])
def test_an_exception_in_the_block_leaves_all_as_it_was(old: bool, error: BaseException, tmp_path: Path) -> None:
    if old:
        write_text(tmp_path / "out" / "file", "old")

    def half_way() -> None:
        with new_folder(tmp_path / "out", overwrite=True) as folder:
            write_text(folder / "file", "new")
            raise error

    with pytest.raises(type(error)):
        half_way()
    assert contents(tmp_path) == ({"out/file": "old"} if old else {})
    assert [path.name for path in tmp_path.iterdir()] == (["out"] if old else [])


def test_a_kill_in_the_block_leaves_the_old_folder(tmp_path: Path) -> None:
    write_text(tmp_path / "out" / "file", "old")
    code = """
import sys, time
from pathlib import Path
from edge_sd.files import new_folder
with new_folder(Path(sys.argv[1]), overwrite=True) as folder:
    (folder / "file").write_text("half of the n")
    print("now", flush=True)
    time.sleep(60)
"""
    kill_when_it_says_so(code, tmp_path / "out")
    assert contents(tmp_path / "out") == {"file": "old"}
    with new_folder(tmp_path / "out", overwrite=True) as folder:
        write_text(folder / "file", "new")
    assert contents(tmp_path / "out") == {"file": "new"}


def test_a_folder_on_a_full_disk_leaves_the_old_one(tiny_disk: Path) -> None:
    write_text(tiny_disk / "out" / "file", "old")
    with pytest.raises(EdgeSDError, match="no space left"), new_folder(tiny_disk / "out", overwrite=True) as folder:
        (folder / "file").write_bytes(bytes(1_000_000))
    assert contents(tiny_disk) == {"out/file": "old"}
    assert [path.name for path in tiny_disk.iterdir()] == ["out"]


# Reading


def test_a_model_comes_back_and_can_be_read_by_a_person(tmp_path: Path) -> None:
    write_model(tmp_path / "note", Note(title="ᾱ", pages=3))
    assert (tmp_path / "note").read_text("utf-8") == '{\n  "title": "ᾱ",\n  "pages": 3\n}\n'
    assert read_model(Note, tmp_path / "note") == Note(title="ᾱ", pages=3)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (b"", "Invalid JSON"),
        (b"{", "Invalid JSON"),
        (b"\xff\xfe", "Invalid JSON"),
        (b"[]", "should be an object"),
        (b"{}", "title: Field required"),
        (b'{"title": "x", "pages": "many"}', "pages: Input should be a valid integer"),
    ],
)
def test_a_bad_model_is_named_with_its_first_fault(text: bytes, complaint: str, tmp_path: Path) -> None:
    (tmp_path / "note").write_bytes(text)
    with pytest.raises(EdgeSDError, match=f"{re.escape(str(tmp_path / 'note'))} is not a valid Note: .*{complaint}"):
        read_model(Note, tmp_path / "note")
    with pytest.raises(EdgeSDError, match=f"a device is not a valid Note: .*{complaint}"):
        parse_model(Note, text, "a device")


def test_a_model_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(EdgeSDError, match=r"cannot read .*nowhere: No such file"):
        read_model(Note, tmp_path / "nowhere")
    with pytest.raises(EdgeSDError, match=r"cannot read .*: Is a directory"):
        read_model(Note, tmp_path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tensors=tables)
def test_tensors_of_any_shape_come_back(tensors: dict[str, np.ndarray], tmp_path: Path) -> None:
    write_tensors(tmp_path / "file", tensors, Note(title="ᾱ"))
    header, read = read_tensors(Note, tmp_path / "file")
    assert header.title == "ᾱ"
    assert tensors_digest(read) == tensors_digest(tensors)
    for name, value in tensors.items():
        assert read[name].shape == value.shape
        np.testing.assert_array_equal(read[name], value)


# Digests


def test_tensors_that_are_not_contiguous_are_written_as_they_look(tmp_path: Path) -> None:
    value = np.arange(12.0).reshape(3, 4).T[::2]
    write_tensors(tmp_path / "file", {"x": value}, Note(title=""))
    np.testing.assert_array_equal(read_tensors(Note, tmp_path / "file")[1]["x"], value)


def test_a_digest_sees_names_types_shapes_and_bytes_but_no_order() -> None:
    x, y = np.arange(6, dtype=np.float32), np.ones(2, dtype=np.float32)
    digests = [
        tensors_digest(tensors)
        for tensors in (
            {"x": x, "y": y}, {"x": x}, {"x": x, "z": y}, {"x": y, "y": x}, {"x": x.reshape(2, 3), "y": y},
            {"x": x.view(np.int32), "y": y}, {"x": x + 1, "y": y}, {"x": x.byteswap(), "y": y}, {}, {"x": x[:1]}, {"x": x[0]},
        )
    ]  # fmt: skip
    assert len(set(digests)) == len(digests)
    assert tensors_digest({"y": y, "x": x}) == digests[0]
    assert tensors_digest({"y": y, "x": np.repeat(x, 2)[::2]}) == digests[0]


def test_sha256_of_a_file(tmp_path: Path) -> None:
    """Of "abc", from FIPS 180-2; and of more than one block."""
    write_bytes(tmp_path / "file", b"abc")
    assert sha256(tmp_path / "file") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    write_bytes(tmp_path / "file", b"a" * 3_000_000)
    assert sha256(tmp_path / "file") == subprocess.check_output(["sha256sum", tmp_path / "file"], text=True).split()[0]


def test_a_fingerprint_is_of_the_value_and_not_of_its_order() -> None:
    assert fingerprint({"a": 1, "b": [2, 3]}) == fingerprint({"b": [2, 3], "a": 1})
    assert re.fullmatch("[0-9a-f]{16}", fingerprint(None))
    assert len({fingerprint(value) for value in ({"a": 1}, {"a": 2}, {"b": 1}, [1], "1", json.loads("1.5"))}) == 6
