"""What parquet files and webdataset shards share: each is opened by itself, and its images are decoded here.

So one that was cut short is named, and the others are read. Nothing is looked up online and nothing is copied.
"""

import glob
import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from edge_sd.data.columns import Columns, Decode, ReadLabel, items_of, label_as_given
from edge_sd.data.config import DataConfig
from edge_sd.data.items import Item, Skipped
from edge_sd.data.local import Files
from edge_sd.errors import EdgeSDError

BELONG_TOGETHER = "give --data files that belong together, for instance by a glob"


def silent_datasets() -> Any:
    """`datasets`, without progress bars, log lines and the download counter that it calls up even for local files."""
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(logging.CRITICAL)
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False
    return datasets


def stream(kind: str, path: Path, **options: Any) -> Any:
    """Open one shard as an IterableDataset whose images stay encoded."""
    datasets = silent_datasets()
    with tempfile.TemporaryDirectory(prefix="edge-sd-") as folder:  # streaming, it gets a lock file and nothing else
        files = {"train": [glob.escape(str(path.resolve()))]}
        opened = datasets.load_dataset(kind, data_files=files, split="train", streaming=True, cache_dir=folder, **options)
    return opened.decode(False)


def shard_items(
    path: Path,
    open_shard: Callable[[], Any],
    columns: Columns,
    decode: Decode,
    known_fault: Skipped | None = None,
    read_label: ReadLabel = label_as_given,
) -> Iterator[Item | Skipped]:
    """The items of one shard, and at their end what keeps the others from being read.

    Args:
        open_shard: returns an iterable of rows.
        known_fault: takes the place of what the library says of it.
        read_label: see `items_of`.
    """
    read = 0

    def rows() -> Iterator[Mapping[str, Any]]:
        nonlocal read
        for row in open_shard():
            yield row
            read += 1

    try:
        yield from items_of(
            rows(), columns, decode, lambda index, row: f"{path} {row.get('__key__', f'row {index}')}", read_label=read_label
        )
    except EdgeSDError:
        raise
    except Exception as error:  # a damaged page or header: the readers raise whatever they run into
        known_fault = known_fault or shard_fault(path, f"is damaged after {read} images: {one_line(error)}")
    if known_fault:
        yield known_fault


def shard_fault(path: Path, reason: str) -> Skipped:
    return Skipped(name=str(path), reason=reason, shard=True)


def one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def about_shards(config: DataConfig, files: Files) -> str:
    """ "images of faces.parquet", "images of 12 shards of faces"."""
    if len(files.paths) == 1:
        return f"images of {files.paths[0].name}"
    return (
        f"images of {len(files.paths)} shards of {Path(config.source).name if Path(config.source).is_dir() else files.root.name}"
    )
