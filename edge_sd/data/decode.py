"""One encoded image → pixels of the size that is asked for."""

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from edge_sd.errors import EdgeSDError

# Pillow would look for others too: for EPS it starts an interpreter of PostScript, on bytes that anybody wrote.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "PPM", "TIFF", "GIF")
# An image whose shorter side would have to grow more than this is no picture but its ghost: a tracking pixel, an icon.
LARGEST_SCALE = 4


class BrokenImageError(Exception):
    """An image that cannot be used; the reason follows its name in a sentence."""


def decode(content: bytes | Path, name: str, size: int, *, resize: bool, crop: int = 0) -> NDArray[np.uint8]:
    """Decode one image to (size + crop, size + crop, 3) uint8.

    Grey becomes three equal channels, of 16 bits the upper 8 are kept, transparency is laid over white, a photograph is
    turned as its camera was.

    Args:
        resize: scale the shorter side to size + crop and cut the centre out.

    Raises:
        BrokenImageError: it cannot be decoded, or is so small that `resize` would scale it by more than 4.
        EdgeSDError: it has another size, and `resize` is not given: no fault of the image, but of the settings.
    """
    try:
        with Image.open(io.BytesIO(content) if isinstance(content, bytes) else content, formats=FORMATS) as file:
            image = ImageOps.exif_transpose(file)
            if image.mode[0] in "FI":
                image = _grey(image, file.format)
            image = image.convert("RGBA") if image.has_transparency_data else image.convert("RGB")
    except Exception as error:  # on damaged bytes Pillow raises whatever its parsers run into: struct.error, IndexError, ...
        raise BrokenImageError(f"is not a readable image: {error or type(error).__name__}") from error
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    side = size + crop
    if image.size != (side, side):
        if not resize:
            wanted = f"the model takes {size}×{size}" + (f", read at {side}×{side} for a crop of {crop}" if crop else "")
            raise EdgeSDError(f"{name} is {image.width}×{image.height}, and {wanted}", "give --resize to scale and crop")
        if min(image.size) * LARGEST_SCALE < side:
            raise BrokenImageError(f"is {image.width}×{image.height}, too small to be scaled to {side}")
        image = ImageOps.fit(image, (side, side), Image.Resampling.BICUBIC)
    return np.asarray(image)


def _grey(image: Image.Image, file_format: str | None) -> Image.Image:
    """The upper 8 of 16 bits, which Pillow would clip to white; with an alpha channel where one value stands for transparent.

    Raises:
        ValueError: its pixels are numbers of which nobody knows what is white.
    """
    values = np.asarray(image)  # (H, W)
    if image.mode == "F":
        raise ValueError("its pixels are real numbers of no known range")
    # The formats whose numbers of up to 16 bits Pillow may hand over as ones of 32.
    if image.mode == "I" and (file_format not in ("PNG", "PPM") or values.min() < 0 or values.max() > 0xFFFF):
        raise ValueError("its pixels are whole numbers of no known range")
    grey, transparent = Image.fromarray((values >> 8).astype(np.uint8)), image.info.get("transparency")
    if transparent is None:
        return grey
    return Image.merge("LA", (grey, Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8))))
