"""Data sets of the Hugging Face hub, streamed: nothing but what is read is fetched, and no code of theirs is run.

`datasets` has no scripts since its version 4; a repository holds data files, which its own readers open. What it looks up
(a few kB) it keeps where Hugging Face's tools keep such things, and access tokens are theirs too.
"""

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

from edge_sd.data.columns import Decode, find_columns, items_of
from edge_sd.data.config import HUB, DataConfig
from edge_sd.data.decode import BrokenImageError
from edge_sd.data.items import Item, Skipped, Source
from edge_sd.data.shards import one_line, silent_datasets
from edge_sd.errors import EdgeSDError, UsageError
from edge_sd.quiet import quiet


class UnreachableError(EdgeSDError):
    """The hub does not answer."""


@dataclass(frozen=True)
class HubData:
    """A data set of the hub at one of its revisions."""

    name: str
    builder: Any
    revision: str


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Turn what goes wrong on the way to the hub into an error that says what to do."""
    try:
        yield
    except (EdgeSDError, BrokenImageError):
        raise
    except FileNotFoundError as error:  # what `datasets` calls a repository that is not there
        raise UsageError(
            f"hub data set {name} cannot be opened: {one_line(error)}", "check its name; HF_TOKEN opens private and gated ones"
        ) from error
    except Exception as error:
        if isinstance(error, OSError) or type(error).__module__.startswith("httpx"):  # not all of the client's are OSErrors
            raise UnreachableError(
                f"hub data set {name} cannot be reached, is this machine offline? {one_line(error)}",
                "go online and unset HF_HUB_OFFLINE; or give --data a folder with a copy of its files",
            ) from error
        raise EdgeSDError(
            f"hub data set {name} cannot be read: {one_line(error)}", "look at it on the hub: does it hold images?"
        ) from error


def open_hub(config: DataConfig) -> HubData:
    """Look a data set up.

    Raises:
        UsageError: no name of a data set, or there is none of that name.
        UnreachableError: the hub does not answer.
    """
    name, _, subset = config.source.removeprefix(HUB).partition(":")
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name):
        raise UsageError(f"{config.source!r} names no data set of the hub", "hub:OWNER/NAME, for instance hub:ylecun/mnist")
    datasets = silent_datasets()
    # "hf://" keeps a local folder of that name from being taken for it.
    with quiet(), _explained(name), tempfile.TemporaryDirectory(prefix="edge-sd-") as folder:
        try:
            builder = datasets.load_dataset_builder(f"hf://datasets/{name}", subset or None, cache_dir=folder)
        except (ValueError, RuntimeError) as error:  # an unknown subset; a repository that is a script
            raise UsageError(
                f"hub data set {name} cannot be opened: {one_line(error)}", "hub:OWNER/NAME:SUBSET names a subset"
            ) from error
    return HubData(name, builder, str(builder.hash))


def hub(config: DataConfig, data: HubData, decode: Decode) -> Source:
    """A hub data set as a source.

    Raises:
        UsageError: a split or a column is missing.
    """
    split = config.split or "train"
    with quiet(), _explained(data.name):
        try:
            dataset = data.builder.as_streaming_dataset(split=split)
        except ValueError as error:
            raise UsageError(
                f"hub data set {data.name} has no split {split!r}: {one_line(error)}", "--split names one of them"
            ) from error
        if dataset.features is None:  # of text files only the first rows tell
            dataset = dataset._resolve_features()
        dataset = dataset.decode(False)
    columns = find_columns(dataset.features, config, data.name)
    known = (data.builder.info.splits or {}).get(split)
    total = known.num_examples if known else None

    def items() -> Iterator[Item | Skipped]:
        rows = islice(dataset.select_columns(columns.all), total)  # no more than its card promises: room is made for them
        with _explained(data.name):
            yield from items_of(rows, columns, decode, lambda index, row: f"{data.name} row {index}", _fetch)

    return Source(f"images of {data.name}, {split}", items, total, columns.classes)


def _fetch(address: str) -> bytes:
    """Read a file of the hub, which may lie in an archive there. Other addresses are refused: a row may not name any file."""
    import fsspec

    if not address.startswith("hf://") and "::hf://" not in address:
        raise BrokenImageError(f"holds the path {address!r} and no image")
    with _explained(address):
        try:
            with fsspec.open(address, "rb") as file:
                return bytes(file.read())
        except FileNotFoundError as error:
            raise BrokenImageError(f"is not at {address}") from error
