"""What is skipped: every whole image comes through, in its order; every other one is named, and too many are an error."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_sd.data import DataConfig, Skipped, open_data
from edge_sd.data.decode import BrokenImageError
from edge_sd.data.items import Decoded, Item, decoded, named, refuse_too_many
from edge_sd.errors import EdgeSDError

SIZE = 8


def broken(number: int) -> Skipped:
    return Skipped(name=f"{number}.png", reason="is not a readable image: x")


@given(whole=st.lists(st.booleans(), max_size=80), threads=st.integers(1, 3))
def test_images_stay_in_order_and_each_broken_one_is_named(whole: list[bool], threads: int) -> None:
    def read(index: int) -> np.ndarray:
        if not whole[index]:
            raise BrokenImageError("is broken")
        return np.full((1, 1, 3), index, dtype=np.uint8)

    items = [Item(f"{index}", lambda index=index: read(index)) for index in range(len(whole))]  # type: ignore[misc]
    outcomes = list(decoded(items, False, threads))
    assert len(outcomes) == len(whole)
    for index, outcome in enumerate(outcomes):
        if whole[index]:
            assert isinstance(outcome, Decoded)
            assert outcome.pixels[0, 0, 0] == index
        else:
            assert str(outcome) == f"{index} is broken"


def test_an_error_of_the_settings_ends_the_reading_at_once() -> None:
    def refuse() -> np.ndarray:
        raise EdgeSDError("another size", "give --resize")

    started: list[int] = []

    def items() -> Any:
        for index in range(1000):
            started.append(index)
            yield Item(f"{index}", refuse)

    with pytest.raises(EdgeSDError, match="another size"):
        list(decoded(items(), False, 2))
    assert len(started) < 100


@pytest.mark.parametrize(
    ("count", "total", "max_broken", "refused"),
    [
        (1, 99, None, True), (1, 100, None, False), (2, 199, None, True), (1, 1, 1, False), (2, 1000, 1, True),
        (1, 1000, 0, True), (100, None, None, False), (101, None, None, True), (500, None, 500, False),
    ],
)  # fmt: skip
def test_one_in_a_hundred_or_as_many_as_were_given(count: int, total: int | None, max_broken: int | None, refused: bool) -> None:
    def check() -> None:
        refuse_too_many([broken(i) for i in range(count)], 0, total, DataConfig(max_broken=max_broken))

    if not refused:
        check()
        return
    with pytest.raises(EdgeSDError, match=r"0\.png is not a readable image: x") as caught:
        check()
    assert f"--max-broken {count}" in caught.value.hint


def test_many_broken_ones_are_counted_and_the_first_named() -> None:
    with pytest.raises(EdgeSDError) as caught:
        refuse_too_many([broken(i) for i in range(5)], 20, 25, DataConfig())
    assert (
        caught.value.message == "5 of 25 images are broken, 0 may be: " + "; ".join(map(str, map(broken, range(3)))) + " and more"
    )


def test_a_shard_needs_a_word_of_its_own() -> None:
    shard = Skipped(name="a.tar", reason="is cut short", shard=True)
    with pytest.raises(EdgeSDError, match=r"a\.tar is cut short"):
        refuse_too_many([shard], 0, 10**6, DataConfig())
    refuse_too_many([shard], 0, 10**6, DataConfig(max_broken=1))


def test_the_first_of_many_are_named() -> None:
    assert [named("abc"[:n]) for n in range(4)] == ["", "a", "a; b", "a; b; c"]
    assert named("abcd") == "a; b; c and more"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20)
@given(bad=st.sets(st.integers(0, 11), max_size=12))
def test_of_any_folder_the_whole_images_are_read(bad: set[int], pictures: Any, write_folder: Any, tmp_path: Path) -> None:
    images = pictures(12)
    folder = write_folder(tmp_path / "f", [b"broken" if index in bad else image for index, image in enumerate(images)])
    config = DataConfig(source=str(folder), max_broken=12)
    if len(bad) == 12:
        with pytest.raises(EdgeSDError, match="none of the images of f can be used"):
            open_data(config, SIZE)
        return
    data = open_data(config, SIZE)
    whole = open_data(DataConfig(source=str(write_folder(tmp_path / "whole", images))), SIZE)
    np.testing.assert_array_equal(data.pixels, whole.pixels[[index for index in range(12) if index not in bad]])
    assert [Path(skip.name).stem for skip in data.skipped] == [f"{index:04}" for index in sorted(bad)]
    assert data.about == f"{12 - len(bad)} images of f"


def test_the_command_names_what_it_left_out(pictures: Any, write_folder: Any, tmp_path: Path) -> None:
    images = pictures(5)
    folder = write_folder(tmp_path / "f", [*images[:2], b"broken", *images[3:]])
    command = [
        sys.executable, "-m", "edge_sd", "train", "--data", str(folder), "--size", "8", "--steps", "1", "--batch-size", "2",
        "--sample-every", "0", "-o", str(tmp_path / "out"),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "--max-broken 1" in done.stderr
    done = subprocess.run([*command, "--max-broken", "1"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"left out: {folder}/0002.png is not a readable image" in done.stderr
    assert "left out 1 of 5 images" in done.stderr
