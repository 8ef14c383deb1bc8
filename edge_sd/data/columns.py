"""Rows of a table → items: which columns hold the images and the classes, found by their types where nobody names them."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_sd.data.config import DataConfig
from edge_sd.data.items import Item, Skipped
from edge_sd.errors import EdgeSDError, UsageError

# Names that stand for classes where no column says so by its type.
_LABEL_NAMES = ("label", "labels", "class", "cls")
Decode = Callable[[bytes, str], NDArray[np.uint8]]
Label = int | str | None
ReadLabel = Callable[[Any], Label]


@dataclass(frozen=True)
class Columns:
    """What is read of a row.

    Attributes:
        images: the image is in the one of them that is not null; more than one only in webdataset shards of mixed formats.
        label: None where no classes are asked for.
        classes: names of the classes, where the column's type holds them.
    """

    images: tuple[str, ...]
    label: str | None
    classes: tuple[str, ...]

    @property
    def all(self) -> list[str]:
        return [*self.images, *([self.label] if self.label else [])]


def find_columns(features: Mapping[str, Any], config: DataConfig, where: object, *, mixed: bool = False) -> Columns:
    """Find the columns of images and of classes.

    Args:
        features: column → its type, of `datasets`.
        where: what has these columns, for errors.
        mixed: several columns of images are one, in several formats.

    Raises:
        UsageError: a column is missing, has another type, or is one of several.
    """
    images = _find_images(features, config.image_column, where, mixed)
    if not config.labelled:
        return Columns(images, None, ())
    label = _find_label(features, config.label_column, where)
    return Columns(images, label, tuple(getattr(features[label], "names", ())))


def _find_images(features: Mapping[str, Any], wanted: str | None, where: object, mixed: bool) -> tuple[str, ...]:
    from datasets import Image

    if wanted is not None:
        _refuse_missing(features, wanted, where, "--image-column")
        if not isinstance(features[wanted], Image) and not _holds_bytes(features[wanted]):
            raise UsageError(
                f"column {wanted!r} of {where} holds {features[wanted]}, no images",
                f"--image-column: one of {', '.join(features)}",
            )
        return (wanted,)
    # A table that was not written by `datasets` has plain bytes.
    found = [name for name, kind in features.items() if isinstance(kind, Image)]
    found = found or [name for name, kind in features.items() if _holds_bytes(kind)]
    if not found:
        raise UsageError(
            f"{where} has no column of images; its columns are {', '.join(features) or 'none'}", "--image-column names it"
        )
    if len(found) > 1 and not mixed:
        raise UsageError(f"{where} has several columns of images: {', '.join(found)}", f"--image-column {found[0]}")
    return tuple(found)


def _find_label(features: Mapping[str, Any], wanted: str | None, where: object) -> str:
    from datasets import ClassLabel

    if wanted is None:
        found = [name for name, kind in features.items() if isinstance(kind, ClassLabel)]
        found = found or [name for name in features if name in _LABEL_NAMES]
        if not found:
            raise UsageError(
                f"labels are asked for, and {where} has no column of classes; its columns are {', '.join(features)}",
                "--label-column names it; or leave --labels out",
            )
        if len(found) > 1:
            raise UsageError(f"{where} has several columns of classes: {', '.join(found)}", f"--label-column {found[0]}")
        wanted = found[0]
    _refuse_missing(features, wanted, where, "--label-column")
    kind = features[wanted]
    if not isinstance(kind, ClassLabel) and not str(getattr(kind, "dtype", "")).startswith(
        ("int", "uint", "string", "large_string")
    ):
        raise UsageError(f"column {wanted!r} of {where} holds {kind}, no classes", "--label-column: one of numbers or names")
    return wanted


def _refuse_missing(features: Mapping[str, Any], wanted: str, where: object, flag: str) -> None:
    if wanted not in features:
        raise UsageError(
            f"{where} has no column {wanted!r}; its columns are {', '.join(features) or 'none'}", f"give {flag} one of them"
        )


def _holds_bytes(kind: Any) -> bool:
    return _is_binary(kind.get("bytes") if isinstance(kind, dict) else kind)


def _is_binary(kind: Any) -> bool:
    return str(getattr(kind, "dtype", "")) in ("binary", "large_binary")


def label_as_given(value: Any) -> Label:
    """The label of a table: a number or a name, as its column's type says."""
    given: Label = value
    return given


def items_of(
    rows: Iterator[Mapping[str, Any]],
    columns: Columns,
    decode: Decode,
    name: Callable[[int, Mapping[str, Any]], str],
    fetch: Callable[[str], bytes] | None = None,
    read_label: ReadLabel = label_as_given,
) -> Iterator[Item | Skipped]:
    """Turn rows into items.

    Args:
        name: of row i.
        fetch: reads an image of which the row holds only the address; None where a row has to hold the image itself.
        read_label: value of a row's column → its label; a ValueError says what is wrong with it, and leaves out that row.

    Raises:
        UsageError: a row holds several images.
    """
    for index, row in enumerate(rows):
        held = {column: value for column in columns.images if (value := row.get(column)) is not None}
        if len(held) > 1:
            raise UsageError(f"{name(index, row)} holds several images: {', '.join(held)}", f"--image-column {next(iter(held))}")
        value = next(iter(held.values()), None)
        content, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
        try:
            label = read_label(row.get(columns.label)) if columns.label else None
        except ValueError as error:
            yield Skipped(name=name(index, row), reason=str(error))
            continue
        if content is not None:
            yield Item(name(index, row), partial(decode, content, name(index, row)), label)
        elif path and fetch:
            yield Item(name(index, row), partial(_fetched, fetch, path, decode, name(index, row)), label)
        else:
            # A table may hold paths in place of images; what they point at on this machine is not the table's to say.
            reason = f"holds the path {path!r} and no image" if path else "holds no image"
            yield Skipped(name=name(index, row), reason=reason)


def _fetched(fetch: Callable[[str], bytes], path: str, decode: Decode, name: str) -> NDArray[np.uint8]:
    return decode(fetch(path), name)


def label_indices(labels: list[Label], classes: tuple[str, ...]) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Labels → (N,) int64 and the classes' names: given, or sorted where labels are names, or "0", "1", … where they are numbers.

    Raises:
        EdgeSDError: numbers so large that they are no classes, or beyond the given ones.
    """
    if any(isinstance(label, str) for label in labels):
        classes = tuple(sorted({str(label) for label in labels}))
        places = {name: place for place, name in enumerate(classes)}
        return np.array([places[str(label)] for label in labels], dtype=np.int64), classes
    top = max((label for label in labels if isinstance(label, int)), default=-1)  # before they are int64: it may not be one
    if top >= (len(classes) or 100_000):
        raise EdgeSDError(f"label {top} is none of {len(classes) or '100000'} classes", "--label-column names another column")
    return np.array(labels, dtype=np.int64), classes or tuple(map(str, range(top + 1)))
