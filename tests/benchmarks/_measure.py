"""What the benchmarks share: interleaved timing, ratios with intervals, the machine's own convolution rate."""

import time
from collections.abc import Callable

import numpy as np
import torch

Call = Callable[[], object]


def interleaved(a: Call, b: Call, *, blocks: int, calls: int) -> tuple[np.ndarray, np.ndarray]:
    """Milliseconds a call of a and of b in each block; within a block the order is a b b a."""
    for call in (a, b, a, b):  # the first calls plan and pack
        call()
    rows = []
    for _ in range(blocks):
        first, second, third, last = (timed(call, calls) for call in (a, b, b, a))
        rows.append(((first + last) / 2, (second + third) / 2))
    columns = np.array(rows)
    return columns[:, 0], columns[:, 1]


def timed(call: Call, calls: int) -> float:
    """Milliseconds a call."""
    began = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - began) * 1e3 / calls


def ratio_interval(a: np.ndarray, b: np.ndarray) -> tuple[float, float, float]:
    """2.5 %, median and 97.5 % of the bootstrapped median of a / b, block by block."""
    ratios = a / b
    drawn = np.random.default_rng(0).choice(ratios, (4000, len(ratios)))
    low, high = np.percentile(np.median(drawn, axis=1), (2.5, 97.5))
    return float(low), float(np.median(ratios)), float(high)


def convolution_rate() -> float:
    """Best FLOP/s of a 3×3 fp32 convolution over a few shapes."""
    best = 0.0
    for channels, size in ((64, 64), (128, 32), (256, 32), (256, 64)):
        layer, x = torch.nn.Conv2d(channels, channels, 3, padding=1), torch.randn(1, channels, size, size)
        with torch.inference_mode():
            layer(x)
            for _ in range(12):
                seconds = timed(lambda layer=layer, x=x: layer(x), 1) / 1e3  # type: ignore[misc]
                best = max(best, 2 * 9 * channels**2 * size**2 / seconds)
    return best
