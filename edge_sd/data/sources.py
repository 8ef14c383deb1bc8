"""What models learn from: images of any source, read once, checked and hashed, and from then on at random access."""

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edge_sd.data.cache import CacheRecord, cache_folder, cache_writer, locked, read_cache
from edge_sd.data.columns import label_indices
from edge_sd.data.config import DEAD_LEAVES, HUB, DataConfig
from edge_sd.data.dead_leaves import dead_leaves
from edge_sd.data.decode import decode
from edge_sd.data.hub import HubData, UnreachableError, hub, open_hub
from edge_sd.data.items import Item, Skipped, Source, decoded, named, refuse_too_many
from edge_sd.data.local import Files, chosen_files, image_folder
from edge_sd.data.parquet import parquet
from edge_sd.data.webdataset import webdataset
from edge_sd.errors import EdgeSDError, UsageError
from edge_sd.files import fingerprint

IN_MEMORY = 2 << 30  # bytes of pixels; larger sets go to the cache
Observe = Callable[[int, int], None]


@dataclass(frozen=True)
class ImageData:
    """Images at random access: in memory, or mapped into it from the cache.

    Attributes:
        pixels: (N, 3, H, W) uint8, read-only where it is mapped; H = W = the model's size + `crop`.
        digest: hex SHA-256 over them, and over the labels where there are any.
        about: where they come from, for a person.
        labels: (N,) int64, indices into `classes`; None where none were asked for.
        classes: names of the classes.
        skipped: what was left out, and why.
        crop: how many pixels larger they are than the model takes them; see `windows`.
    """

    pixels: NDArray[np.uint8]
    digest: str
    about: str
    labels: NDArray[np.int64] | None = None
    classes: tuple[str, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    crop: int = 0

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def centre(self) -> NDArray[np.uint8]:
        """A view of the images at the model's size: (N, 3, H − crop, W − crop)."""
        start, (height, width) = self.crop // 2, self.pixels.shape[2:]
        return self.pixels[..., start : start + height - self.crop, start : start + width - self.crop]


def open_data(
    config: DataConfig,
    size: int,
    observe: Observe = lambda done, total: None,
    *,
    processes: int = 1,
    memory: int = IN_MEMORY,
) -> ImageData:
    """Read all images at size × size (larger by `config.crop`).

    Args:
        observe: called with (images done, images in all); the latter is 0 where nobody knows.
        processes: how many processes of a job, on this machine, open the same data: of several one decodes, see `cache`.
        memory: bytes of pixels that may be held in memory; more are decoded into the cache and mapped.

    Raises:
        UsageError: there is no such source, none of its files is an image, or a column or a split is missing.
        EdgeSDError: too many images are broken; or one has another size, without `resize`; each is named.
    """
    try:
        origin = _origin(config)
    except UnreachableError:
        kept = _kept_offline(config, size)
        if kept is None:
            raise
        return kept
    path = _cache_path(config, size, fingerprint(_identity(origin)))
    kept = _kept(path, config)
    if kept is not None:
        return kept
    source = _source(config, size, origin)
    total = source.total if config.limit is None else min(config.limit, source.total or config.limit)
    shape = (3, size + config.crop, size + config.crop)
    small = total is not None and total * int(np.prod(shape)) <= memory
    if total is not None and small and config.cache is None and processes == 1:
        store = _Memory(total, shape)
        labels, record = _read(config, source, total, store, observe)
        return _data(config, record, store.pixels[: store.count], labels)
    with locked(path):
        kept = _kept(path, config)  # by another process, meanwhile
        if kept is None:
            with cache_writer(path, shape) as writer:
                writer.finish(*_read(config, source, total, writer, observe))
            kept = _kept(path, config)
    if kept is None:
        raise EdgeSDError(f"{path} was written and cannot be read again", "is something else at work in that folder?")
    return kept


def source_key(config: DataConfig) -> str:
    """Stands for the images that `config` names, without decoding them: 16 hex digits, others where a file has changed.

    Raises:
        UsageError: there is no such source.
    """
    origin = _origin(config)
    if origin is None:
        return fingerprint({**config.model_dump(include={"source", "resize", *_OF_DEAD_LEAVES}), **_changed(config)})
    identity, changed = _identity(origin), _changed(config)
    return fingerprint([identity, changed] if changed else identity)


# Where the images come from

_OF_DEAD_LEAVES = ("count", "seed", "min_radius")
Origin = HubData | Files | None


def _origin(config: DataConfig) -> Origin:
    """What has to be looked at to know which images there are; nothing for dead leaves."""
    if config.source == DEAD_LEAVES:
        return None
    origin = open_hub(config) if config.source.startswith(HUB) else chosen_files(config)
    _refuse_what_is_not_its_own(config, origin)
    return origin


def _refuse_what_is_not_its_own(config: DataConfig, origin: HubData | Files) -> None:
    """Settings that would be read by nobody: whoever gave them thinks of another source, or of another setting."""
    if isinstance(origin, Files) and origin.kind == "folder":
        for name in ("image_column", "label_column"):
            if getattr(config, name) is not None:
                raise UsageError(
                    f"{_flag(name)}: images in files of their own have no columns",
                    "leave it out; --labels takes the names of their folders for classes",
                )
    for name in ("count", "min_radius"):  # the command line gives its defaults too: what is one is not told apart
        if getattr(config, name) != DataConfig.model_fields[name].default:
            raise UsageError(f"{_flag(name)}: {config.source} holds no dead leaves", "leave it out; --limit reads fewer images")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _identity(origin: Origin) -> object:
    """Changes with the source: its files, or its revision."""
    if origin is None or isinstance(origin, HubData):
        return origin and origin.revision
    return {str(path): (stat.st_size, stat.st_mtime_ns) for path in origin.paths for stat in (path.stat(),)}


def _changed(config: DataConfig) -> dict[str, Any]:
    """The settings that decide on the pixels and are not as they always were: a new one leaves old keys alone."""
    others = {"source", "cache", "max_broken", *(() if config.source == DEAD_LEAVES else _OF_DEAD_LEAVES)}
    return config.model_dump(mode="json", exclude_defaults=True, exclude=others)


def _source(config: DataConfig, size: int, origin: Origin) -> Source:
    side = size + config.crop
    if origin is None:
        names = range(config.count if config.limit is None else min(config.count, config.limit))

        def items() -> Iterator[Item]:
            for index in names:
                yield Item(f"dead leaves {index}", partial(dead_leaves, config.seed, index, side, config.min_radius))

        about = f"dead leaves, seed {config.seed}, smallest radius {config.min_radius:g} px"
        return Source(about, items, len(names), threads=False)  # Python's own work, one thread at a time

    def pixels(content: bytes | Path, name: str) -> NDArray[np.uint8]:
        return decode(content, name, size, resize=config.resize, crop=config.crop)

    if isinstance(origin, HubData):
        return hub(config, origin, pixels)
    if origin.kind == "folder":
        return image_folder(config, origin, pixels)
    return {"parquet": parquet, "webdataset": webdataset}[origin.kind](config, origin, pixels)


# From items to data


class _Store(Protocol):
    """Takes images one by one, (3, H, W)."""

    count: int

    def add(self, pixels: NDArray[np.uint8]) -> None: ...


class _Memory:
    """A store in memory, of at most `most` images."""

    def __init__(self, most: int, shape: tuple[int, ...]) -> None:
        self.pixels, self.count = np.empty((most, *shape), dtype=np.uint8), 0

    def add(self, pixels: NDArray[np.uint8]) -> None:
        self.pixels[self.count] = pixels
        self.count += 1


def _read(
    config: DataConfig, source: Source, total: int | None, store: _Store, observe: Observe
) -> tuple[NDArray[np.int64] | None, CacheRecord]:
    """Decode a source into a store; return its labels and what there is to say of it."""
    digest, labels, skipped = hashlib.sha256(), list[int | str | None](), list[Skipped]()
    threads = min(os.cpu_count() or 1, 16) if source.threads else 1
    with closing(decoded(source.items(), config.labelled, threads)) as outcomes:
        for outcome in outcomes:
            if isinstance(outcome, Skipped):
                skipped.append(outcome)
                refuse_too_many(skipped, store.count, total, config)
            else:
                pixels = np.ascontiguousarray(outcome.pixels.transpose(2, 0, 1))
                digest.update(pixels.data)
                store.add(pixels)
                labels.append(outcome.label)
            observe(store.count + len(skipped), total or 0)
            if store.count == config.limit:
                break
    refuse_too_many(skipped, store.count, store.count + len(skipped), config)
    if not store.count:
        if skipped:
            raise EdgeSDError(f"none of the {source.about} can be used: {named(skipped)}", "mend them, or give another --data")
        raise UsageError(f"{config.source} holds no images", "give --data a source that is not empty")
    indices, classes = label_indices(labels, source.classes) if config.labelled else (None, ())
    if indices is not None:
        digest.update(indices.astype("<i8").tobytes())
    record = CacheRecord(
        about=f"{store.count} {source.about}", digest=digest.hexdigest(), classes=classes, skipped=tuple(skipped)
    )  # fmt: skip
    return indices, record


def _data(config: DataConfig, record: CacheRecord, pixels: NDArray[np.uint8], labels: NDArray[np.int64] | None) -> ImageData:
    return ImageData(pixels, record.digest, record.about, labels, record.classes, record.skipped, config.crop)


# What was kept of an earlier time


def _cache_path(config: DataConfig, size: int, identity: str) -> Path:
    settings = fingerprint({**_changed(config), "source": config.source, "size": size, "labelled": config.labelled})
    return cache_folder(config.cache) / f"{settings}-{identity}.safetensors"


def _kept(path: Path, config: DataConfig) -> ImageData | None:
    """The images of a cache file; None where there is none."""
    found = read_cache(path)
    if found is None:
        return None
    record, pixels, labels = found
    refuse_too_many(list(record.skipped), len(pixels), len(pixels) + len(record.skipped), config)
    return _data(config, record, pixels, labels)


def _kept_offline(config: DataConfig, size: int) -> ImageData | None:
    """The latest images of a hub data set that were kept when the hub could be reached."""
    pattern = _cache_path(config, size, "*")
    files = sorted(pattern.parent.glob(pattern.name), key=lambda path: path.stat().st_mtime, reverse=True)
    return next((data for path in files if (data := _kept(path, config))), None)
