"""Webdataset shards: tar archives in which the files of a sample share the name before the first dot.

What follows the dot is the file's column: 0001.png and 0001.cls are a sample's image and class. Archives are read here and not
by `datasets`: to it a class that is no number is the end of its archive.
"""

import re
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from edge_sd.data.columns import Columns, Decode, Label, find_columns
from edge_sd.data.config import DataConfig
from edge_sd.data.items import Item, Skipped, Source, refuse_too_many
from edge_sd.data.local import SUFFIXES, Files
from edge_sd.data.shards import BELONG_TOGETHER, about_shards, one_line, shard_fault, shard_items
from edge_sd.errors import EdgeSDError, UsageError

_BLOCK = 512  # bytes; an archive ends with blocks of zeros
# Path of a sample up to the first dot of its name, and its field; a file whose name begins so is hidden, and none.
_MEMBER = re.compile(r"((?:.*/|)(?!\.|__)[^./]+)\.([^/]*)")
# What a field is, by its last suffix; images stay as they are.
_NUMBERS, _TEXTS = ("cls", "cls2", "index", "inx", "id"), ("txt", "text", "transcript")


@dataclass(frozen=True)
class _Archive:
    """What an archive's headers say: how many images begin in it, its samples' fields, and what is wrong with it."""

    images: int
    fields: frozenset[str]
    fault: Skipped | None


def webdataset(config: DataConfig, files: Files, decode: Decode) -> Source:
    """Tar archives as a source. A sample's image may be in any format, in one shard too.

    Raises:
        UsageError: a column is missing, or one of several.
        EdgeSDError: an archive was cut short, and `max_broken` does not say that it may be; or none can be read.
    """
    archives = {path: _scan(path) for path in files.paths}
    faults = [archive.fault for archive in archives.values() if archive.fault]
    refuse_too_many(faults, 0, None, config)
    fields = frozenset(field for archive in archives.values() for field in archive.fields)
    if not fields and faults:
        raise EdgeSDError(str(faults[0]), "copy or download it again: there is no other")
    if not fields:
        raise UsageError(f"{config.source} holds no images", "a webdataset shard holds files such as 0001.png and 0001.cls")
    columns = find_columns(_features(fields), config, config.source, mixed=True)

    def items() -> Iterator[Item | Skipped]:
        for path, archive in archives.items():
            if archive.fields:
                _refuse_other_fields(archive.fields, columns, path)
                read_label = partial(_label, columns.label or "")
                yield from shard_items(path, partial(_samples, path, columns), columns, decode, archive.fault, read_label)
            elif archive.fault:
                yield archive.fault

    return Source(about_shards(config, files), items, sum(archive.images for archive in archives.values()), columns.classes)


def _scan(path: Path) -> _Archive:
    """Read an archive's headers. To `tarfile` one that was cut between two files is whole: its end mark is looked for."""
    fields: list[str] = []
    wrong = None
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                match = _MEMBER.fullmatch(member.name)
                if match and member.isreg():
                    fields.append(match[2])
            end = archive.offset
        with path.open("rb") as file:
            file.seek(end)
            if file.read(_BLOCK) != bytes(_BLOCK):
                wrong = "its end mark is missing"
    except (tarfile.TarError, OSError, EOFError) as error:
        wrong = one_line(error)
    images = sum(map(_is_image, fields))
    fault = wrong and shard_fault(path, f"is cut short, or no tar archive: {wrong}; {images} images begin in it")
    return _Archive(images, frozenset(fields), fault or None)


def _is_image(field: str) -> bool:
    return f".{_suffix(field)}" in (*SUFFIXES, ".gif")


def _suffix(field: str) -> str:
    return field.rpartition(".")[2].lower()


def _features(fields: frozenset[str]) -> dict[str, Any]:
    """Field → its type of `datasets`, which would look at the first five samples alone and refuse mixed formats."""
    from datasets import Image, Value

    kinds: dict[str, Any] = {}
    for field in sorted(fields):
        if _is_image(field):
            kinds[field] = Image(decode=False)
        else:
            kinds[field] = Value("int64" if _suffix(field) in _NUMBERS else "string" if _suffix(field) in _TEXTS else "null")
    return kinds


def _samples(path: Path, columns: Columns) -> Iterator[Mapping[str, str | bytes]]:
    """An archive's samples in their order: `__key__`, and of the columns that are read those that a sample has, as bytes.

    Raises:
        tarfile.TarError, OSError: it is damaged; samples that are whole came before.
        ValueError: a sample holds two files of one column.
    """
    sample: dict[str, str | bytes] = {}
    with tarfile.open(path, "r:") as archive:
        for member in archive:
            match = _MEMBER.fullmatch(member.name)
            if not match or not member.isreg():
                continue
            key, field = match.groups()
            if sample.get("__key__") != key:
                if sample:
                    yield sample
                sample = {"__key__": key}
            if field in sample:
                raise ValueError(f"{key} holds two files {field}")
            if field in columns.all:
                file = archive.extractfile(member)
                sample[field] = file.read() if file else b""
    if sample:
        yield sample


def _label(field: str, value: bytes | None) -> Label:
    """What a file of this column says; None where a sample has none.

    Raises:
        ValueError: it does not say it as such files do.
    """
    if value is None:
        return None
    number = _suffix(field) in _NUMBERS
    try:
        return int(value) if number else value.decode()
    except ValueError:
        raise ValueError(f"has the label {value[:40]!r}, no {'number' if number else 'text'}") from None


def _refuse_other_fields(fields: frozenset[str], columns: Columns, path: Path) -> None:
    missing = columns.images[0] if not fields & set(columns.images) else columns.label
    if missing and missing not in fields:
        raise EdgeSDError(f"{path} has no column {missing!r}; its columns are {', '.join(sorted(fields))}", BELONG_TOGETHER)
