"""The denoising loop of a bundle, in any runtime."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from edge_sd.bundle import trace
from edge_sd.diffusion import Plan
from edge_sd.runnable import Session


def sample_bundle(
    session: Session, plan: Plan, *, seed: int = 0, count: int = 1, observe: Callable[[int, int], None] = lambda done, total: None
) -> NDArray[np.float32]:
    """Draw `count` samples one at a time, (count, C, H, W) float32; sample i depends on (seed, i) alone."""
    samples = []
    for index in range(count):
        samples.append(trace(plan, session, seed, index).final)
        observe(index + 1, count)
    return np.stack(samples)
