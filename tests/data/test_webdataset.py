"""Webdataset shards: the same pixels as from a folder, mixed formats, and archives that were cut at any byte."""

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from edge_sd.data import DataConfig, ImageData, open_data
from edge_sd.errors import EdgeSDError, UsageError

SIZE = 8


def read(source: Path | str, **changes: Any) -> ImageData:
    return open_data(DataConfig(source=str(source), **changes), SIZE)


def test_shards_give_the_pixels_of_a_folder_to_the_bit(pictures: Any, write_folder: Any, write_tar: Any, tmp_path: Path) -> None:
    images = pictures(5)
    folder = read(write_folder(tmp_path / "folder", images))
    write_tar(tmp_path / "s" / "b [1].tar", [{"png": image} for image in images[3:]])
    write_tar(tmp_path / "s" / "a.tar", [{"png": image, "json": b"{}"} for image in images[:3]])
    data = read(tmp_path / "s")
    np.testing.assert_array_equal(data.pixels, folder.pixels)
    assert (data.digest, data.labels, data.skipped) == (folder.digest, None, ())


def test_one_shard_may_hold_several_formats(pictures: Any, write_tar: Any, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.open(io.BytesIO(pictures(1)[0])).save(buffer, "WEBP", lossless=True)
    images = pictures(8)
    data = read(write_tar(tmp_path / "a.tar", [{"webp": buffer.getvalue()}, *({"png": image} for image in images[1:])]))
    write = read(write_tar(tmp_path / "b.tar", [{"png": image} for image in images]))
    assert data.digest == write.digest


def test_two_images_in_one_sample_have_to_be_told_apart(pictures: Any, write_tar: Any, tmp_path: Path) -> None:
    images = pictures(2)
    file = write_tar(tmp_path / "a.tar", [{"rgb.png": images[0], "depth.png": images[1]}])
    with pytest.raises(UsageError, match=r"0000 holds several images: depth\.png, rgb\.png") as caught:
        read(file)
    assert caught.value.hint == "--image-column depth.png"
    assert read(file, image_column="rgb.png").digest != read(file, image_column="depth.png").digest


def test_classes_come_from_cls_files(pictures: Any, write_tar: Any, tmp_path: Path) -> None:
    samples = [{"png": image, "cls": str(index % 3).encode()} for index, image in enumerate(pictures(4))]
    data = read(write_tar(tmp_path / "a.tar", samples), labels=True)
    assert data.labels is not None
    assert (data.labels.tolist(), data.classes) == ([0, 1, 2, 0], ("0", "1", "2"))
    named = [{"png": image, "txt": name} for image, name in zip(pictures(3), (b"b", b"a", b"b"), strict=True)]
    data = read(write_tar(tmp_path / "b.tar", named), label_column="txt")
    assert data.labels is not None
    assert (data.labels.tolist(), data.classes) == ([1, 0, 1], ("a", "b"))


def test_labels_that_are_asked_for_and_missing(pictures: Any, write_tar: Any, tmp_path: Path) -> None:
    images = pictures(3)
    write_tar(tmp_path / "s" / "a.tar", [{"png": image} for image in images])
    with pytest.raises(UsageError, match="no column of classes; its columns are png"):
        read(tmp_path / "s", labels=True)
    write_tar(tmp_path / "s" / "b.tar", [{"png": image, "cls": b"0"} for image in images])
    with pytest.raises(EdgeSDError, match=r"a\.tar has no column 'cls'; its columns are png"):
        read(tmp_path / "s", labels=True)
    write_tar(tmp_path / "s" / "a.tar", [{"png": images[0]}, {"png": images[1], "cls": b"1"}])
    data = read(tmp_path / "s", labels=True, max_broken=1)
    assert [str(skip) for skip in data.skipped] == [f"{tmp_path}/s/a.tar 0000 has no label"]
    assert len(data) == 4


def test_a_missing_column_of_images(pictures: Any, write_tar: Any, tmp_path: Path) -> None:
    file = write_tar(tmp_path / "a.tar", [{"txt": b"no image", "cls": b"0"}])
    with pytest.raises(UsageError, match="no column of images; its columns are cls, txt"):
        read(file)
    with pytest.raises(UsageError, match="no column 'png'; its columns are cls, txt"):
        read(file, image_column="png")


def test_a_broken_image_is_left_out_by_its_key(pictures: Any, write_tar: Any, tmp_path: Path) -> None:
    images = pictures(3)
    file = write_tar(tmp_path / "a.tar", [{"png": images[0]}, {"png": images[1][:60]}, {"png": images[2]}])
    data = read(file, max_broken=1)
    assert (len(data), data.skipped[0].name) == (2, f"{file} 0001")


def test_a_label_that_cannot_be_read_leaves_out_its_sample_alone(pictures: Any, write_tar: Any, tmp_path: Path) -> None:
    images = pictures(4)
    labels = (b"1", b"cat", b"", b" 0\n")
    file = write_tar(tmp_path / "a.tar", [{"png": image, "cls": cls} for image, cls in zip(images, labels, strict=True)])
    with pytest.raises(EdgeSDError, match=r"a\.tar 0001 has the label b'cat', no number"):
        read(file, labels=True)
    data = read(file, labels=True, max_broken=2)
    assert data.labels is not None
    assert data.labels.tolist() == [1, 0]
    assert list(map(str, data.skipped)) == [
        f"{file} 0001 has the label b'cat', no number",
        f"{file} 0002 has the label b'', no number",
    ]
    assert len(read(file)) == 4
    named = write_tar(tmp_path / "b.tar", [{"png": images[0], "txt": b"\xff" * 50}, {"png": images[1], "txt": "Käfer".encode()}])
    data = read(named, label_column="txt", max_broken=1)
    assert data.classes == ("Käfer",)
    assert data.skipped[0].reason == f"has the label {bytes([255] * 40)!r}, no text"


def test_a_sample_of_two_equal_names_ends_its_shard_alone(pictures: Any, write_tar: Any, tmp_path: Path) -> None:
    images = pictures(3)
    write_tar(tmp_path / "s" / "a.tar", [{"png": images[0]}, {"png": images[1]}])
    write_tar(tmp_path / "s" / "b.tar", [{"png": images[2]}])
    with tarfile.open(tmp_path / "s" / "a.tar", "a") as archive:
        archive.addfile(tarfile.TarInfo("0001.png"))
    with pytest.raises(EdgeSDError, match=r"a\.tar is damaged after 1 images: 0001 holds two files png"):
        read(tmp_path / "s")
    assert len(read(tmp_path / "s", max_broken=1)) == 2


def test_an_archive_of_nothing_is_an_empty_source(write_tar: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no images"):
        read(write_tar(tmp_path / "a.tar", []))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_shard_cut_anywhere_is_named_and_what_is_whole_is_read(
    share: float, pictures: Any, write_tar: Any, tmp_path: Path
) -> None:
    images = pictures(4)
    write_tar(tmp_path / "s" / "a.tar", [{"png": images[0]}])
    whole = read(write_tar(tmp_path / "whole.tar", [{"png": image} for image in images]))
    cut = write_tar(tmp_path / "s" / "b.tar", [{"png": image} for image in images[1:]])
    content = cut.read_bytes()
    marked = len(content.rstrip(b"\0")) // 512 * 512 + 1024  # where the first block of its end mark ends
    cut.write_bytes(content[: int(share * marked)])
    with pytest.raises(EdgeSDError, match=r"b\.tar is cut short") as caught:
        read(tmp_path / "s")
    assert "--max-broken 1" in caught.value.hint
    data = read(tmp_path / "s", max_broken=1)
    np.testing.assert_array_equal(data.pixels, whole.pixels[: len(data)])
    assert [skip.shard for skip in data.skipped] == [True]


def test_an_archive_cut_between_two_samples_is_noticed(pictures: Any, write_tar: Any, tmp_path: Path) -> None:
    """To Python's `tarfile`, and to all that build on it, it is whole."""
    file = write_tar(tmp_path / "a.tar", [{"png": image} for image in pictures(3)])
    sample = 512 + -(-len(pictures(1)[0]) // 512) * 512
    file.write_bytes(file.read_bytes()[: 2 * sample])
    with pytest.raises(EdgeSDError, match=r"a\.tar is cut short.* its end mark is missing; 2 images begin in it"):
        read(file)
    assert len(read(file, max_broken=1)) == 2
