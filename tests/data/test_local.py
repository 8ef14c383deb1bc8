"""Folders: which files are read, which classes and splits they have, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sd.data import DataConfig, ImageData, open_data
from edge_sd.data.local import Files, find_files, image_folder
from edge_sd.errors import UsageError

SIZE = 8


def read(source: Path | str, **changes: Any) -> ImageData:
    return open_data(DataConfig(source=str(source), **changes), SIZE)


def test_sub_folders_are_classes(pictures: Any, write_folder: Any, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "pets", pictures(4), ["dog", "cat", "dog", "more/ape"])
    data = read(folder, labels=True)
    assert data.labels is not None
    assert (data.labels.tolist(), data.classes) == ([1, 2, 2, 0], ("ape", "cat", "dog"))
    assert read(folder).labels is None
    assert read(folder).digest != data.digest


def test_labels_that_are_asked_for_and_missing(pictures: Any, write_folder: Any, tmp_path: Path) -> None:
    write_folder(tmp_path / "pets", pictures(4), ["dog", "", "dog", ""])
    with pytest.raises(UsageError, match=r"labels are asked for, and 2 image\(s\) .* lie in no sub-folder") as caught:
        read(tmp_path / "pets", labels=True)
    assert "0001.png" in caught.value.message
    assert "sub-folder" in caught.value.hint


def test_a_split_is_a_sub_folder_and_no_class(pictures: Any, write_folder: Any, tmp_path: Path) -> None:
    write_folder(tmp_path, pictures(5), ["train/cat", "train/dog", "test/cat", "test/cat", "train/cat"])
    data = read(tmp_path, split="train", labels=True)
    assert (len(data), data.classes) == (3, ("cat", "dog"))
    with pytest.raises(UsageError, match="has no split 'val'"):
        read(tmp_path, split="val")
    write_folder(tmp_path, pictures(1), ["train"])
    with pytest.raises(UsageError, match="lie in no sub-folder of a class"):
        read(tmp_path, split="train", labels=True)


def test_below_a_split_its_name_and_others_are_those_of_classes(pictures: Any, write_folder: Any, tmp_path: Path) -> None:
    classes = [f"{split}/{name}" for split in ("train", "test") for name in ("cat", "train", "dog") for _ in range(2)]
    folder = write_folder(tmp_path / "c100", pictures(12), classes)
    data = read(folder, split="train", labels=True)
    assert data.labels is not None
    assert (data.labels.tolist(), data.classes) == ([0, 0, 1, 1, 2, 2], ("cat", "dog", "train"))
    np.testing.assert_array_equal(read(folder, split="test").pixels, read(folder / "test").pixels)
    (folder / "train" / "0012.png").write_bytes(pictures(1)[0])
    with pytest.raises(UsageError, match=r"1 image\(s\) .* lie in no sub-folder of a class: .*c100/train/0012\.png"):
        read(folder, split="train", labels=True)


def test_a_split_may_lie_below_other_folders(pictures: Any, write_folder: Any, tmp_path: Path) -> None:
    write_folder(tmp_path, pictures(4), ["a/train/cat", "b/train/dog", "a/test/cat", "a/train/cat"])
    assert read(tmp_path, split="train", labels=True).classes == ("cat", "dog")
    assert len(read(tmp_path, split="train")) == 3


def test_links_to_folders_are_followed_and_a_circle_ends(pictures: Any, write_folder: Any, tmp_path: Path) -> None:
    write_folder(tmp_path / "elsewhere", pictures(2), ["bird", "bird/deep"])
    folder = write_folder(tmp_path / "pets", pictures(2), ["cat", "dog"])
    (folder / "bird").symlink_to(tmp_path / "elsewhere" / "bird")
    (tmp_path / "elsewhere" / "bird" / "round").symlink_to(folder)
    (folder / "again").symlink_to(folder / "cat")
    data = read(folder, labels=True)
    assert data.classes == ("bird", "cat", "deep", "dog")
    assert [str(path.relative_to(folder)) for path in find_files(str(folder)).paths] == [
        "bird/0000.png", "bird/deep/0001.png", "cat/0000.png", "dog/0001.png",
    ]  # fmt: skip
    (tmp_path / "link").symlink_to(folder)
    assert read(tmp_path / "link").digest == read(folder).digest


def test_what_systems_add_to_a_folder_is_not_read(pictures: Any, write_folder: Any, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "pets", pictures(2), ["cat", "dog"])
    before = read(folder, labels=True)
    for name in ("cat/._0000.png", "__MACOSX/cat/._0000.png", "__MACOSX/cat/0000.png", ".thumbnails/0000.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"\x00\x05\x16\x07")
    assert (read(folder, labels=True).digest, before.classes) == (before.digest, ("cat", "dog"))


def test_one_file_and_a_glob(pictures: Any, write_folder: Any, tmp_path: Path) -> None:
    write_folder(tmp_path, pictures(3))
    assert len(read(tmp_path / "0001.png")) == 1
    assert len(read(f"{tmp_path}/000[12].png")) == 2
    with pytest.raises(UsageError, match="holds no images"):
        read(f"{tmp_path}/*.jpg")


def test_files_of_several_kinds_are_refused(pictures: Any, write_folder: Any, tmp_path: Path) -> None:
    write_folder(tmp_path, pictures(2))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.parquet").write_bytes(b"")
    with pytest.raises(UsageError, match=r"2 image file\(s\), 1 parquet file\(s\)|1 parquet file\(s\), 2 image") as caught:
        read(tmp_path)
    assert "/**/*.parquet" in caught.value.hint
    assert find_files(f"{tmp_path}/**/*.parquet").kind == "parquet"
    assert find_files(f"{tmp_path}/*.png").kind == "folder"


@given(st.integers(1, 60), st.integers(1, 70))
def test_a_limit_picks_evenly(count: int, limit: int) -> None:
    """Files are sorted by class: the first ones would be of one class."""
    paths = [Path("photos", f"{index // 10}", f"{index:03}.png") for index in range(count)]
    config = DataConfig(source="photos", limit=limit, labels=True)
    source = image_folder(config, Files("folder", Path("photos"), paths), lambda path, name: np.zeros((1, 1, 3), np.uint8))
    names = [item.name for item in source.items()]
    assert len(names) == len(set(names)) == source.total == min(limit, count)
    assert names == sorted(names)
    gaps = np.diff([paths.index(Path(name)) for name in names])
    assert gaps.size == 0 or gaps.max() - gaps.min() <= 1


def test_a_limit_holds_for_every_source(
    pictures: Any, write_folder: Any, write_parquet: Any, write_tar: Any, tmp_path: Path
) -> None:
    images = pictures(5)
    write_folder(tmp_path / "folder", images)
    write_parquet(tmp_path / "a.parquet", images)
    write_tar(tmp_path / "a.tar", [{"png": image} for image in images])
    for source in ("folder", "a.parquet", "a.tar"):
        assert len(read(tmp_path / source, limit=3)) == 3
        assert len(read(tmp_path / source, limit=30)) == 5
    assert len(open_data(DataConfig(limit=3), SIZE)) == 3


def test_a_folder_is_found_by_its_own_name_even_if_it_looks_like_a_pattern(
    pictures: Any, write_folder: Any, tmp_path: Path
) -> None:
    assert len(find_files(str(write_folder(tmp_path / "a[1]*", pictures(2)))).paths) == 2
