"""The same pictures in every format that is read."""

import io
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

SIZE = 8
Pictures = Callable[[int], list[bytes]]
Write = Callable[..., Path]


def png(seed: int, size: int = SIZE) -> bytes:
    """A picture of noise, encoded without loss."""
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def pictures() -> Pictures:
    return lambda count: [png(seed) for seed in range(count)]


@pytest.fixture
def write_folder() -> Write:
    """(folder, encoded images, names of their classes) → the folder; files are numbered through all classes."""

    def write(folder: Path, images: Sequence[bytes], classes: Sequence[str] | None = None) -> Path:
        for index, image in enumerate(images):
            file = folder / (classes[index] if classes else "") / f"{index:04}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(image)
        return folder

    return write


@pytest.fixture
def write_parquet() -> Write:
    """(file, encoded images, labels, names of the classes, other columns) → the file, as `datasets` writes it."""

    def write(
        file: Path,
        images: Sequence[bytes | None],
        labels: Sequence[Any] | None = None,
        names: Sequence[str] | None = None,
        **others: Sequence[Any],
    ) -> Path:
        from datasets import ClassLabel, Dataset, Features, Value
        from datasets import Image as ImageFeature

        columns: dict[str, Sequence[Any]] = {"image": [image and {"bytes": image, "path": None} for image in images]}
        kinds: dict[str, Any] = {"image": ImageFeature()}
        if labels is not None:
            columns["label"] = labels
            kind = "string" if any(isinstance(label, str) for label in labels) else "int64"
            kinds["label"] = ClassLabel(names=list(names)) if names else Value(kind)
        for name, values in others.items():
            columns[name] = values
            kinds[name] = ImageFeature() if isinstance(values[0], dict) else Value("string")
        file.parent.mkdir(parents=True, exist_ok=True)
        Dataset.from_dict(columns, features=Features(kinds)).to_parquet(file)
        return file

    return write


@pytest.fixture
def write_tar() -> Write:
    """(file, samples as {suffix: bytes}) → the file."""

    def write(file: Path, samples: Sequence[dict[str, bytes]]) -> Path:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(file, "w") as archive:
            for index, sample in enumerate(samples):
                for suffix, data in sample.items():
                    entry = tarfile.TarInfo(f"{index:04}.{suffix}")
                    entry.size = len(data)
                    archive.addfile(entry, io.BytesIO(data))
        return file

    return write
