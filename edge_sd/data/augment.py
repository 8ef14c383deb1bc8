"""Augmentations of a batch, as functions of numbers that the caller drew: the same numbers, the same batch."""

import numpy as np
from numpy.typing import NDArray


def window_offsets(rng: np.random.Generator, count: int, crop: int) -> NDArray[np.int64]:
    """Draw (top, left) of `count` windows: (count, 2) int64, each 0 … crop."""
    return rng.integers(0, crop + 1, (count, 2))


def windows(pixels: NDArray[np.uint8], offsets: NDArray[np.int64], size: int) -> NDArray[np.uint8]:
    """Cut a window out of each image.

    Args:
        pixels: (B, C, H, W).
        offsets: (B, 2), top and left, each 0 … H − size and 0 … W − size.

    Returns:
        (B, C, size, size), a copy.

    Raises:
        ValueError: a window leaves its image.
    """
    room = np.array(pixels.shape[2:]) - size
    if offsets.shape != (len(pixels), 2) or (offsets < 0).any() or (offsets > room).any():
        raise ValueError(f"windows of {size} at {offsets.tolist()} do not lie in images of {pixels.shape}")
    rows, columns = (offsets[:, axis, None] + np.arange(size) for axis in (0, 1))  # (B, size) each
    return pixels[np.arange(len(pixels))[:, None, None], :, rows[:, :, None], columns[:, None, :]].transpose(0, 3, 1, 2).copy()
