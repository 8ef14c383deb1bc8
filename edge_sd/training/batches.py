"""What step s trains on: a pure function of (seed, s), so that a run can be cut anywhere and go on to the same weights.

The whole batch is drawn and then shared out, so that the number of processes does not change what is learnt.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edge_sd.training.config import TrainConfig
from edge_sd.training.samples import Samples

_ORDER, _DRAWS, _CHOICE = 1, 2, 3  # streams of one seed


def _generator(seed: int, stream: int, counter: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=(seed << 64) | (stream << 56) | counter))


@dataclass(frozen=True)
class Batch:
    """One process's share of a step.

    Attributes:
        x0: clean images (B, C, H, W) float32 in [−1, 1], or latents.
        noise: ε, of x0's shape.
        t: timesteps (B,) int64, 0 … T−1.
        labels: classes (B,) int64, where the data have them.
    """

    x0: Tensor
    noise: Tensor
    t: Tensor
    labels: Tensor | None


def image_indices(seed: int, step: int, batch_size: int, images: int) -> NDArray[np.int64]:
    """Which images step `step` sees: the next `batch_size` of an endless sequence of permutations, one an epoch."""
    positions = np.arange(step * batch_size, (step + 1) * batch_size)
    epochs, places = positions // images, positions % images
    return np.array([_order(seed, int(epoch), images)[place] for epoch, place in zip(epochs, places, strict=True)])


@lru_cache(maxsize=2)  # a batch sees two epochs at most where it does not see many of a few images
def _order(seed: int, epoch: int, images: int) -> NDArray[np.int64]:
    return _generator(seed, _ORDER, epoch).permutation(images)


def draw_batch(samples: Samples, timesteps: int, config: TrainConfig, step: int, share: slice) -> Batch:
    """Draw step `step`'s batch for denoising and keep one process's `share` of it; t is uniform over `timesteps`."""
    indices, flips, rng = _draw(samples, config, step)
    t = rng.integers(0, timesteps, config.batch_size)
    noise = rng.standard_normal((config.batch_size, *samples.shape), dtype=np.float32)
    x0 = samples.take(indices[share], flips[share], rng.random((config.batch_size, 2))[share])
    labels = None if samples.labels is None else torch.from_numpy(samples.labels[indices[share]])
    return Batch(torch.from_numpy(x0), torch.from_numpy(noise[share]), torch.from_numpy(t[share]), labels)


def draw_choice(config: TrainConfig, step: int, choices: int) -> int:
    """Step `step`'s number below `choices`, the same for its whole batch."""
    return int(_generator(config.seed, _CHOICE, step).integers(choices))


def draw_images(
    samples: Samples, noise_shape: tuple[int, ...], config: TrainConfig, step: int, share: slice
) -> tuple[Tensor, Tensor]:
    """Draw step `step`'s images and Gaussian noise of a shape of its own, and keep one process's `share` of both."""
    indices, flips, rng = _draw(samples, config, step)
    noise = rng.standard_normal((config.batch_size, *noise_shape), dtype=np.float32)
    x0 = samples.take(indices[share], flips[share], rng.random((config.batch_size, 2))[share])
    return torch.from_numpy(x0), torch.from_numpy(noise[share])


def _draw(samples: Samples, config: TrainConfig, step: int) -> tuple[NDArray[np.int64], NDArray[np.bool_], np.random.Generator]:
    """Which samples, which of them mirrored, and the generator of everything else."""
    indices = image_indices(config.seed, step, config.batch_size, len(samples))
    rng = _generator(config.seed, _DRAWS, step)
    flips = rng.random(config.batch_size) < 0.5 if config.flip else np.zeros(config.batch_size, dtype=bool)
    return indices, flips, rng
