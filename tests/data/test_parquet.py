"""Parquet files: the same pixels as from a folder, and every way in which a file or a row of it can be wrong."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_sd.data import DataConfig, ImageData, open_data
from edge_sd.errors import EdgeSDError, UsageError

SIZE = 8


def read(source: Path | str, **changes: Any) -> ImageData:
    return open_data(DataConfig(source=str(source), **changes), SIZE)


def test_a_file_gives_the_pixels_of_a_folder_to_the_bit(
    pictures: Any, write_folder: Any, write_parquet: Any, tmp_path: Path
) -> None:
    folder = read(write_folder(tmp_path / "folder", pictures(5)))
    data = read(write_parquet(tmp_path / "a.parquet", pictures(5)))
    np.testing.assert_array_equal(data.pixels, folder.pixels)
    assert (data.digest, data.labels, data.skipped) == (folder.digest, None, ())
    assert data.about == "5 images of a.parquet"


def test_shards_are_read_in_the_order_of_their_names(
    pictures: Any, write_folder: Any, write_parquet: Any, tmp_path: Path
) -> None:
    images = pictures(5)
    write_parquet(tmp_path / "s [1]" / "b.parquet", images[2:])
    write_parquet(tmp_path / "s [1]" / "a.parquet", images[:2])
    expected = read(write_folder(tmp_path / "folder", images)).digest
    data = read(tmp_path / "s [1]")
    assert (data.digest, data.about) == (expected, "5 images of 2 shards of s [1]")
    assert read(f"{tmp_path}/*/?.parquet").digest == expected


def test_the_split_is_a_word_of_a_shards_name(pictures: Any, write_parquet: Any, tmp_path: Path) -> None:
    images = pictures(6)
    for name, part in {
        "train-00-of-02": images[:2],
        "train-01-of-02": images[2:3],
        "test": images[3:],
        "retrained": images,
    }.items():
        write_parquet(tmp_path / f"{name}.parquet", part)
    assert len(read(tmp_path, split="train")) == 3
    assert len(read(tmp_path, split="test")) == 3
    with pytest.raises(UsageError, match="has no split 'val'") as caught:
        read(tmp_path, split="val")
    assert "retrained.parquet; test.parquet; train-00-of-02.parquet and more" in caught.value.hint


# Columns


@pytest.mark.parametrize(
    ("labels", "names", "classes", "expected"),
    [
        ([1, 0, 1], ["cat", "dog"], ("cat", "dog"), [1, 0, 1]),
        ([2, 0, 2], None, ("0", "1", "2"), [2, 0, 2]),
        (["dog", "ant", "dog"], None, ("ant", "dog"), [1, 0, 1]),
    ],
)
def test_classes_have_names_or_numbers_or_are_names(
    labels: list[Any], names: list[str] | None, classes: tuple[str, ...], expected: list[int],
    pictures: Any, write_parquet: Any, tmp_path: Path,
) -> None:  # fmt: skip
    data = read(write_parquet(tmp_path / "a.parquet", pictures(3), labels, names), labels=True)
    assert data.labels is not None
    assert (data.labels.tolist(), data.labels.dtype, data.classes) == (expected, np.int64, classes)


def test_the_digest_is_of_the_labels_too_where_they_are_asked_for(pictures: Any, write_parquet: Any, tmp_path: Path) -> None:
    a = write_parquet(tmp_path / "a.parquet", pictures(2), [0, 1])
    b = write_parquet(tmp_path / "b.parquet", pictures(2), [1, 0])
    assert read(a).digest == read(b).digest
    assert read(a, labels=True).digest != read(b, labels=True).digest


def test_labels_that_are_asked_for_and_missing(pictures: Any, write_parquet: Any, tmp_path: Path) -> None:
    file = write_parquet(tmp_path / "a.parquet", pictures(2), caption=["x", "y"])
    with pytest.raises(UsageError, match="no column of classes; its columns are image, caption") as caught:
        read(file, labels=True)
    assert "--label-column" in caught.value.hint
    assert read(file, label_column="caption").classes == ("x", "y")
    with pytest.raises(UsageError, match="no column 'kind'; its columns are image, caption"):
        read(file, label_column="kind")
    with pytest.raises(UsageError, match=r"column 'image' .* no classes"):
        read(file, label_column="image")


def test_a_row_without_a_label_is_left_out_by_name(pictures: Any, write_parquet: Any, tmp_path: Path) -> None:
    file = write_parquet(tmp_path / "a.parquet", pictures(3), [None, 0, -1])
    data = read(file, labels=True, max_broken=2)
    assert len(data) == 1
    assert list(map(str, data.skipped)) == [f"{file} row 0 has no label", f"{file} row 2 has no label"]


def test_a_number_beyond_all_classes_is_an_error(pictures: Any, write_parquet: Any, tmp_path: Path) -> None:
    with pytest.raises(EdgeSDError, match="label 1763727000 is none"):
        read(write_parquet(tmp_path / "a.parquet", pictures(2), [0, 1763727000]), labels=True)
    pq.write_table(pa.table({"image": pictures(2), "label": pa.array([0, 2**63], pa.uint64())}), tmp_path / "b.parquet")
    with pytest.raises(EdgeSDError, match=f"label {2**63} is none of 100000 classes"):
        read(tmp_path / "b.parquet", labels=True)


def test_of_several_columns_of_images_one_has_to_be_named(pictures: Any, write_parquet: Any, tmp_path: Path) -> None:
    images = pictures(4)
    file = write_parquet(tmp_path / "a.parquet", images[:2], depth=[{"bytes": image, "path": None} for image in images[2:]])
    with pytest.raises(UsageError, match="several columns of images: image, depth") as caught:
        read(file)
    assert caught.value.hint == "--image-column image"
    digests = {read(file, image_column=name).digest for name in ("image", "depth")}
    assert len(digests) == 2


def test_a_column_of_images_that_is_not_there(pictures: Any, write_parquet: Any, tmp_path: Path) -> None:
    file = write_parquet(tmp_path / "a.parquet", pictures(1), caption=["x"])
    with pytest.raises(UsageError, match="has no column 'img'; its columns are image, caption"):
        read(file, image_column="img")
    with pytest.raises(UsageError, match=r"column 'caption' .* no images"):
        read(file, image_column="caption")
    pq.write_table(pa.table({"caption": ["x"]}), tmp_path / "b.parquet")
    with pytest.raises(UsageError, match="no column of images; its columns are caption"):
        read(tmp_path / "b.parquet")


def test_plain_bytes_are_images_where_no_column_says_so(pictures: Any, write_folder: Any, tmp_path: Path) -> None:
    images = pictures(2)
    pq.write_table(pa.table({"id": [1, 2], "data": images}), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet").digest == read(write_folder(tmp_path / "folder", images)).digest


def test_a_shard_without_the_column_is_named(pictures: Any, write_parquet: Any, tmp_path: Path) -> None:
    write_parquet(tmp_path / "s" / "a.parquet", pictures(2), [0, 1])
    write_parquet(tmp_path / "s" / "b.parquet", pictures(2))
    assert len(read(tmp_path / "s")) == 4
    with pytest.raises(EdgeSDError, match=r"b\.parquet has no column 'label', which .*a\.parquet has"):
        read(tmp_path / "s", labels=True)
    write_parquet(tmp_path / "s" / "b.parquet", pictures(2), [0, 1], ["x", "y"])
    with pytest.raises(EdgeSDError, match=r"b\.parquet has other classes"):
        read(tmp_path / "s", labels=True)


# Damage


def test_a_broken_row_is_left_out_by_name_and_an_empty_one_too(pictures: Any, write_parquet: Any, tmp_path: Path) -> None:
    images = pictures(4)
    file = write_parquet(tmp_path / "a.parquet", [images[0], b"no image", None, images[3]])
    with pytest.raises(EdgeSDError, match=r"row 1 is not a readable image") as caught:
        read(file)
    assert "--max-broken" in caught.value.hint
    data = read(file, max_broken=2)
    assert len(data) == 2
    assert [skip.name for skip in data.skipped] == [f"{file} row 1", f"{file} row 2"]
    assert data.skipped[1].reason == "holds no image"


def test_a_path_in_place_of_an_image_is_not_followed(pictures: Any, write_folder: Any, tmp_path: Path) -> None:
    """What files a table may name is not the table's to say."""
    write_folder(tmp_path / "folder", pictures(1))
    secret = str(tmp_path / "folder" / "0000.png")
    rows = pa.array([{"bytes": None, "path": secret}], pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    pq.write_table(pa.table({"image": rows}), tmp_path / "a.parquet")
    with pytest.raises(EdgeSDError, match=r"holds the path .* and no image"):
        read(tmp_path / "a.parquet")


def test_a_file_without_rows_is_an_empty_source(write_parquet: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no images"):
        read(write_parquet(tmp_path / "a.parquet", []))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=15)
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_shard_cut_anywhere_is_named_and_the_others_are_read(
    share: float, pictures: Any, write_parquet: Any, tmp_path: Path
) -> None:
    write_parquet(tmp_path / "s" / "a.parquet", pictures(3))
    cut = write_parquet(tmp_path / "s" / "b.parquet", pictures(3))
    cut.write_bytes(cut.read_bytes()[: int(share * cut.stat().st_size)])
    with pytest.raises(EdgeSDError, match=r"b\.parquet is cut short") as caught:
        read(tmp_path / "s")
    assert "copy or download it again, or give --max-broken 1" in caught.value.hint
    data = read(tmp_path / "s", max_broken=1)
    assert len(data) == 3
    assert data.skipped[0].shard
    with pytest.raises(EdgeSDError, match=r"b\.parquet is cut short"):
        read(cut, max_broken=1)


def test_a_damaged_page_ends_its_shard_alone(pictures: Any, write_parquet: Any, tmp_path: Path) -> None:
    write_parquet(tmp_path / "s" / "b.parquet", pictures(3))
    file = write_parquet(tmp_path / "s" / "a.parquet", pictures(3))
    chunk = pq.read_metadata(file).row_group(0).column(0)
    content = bytearray(file.read_bytes())
    start = chunk.data_page_offset
    content[start : start + 40] = bytes(40)
    file.write_bytes(content)
    with pytest.raises(EdgeSDError, match=r"a\.parquet is damaged after 0 images"):
        read(tmp_path / "s")
    assert len(read(tmp_path / "s", max_broken=1)) == 3
