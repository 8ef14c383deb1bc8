"""The files that a local source names, and the images of a folder.

Folders of images are read directly: `datasets`' imagefolder resolves every file by itself (10 s for 14,000 files, against
0.2 s here), takes brackets in a name for a pattern, and hands over nothing but the paths.
"""

import glob
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edge_sd.data.config import DataConfig
from edge_sd.data.items import Item, Source, named
from edge_sd.errors import UsageError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".ppm", ".tif", ".tiff")
_KINDS: dict[str, Literal["folder", "parquet", "webdataset"]] = {
    **dict.fromkeys(SUFFIXES, "folder"), ".parquet": "parquet", ".tar": "webdataset",
}  # fmt: skip
_READ = f"files that end in {' '.join(_KINDS)} are read, sub-folders included"


@dataclass(frozen=True)
class Files:
    """Files of one kind, sorted, and the folder that they are below."""

    kind: Literal["folder", "parquet", "webdataset"]
    root: Path
    paths: list[Path]


def find_files(source: str) -> Files:
    """The files that a folder, a file or a glob stands for.

    Raises:
        UsageError: there are none, or of more than one kind.
    """
    path = Path(source)
    if path.is_dir():
        root, found = path, _below(path)
    elif path.exists():
        root, found = path.parent, [path]
    elif glob.has_magic(source):
        fixed = next(i for i, part in enumerate(path.parts) if glob.has_magic(part))
        root, found = Path(*path.parts[:fixed]), [Path(name) for name in glob.glob(source, recursive=True)]  # noqa: PTH207 (may be absolute)
    else:
        raise UsageError(f"{source} is not a folder or a file", "give --data a folder of images, or dead-leaves")
    by_kind: dict[Literal["folder", "parquet", "webdataset"], list[Path]] = {}
    for file in found:
        kind = _KINDS.get(file.suffix.lower())
        if kind and file.is_file():
            by_kind.setdefault(kind, []).append(file)
    if not by_kind:
        raise UsageError(f"{source} holds no images", _READ)
    if len(by_kind) > 1:
        held = ", ".join(f"{len(paths)} {'image' if kind == 'folder' else kind} file(s)" for kind, paths in by_kind.items())
        raise UsageError(f"{source} holds {held}", f"give a glob of one kind, for instance '{root}/**/*.parquet'")
    ((kind, paths),) = by_kind.items()
    return Files(kind, root, sorted(paths))


def _below(root: Path) -> list[Path]:
    """Files below a folder and below the folders that links in it lead to, each once; hidden ones, and what macOS adds, are none.

    A link is followed when all that is no link has been seen: a folder keeps its own name, which is a class, and links in a
    circle come to an end.
    """
    found, waiting, seen = list[Path](), [root], set[str]()
    for start in waiting:  # grows while it is gone through
        for place, folders, names in os.walk(start):
            real = os.path.realpath(place)
            if real in seen:
                folders.clear()  # nor what is below it
                continue
            seen.add(real)
            folders[:] = sorted(filter(_is_visible, folders))  # of two links to one folder it is always the same that counts
            waiting += [below for below in (Path(place, name) for name in folders) if below.is_symlink()]
            found += [Path(place, name) for name in names if _is_visible(name)]
    return found


def _is_visible(name: str) -> bool:
    """Beside `x.png` macOS keeps `._x.png`, which is no image, and in its zip archives a whole folder of such."""
    return not name.startswith(".") and name != "__MACOSX"


def chosen_files(config: DataConfig) -> Files:
    """`find_files` of the source, those of the split alone where one is given.

    Raises:
        UsageError: as there, or no file is of that split.
    """
    files, split = find_files(config.source), config.split
    if split is None:
        return files
    if files.kind == "folder":
        depths = {path: depth for path in files.paths if (depth := _split_depth(path, files.root, split)) is not None}
        shallowest = min(depths.values(), default=0)  # below it the same name is that of a class
        paths = [path for path, depth in depths.items() if depth == shallowest]
        hint = f"with --split, images lie in a sub-folder {split}/"
    else:
        word = re.compile(rf"(?<![A-Za-z0-9]){re.escape(split)}(?![A-Za-z0-9])")
        paths = [path for path in files.paths if word.search(path.relative_to(files.root).as_posix())]
        hint = f"with --split, the shards have it in their names; here they are {named(path.name for path in files.paths)}"
    if not paths:
        raise UsageError(f"{config.source} has no split {split!r}", hint)
    return Files(files.kind, files.root, paths)


def _split_depth(path: Path, root: Path, split: str) -> int | None:
    """How far below the root the first folder of that name is in which a file lies; None where there is none."""
    folders = path.relative_to(root).parts[:-1]
    return folders.index(split) if split in folders else None


def image_folder(config: DataConfig, files: Files, decode: Callable[[Path, str], NDArray[np.uint8]]) -> Source:
    """A folder of images as a source; the class is the name of an image's own folder.

    Raises:
        UsageError: labels are asked for, and an image lies in no sub-folder.
    """
    paths, names = files.paths, [path.parent.name for path in files.paths]
    bare = [path for path in paths if _is_bare(path, files.root, config.split)]
    if config.labelled and bare:
        raise UsageError(
            f"labels are asked for, and {len(bare)} image(s) of {files.root} lie in no sub-folder of a class: {named(bare)}",
            "put each class into a sub-folder of its own, or leave --labels out",
        )
    classes = tuple(sorted(set(names))) if config.labelled else ()
    places = {name: place for place, name in enumerate(classes)}
    chosen = np.arange(len(paths))
    if config.limit is not None and config.limit < len(paths):
        chosen = np.arange(config.limit) * len(paths) // config.limit

    def items() -> Iterator[Item]:
        for index in chosen:
            path = paths[index]
            yield Item(str(path), partial(decode, path, str(path)), places.get(names[index]))

    return Source(f"images of {Path(config.source).name}", items, len(chosen), classes=classes)


def _is_bare(path: Path, root: Path, split: str | None) -> bool:
    """Whether an image lies in the source's own folder, or in the split's, and so in that of no class."""
    depth = None if split is None else _split_depth(path, root, split)
    return len(path.relative_to(root).parts) == (1 if depth is None else depth + 2)
