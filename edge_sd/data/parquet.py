"""Parquet files: a column of images, each an encoded file of its own, and perhaps one of classes."""

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from edge_sd.data.columns import Columns, Decode, find_columns
from edge_sd.data.config import DataConfig
from edge_sd.data.items import Item, Skipped, Source, refuse_too_many
from edge_sd.data.local import Files
from edge_sd.data.shards import BELONG_TOGETHER, about_shards, one_line, shard_fault, shard_items, stream
from edge_sd.errors import EdgeSDError

_ROWS_AT_ONCE = 64  # without it a whole row group is in memory


def parquet(config: DataConfig, files: Files, decode: Decode) -> Source:
    """Parquet files as a source. Columns that are not needed stay on disk.

    Raises:
        UsageError: a column is missing, or one of several.
        EdgeSDError: a file was cut short, and `max_broken` does not say that it may be; or none can be read.
    """
    import pyarrow
    from pyarrow.parquet import read_metadata

    counts: dict[Path, int] = {}
    faults: list[Skipped] = []
    for path in files.paths:
        try:
            counts[path] = read_metadata(path).num_rows
        except (pyarrow.ArrowException, OSError) as error:  # its directory is at its end
            faults.append(shard_fault(path, f"is cut short, or no parquet file: {one_line(error)}"))
    refuse_too_many(faults, 0, None, config)
    if not counts:
        raise EdgeSDError(str(faults[0]), "copy or download it again: there is no other")
    first = next(iter(counts))
    columns = find_columns(stream("parquet", first).features, config, first)

    def items() -> Iterator[Item | Skipped]:
        yield from faults
        for path in counts:
            _refuse_other_columns(stream("parquet", path).features, columns, path, first)
            opened = partial(stream, "parquet", path, columns=columns.all, batch_size=_ROWS_AT_ONCE)
            yield from shard_items(path, opened, columns, decode)

    return Source(about_shards(config, files), items, sum(counts.values()), columns.classes)


def _refuse_other_columns(features: Mapping[str, Any], columns: Columns, path: Path, first: Path) -> None:
    for column in columns.all:
        if column not in features:
            raise EdgeSDError(
                f"{path} has no column {column!r}, which {first} has; its columns are {', '.join(features)}", BELONG_TOGETHER
            )
    if columns.label and tuple(getattr(features[columns.label], "names", ())) != columns.classes:
        raise EdgeSDError(f"{path} has other classes than {first}", BELONG_TOGETHER)
