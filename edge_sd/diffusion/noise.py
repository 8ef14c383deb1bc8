"""The noise that samples start from: a function of (seed, image, row), whatever the batch size, the runtime or the machine.

Counter-based (NumPy's Philox, keyed by the seed and the image's index, its counter advanced by the row), so that image 7
of a batch of 16 is image 7 computed alone.
"""

import numpy as np
from numpy.typing import NDArray

# A row's noise starts this many counter blocks (of four 64-bit words) after the previous row's.
_ROW_STRIDE = 1 << 40


def gaussian(seed: int, index: int, row: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Unit Gaussian noise for one image, float32 of `shape`; row −1 is where the loop starts, row i what step i adds."""
    bits = np.random.Philox(key=(seed << 64) | index).advance((row + 1) * _ROW_STRIDE)
    return np.random.Generator(bits).standard_normal(shape, dtype=np.float32)


def gaussian_batch(seed: int, indices: range, row: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """`gaussian` of several images, (len(indices), *shape) float32."""
    return np.stack([gaussian(seed, index, row, shape) for index in indices])
