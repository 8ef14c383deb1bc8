"""What models learn from: a folder of images, or the built-in dead leaves. Either is read once, checked and hashed."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from pydantic import Field

from edge_sd.data.dead_leaves import dead_leaves
from edge_sd.errors import EdgeSDError, UsageError
from edge_sd.validation import Record

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".ppm", ".tif", ".tiff")


class DataConfig(Record):
    """Where images come from.

    Attributes:
        source: "dead-leaves", or a folder, searched with its sub-folders.
        resize: scale an image's shorter side to the model's size and crop the centre; without it every image must have that size.
        count, seed, min_radius: of dead leaves only; see `dead_leaves`.
    """

    source: str = "dead-leaves"
    resize: bool = False
    count: int = Field(default=4096, ge=1)
    seed: int = Field(default=0, ge=0, lt=2**63)
    min_radius: float = Field(default=1.0, gt=0, allow_inf_nan=False)

    @property
    def kind(self) -> Literal["dead-leaves", "folder"]:
        return "dead-leaves" if self.source == "dead-leaves" else "folder"


@dataclass(frozen=True)
class ImageData:
    """Images in memory.

    Attributes:
        pixels: (N, 3, H, W) uint8.
        digest: hex SHA-256 over them.
        about: where they come from, for a person.
    """

    pixels: NDArray[np.uint8]
    digest: str
    about: str

    def __len__(self) -> int:
        return len(self.pixels)


def open_data(config: DataConfig, size: int, observe: Callable[[int, int], None] = lambda done, total: None) -> ImageData:
    """Read all images at size × size.

    Args:
        observe: called with (images done, images in all).

    Raises:
        UsageError: no folder, or none of its files is an image.
        EdgeSDError: a file that cannot be decoded, or an image of another size without `resize`; each is named.
    """
    if config.kind == "dead-leaves":
        images = []
        for index in range(config.count):
            images.append(dead_leaves(config.seed, index, size, config.min_radius))
            observe(index + 1, config.count)
        about = f"{config.count} dead leaves, seed {config.seed}, smallest radius {config.min_radius:g} px"
    else:
        paths = image_paths(Path(config.source))
        images = []
        for path in paths:
            images.append(_decode(path, size, config.resize))
            observe(len(images), len(paths))
        about = f"{len(paths)} images of {Path(config.source).name}"
    pixels = np.ascontiguousarray(np.stack(images).transpose(0, 3, 1, 2))
    return ImageData(pixels, hashlib.sha256(pixels.data).hexdigest(), about)


def image_paths(folder: Path) -> list[Path]:
    """The image files below a folder, sorted."""
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder", "give --data a folder of images, or dead-leaves")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not paths:
        raise UsageError(f"{folder} holds no images", f"files that end in {' '.join(SUFFIXES)} are read, sub-folders included")
    return paths


def _decode(path: Path, size: int, resize: bool) -> NDArray[np.uint8]:
    """Decode one file to (size, size, 3) uint8; transparency is laid over white."""
    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file)
            if image.mode == "F":
                raise ValueError("its pixels are real numbers of no known range")
            if image.mode.startswith("I;16"):  # Pillow would clip it to white
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            image = image.convert("RGBA") if image.has_transparency_data else image.convert("RGB")
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise EdgeSDError(f"{path} is not a readable image: {error}", "mend or remove the file") from error
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    if image.size != (size, size):
        if not resize:
            raise EdgeSDError(
                f"{path} is {image.width}×{image.height}, and the model takes {size}×{size}", "give --resize to scale and crop"
            )
        image = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
    return np.asarray(image)
