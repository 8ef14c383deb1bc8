"""What step s trains on: a pure function of (seed, s), so that a run can be cut anywhere and go on to the same weights.

The whole batch is drawn and then shared out, so that the number of processes does not change what is learnt.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edge_sd.diffusion.schedule import NoiseSchedule

_ORDER, _DRAWS = 1, 2  # streams of one seed


def _generator(seed: int, stream: int, counter: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=(seed << 64) | (stream << 56) | counter))


@dataclass(frozen=True)
class Batch:
    """One process's share of a step.

    Attributes:
        x0: clean images (B, C, H, W) float32 in [−1, 1].
        noise: ε, of x0's shape.
        t: timesteps (B,) int64, 0 … T−1.
    """

    x0: Tensor
    noise: Tensor
    t: Tensor


def image_indices(seed: int, step: int, batch_size: int, images: int) -> NDArray[np.int64]:
    """Which images step `step` sees: the next `batch_size` of an endless sequence of permutations, one an epoch."""
    positions = np.arange(step * batch_size, (step + 1) * batch_size)
    epochs, places = positions // images, positions % images
    orders = {epoch: _generator(seed, _ORDER, int(epoch)).permutation(images) for epoch in np.unique(epochs)}
    return np.array([orders[epoch][place] for epoch, place in zip(epochs, places, strict=True)])


def draw_batch(
    pixels: NDArray[np.uint8], schedule: NoiseSchedule, *, seed: int, step: int, batch_size: int, flip: bool, share: slice
) -> Batch:
    """Draw step `step`'s batch and keep one process's `share` of it."""
    indices = image_indices(seed, step, batch_size, len(pixels))
    rng = _generator(seed, _DRAWS, step)
    flips = rng.random(batch_size) < 0.5 if flip else np.zeros(batch_size, dtype=bool)
    t = rng.integers(0, schedule.timesteps, batch_size)
    noise = rng.standard_normal((batch_size, *pixels.shape[1:]), dtype=np.float32)
    x0 = pixels[indices[share]].astype(np.float32) / 127.5 - 1
    x0[flips[share]] = x0[flips[share], ..., ::-1]
    return Batch(torch.from_numpy(x0), torch.from_numpy(noise[share]), torch.from_numpy(t[share]))
