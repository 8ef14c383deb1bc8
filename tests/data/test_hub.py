"""The hub: what is said where it cannot be reached, and a stream that behaves as the hub's (there is no network in tests)."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge_sd.data import DataConfig, ImageData, open_data, source_key
from edge_sd.data.decode import BrokenImageError
from edge_sd.data.hub import UnreachableError, _fetch
from edge_sd.errors import EdgeSDError, UsageError

SIZE = 8
HUB = "hub:somebody/pictures"


@pytest.fixture
def on_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """(files by their split) → `datasets` finds them as what a repository of the hub holds."""
    import datasets

    opened = datasets.load_dataset_builder

    def publish(revision: str = "1" * 40, **files: Path) -> None:
        def find(path: str, name: str | None = None, **options: Any) -> Any:
            assert path == "hf://datasets/somebody/pictures"
            if not files:
                raise ConnectionError("no route to the hub")
            if name not in (None, "small"):
                raise ValueError(f"BuilderConfig '{name}' not found. Available: ['small']")
            data_files = {split: [str(file)] for split, file in files.items()}
            kind = {".parquet": "parquet", ".json": "json", ".png": "imagefolder"}[next(iter(files.values())).suffix]
            builder = opened(kind, data_files=data_files, cache_dir=options["cache_dir"])
            builder.hash = revision
            return builder

        monkeypatch.setattr(datasets, "load_dataset_builder", find)

    monkeypatch.setenv("EDGE_SD_CACHE", str(tmp_path / "cache"))
    return publish


def read(source: str = HUB, **changes: Any) -> ImageData:
    return open_data(DataConfig(source=source, **changes), SIZE)


def test_a_stream_gives_the_pixels_of_a_folder_to_the_bit(
    on_hub: Any, pictures: Any, write_folder: Any, write_parquet: Any, tmp_path: Path
) -> None:
    images = pictures(5)
    on_hub(train=write_parquet(tmp_path / "a.parquet", images[:3], [0, 1, 1]), test=write_parquet(tmp_path / "b.parquet", images))
    seen: list[tuple[int, int]] = []
    data = open_data(DataConfig(source=HUB, split="test"), SIZE, lambda done, total: seen.append((done, total)))
    assert data.digest == open_data(DataConfig(source=str(write_folder(tmp_path / "f", images))), SIZE).digest
    assert data.about == "5 images of somebody/pictures, test"
    assert seen == [(done, 0) for done in range(1, 6)]
    labelled = read("hub:somebody/pictures:small", labels=True)
    assert labelled.labels is not None
    assert labelled.labels.tolist() == [0, 1, 1]
    assert len(read(limit=2)) == 2


def test_what_was_read_once_is_there_offline_and_a_new_revision_is_read_again(
    on_hub: Any, pictures: Any, write_parquet: Any, tmp_path: Path
) -> None:
    on_hub(train=write_parquet(tmp_path / "a.parquet", pictures(3)))
    first, key = read(), source_key(DataConfig(source=HUB))
    on_hub(revision="2" * 40, train=write_parquet(tmp_path / "b.parquet", pictures(4)))
    assert len(read()) == 4
    assert source_key(DataConfig(source=HUB)) != key
    on_hub()
    assert len(read()) == 4
    assert read().digest != first.digest
    with pytest.raises(UnreachableError, match=r"somebody/pictures cannot be reached.*no route") as caught:
        read(labels=True)
    assert "HF_HUB_OFFLINE" in caught.value.hint


def test_a_split_or_a_subset_that_is_not_there(on_hub: Any, pictures: Any, write_parquet: Any, tmp_path: Path) -> None:
    on_hub(train=write_parquet(tmp_path / "a.parquet", pictures(1)))
    with pytest.raises(UsageError, match=r"has no split 'val'.*train") as caught:
        read(split="val")
    assert "--split" in caught.value.hint
    with pytest.raises(UsageError, match=r"'large' not found") as caught:
        read("hub:somebody/pictures:large")
    assert "SUBSET" in caught.value.hint


@pytest.mark.parametrize("name", ["pictures", "", "a/b/c", "../b", "https://x.org/y", "a/b?c"])
def test_what_is_no_name_of_a_data_set(name: str) -> None:
    with pytest.raises(UsageError, match="names no data set of the hub"):
        read(f"hub:{name}")


@pytest.mark.parametrize("address", ["/etc/hostname", "file:///etc/hostname", "http://127.0.0.1:9/a.png", "zip://a::/tmp/a.zip"])
def test_a_row_can_name_files_of_the_hub_alone(address: str) -> None:
    with pytest.raises(BrokenImageError, match="holds the path"):
        _fetch(address)


def test_images_that_are_files_of_their_own_are_fetched_from_the_hub_alone(
    on_hub: Any, pictures: Any, write_folder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a repository of images `datasets` hands over addresses; those of a test are of this machine, and refused."""
    folder = write_folder(tmp_path / "f", pictures(1))
    on_hub(train=folder / "0000.png")
    with pytest.raises(EdgeSDError, match=r"row 0 holds the path .* and no image"):
        read()
    import fsspec

    monkeypatch.setattr(fsspec, "open", lambda address, mode: (folder / address.rpartition("/")[2]).open(mode))
    assert _fetch("hf://datasets/somebody/pictures@main/0000.png") == pictures(1)[0]
    with pytest.raises(BrokenImageError, match=r"is not at hf://.*/0001\.png"):
        _fetch("hf://datasets/somebody/pictures@main/0001.png")


def test_a_data_set_of_texts_has_no_images(on_hub: Any, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"question": "?", "answer": 42}\n')
    on_hub(train=tmp_path / "a.json")
    with pytest.raises(UsageError, match="somebody/pictures has no column of images; its columns are question, answer"):
        read()


def test_offline_the_command_says_so_and_nothing_else(tmp_path: Path) -> None:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HOME": str(tmp_path), "EDGE_SD_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "edge_sd", "train", "--data", HUB, "-o", str(tmp_path / "out")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "somebody/pictures cannot be reached, is this machine offline?" in done.stderr
    assert "go online and unset HF_HUB_OFFLINE" in done.stderr
    assert len(done.stderr.splitlines()) == 2, done.stderr
    assert not (tmp_path / "out").exists()
