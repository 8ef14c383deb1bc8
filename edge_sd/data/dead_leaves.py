"""Dead leaves: occluding discs of power-law radius, a built-in stand-in for natural images.

Sharp edges, occlusion and a power spectrum near 1/f², without a download: the model of Matheron, as studied for image
statistics by Lee, Mumford and Huang (IJCV 2001). With p(r) ∝ r⁻³ the picture is nearly invariant to scale.
"""

import numpy as np
from numpy.typing import NDArray

_SUPERSAMPLING = 2


def dead_leaves(seed: int, index: int, size: int, min_radius: float = 1.0) -> NDArray[np.uint8]:
    """Return image `index` of the sequence `seed`: (size, size, 3) uint8, the same on every machine.

    Discs are laid from front to back until no pixel is left bare.

    Args:
        min_radius: of the smallest disc in pixels; the largest has half the image's size.
    """
    rng = np.random.Generator(np.random.Philox(key=(seed << 64) | index))
    cells = size * _SUPERSAMPLING
    smallest, largest = min_radius * _SUPERSAMPLING, max(cells / 2, (min_radius + 1) * _SUPERSAMPLING)
    canvas = np.zeros((cells, cells, 3), dtype=np.float32)
    bare = np.ones((cells, cells), dtype=bool)
    rows = np.arange(cells, dtype=np.float64)
    while bare.any():
        # Inverse of the cumulative distribution of p(r) ∝ r⁻³ on [smallest, largest].
        u = rng.random(256)
        radii = (smallest**-2 - u * (smallest**-2 - largest**-2)) ** -0.5
        centres = rng.uniform(-largest, cells + largest, (256, 2))
        colours = rng.uniform(0, 255, (256, 3)).astype(np.float32)
        for radius, (y, x), colour in zip(radii, centres, colours, strict=True):
            top, bottom = max(int(y - radius), 0), min(int(y + radius) + 2, cells)
            left, right = max(int(x - radius), 0), min(int(x + radius) + 2, cells)
            if top >= bottom or left >= right:
                continue
            window = bare[top:bottom, left:right]
            if not window.any():
                continue
            disc = (rows[top:bottom, None] - y) ** 2 + (rows[None, left:right] - x) ** 2 <= radius**2
            disc &= window
            canvas[top:bottom, left:right][disc] = colour
            window[disc] = False
    fine = canvas.reshape(size, _SUPERSAMPLING, size, _SUPERSAMPLING, 3)
    image: NDArray[np.uint8] = np.rint(fine.mean((1, 3))).astype(np.uint8)
    return image
