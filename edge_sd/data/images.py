"""Images as arrays, and arrays as PNG files."""

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edge_sd.files import write_bytes


def to_uint8(samples: NDArray[np.floating]) -> NDArray[np.uint8]:
    """(B, C, H, W) in [−1, 1] (clipped) → (B, H, W, C) uint8."""
    pixels = (np.clip(samples, -1, 1) + 1) * 127.5
    return np.ascontiguousarray(np.rint(pixels).astype(np.uint8).transpose(0, 2, 3, 1))


def grid(images: NDArray[np.uint8], columns: int | None = None, gap: int = 1, scale: int = 1) -> NDArray[np.uint8]:
    """Lay (B, H, W, 3) images out in rows, white between them, each pixel enlarged `scale` times."""
    count, height, width, channels = images.shape
    columns = columns or int(np.ceil(np.sqrt(count)))
    rows = -(-count // columns)
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, channels), 255, dtype=np.uint8)
    for index, image in enumerate(images):
        top, left = index // columns * (height + gap), index % columns * (width + gap)
        sheet[top : top + height, left : left + width] = image
    return sheet.repeat(scale, axis=0).repeat(scale, axis=1)


def png_bytes(image: NDArray[np.uint8]) -> bytes:
    """Encode (H, W, 3) or (H, W) uint8 as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def save_png(path: Path, image: NDArray[np.uint8]) -> None:
    """Write a PNG file, atomically."""
    write_bytes(path, png_bytes(image))


def rgb(samples: NDArray[np.floating]) -> NDArray[np.uint8]:
    """`to_uint8` for samples of any channel count: fewer than 3 become grey, of more the first 3 are shown."""
    images = to_uint8(samples)
    return images[..., :1].repeat(3, axis=-1) if images.shape[-1] < 3 else images[..., :3]
