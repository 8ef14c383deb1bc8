"""How fast is one call of the exported denoiser? `make bench`, or `python tests/benchmarks/denoiser.py PRESET THREADS`.

ONNX Runtime against torch eager on the same bundle (random weights), interleaved A B B A in one process, batch 1: the ratio's
median and its 95 % bootstrap interval. Beside it the floor: the multiply-accumulates at the best fp32 convolution rate that
this machine shows in the same run.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from edge_sd.bundle import Bundle
from edge_sd.checkpoint import Checkpoint, Provenance
from edge_sd.diffusion import SCHEDULES
from edge_sd.export import export_bundle
from edge_sd.models import PRESETS
from edge_sd.models.count import count
from edge_sd.models.unet import SpectralUNet
from edge_sd.runtimes import find_runtime

BLOCKS, CALLS = 24, 4


def main(preset_name: str = "tiny16", threads: int = 2) -> None:
    """Measure and print."""
    preset = PRESETS[preset_name]
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    checkpoint = Checkpoint.of(
        SpectralUNet(preset.config), SCHEDULES[preset.schedule], preset.prediction, Provenance(made_by="bench")
    )
    with tempfile.TemporaryDirectory() as folder:
        bundle = export_bundle(checkpoint, Path(folder) / "bench.edgesd", ["onnx"], steps=4, goldens=1)
        calls = {name: caller(bundle, name, threads) for name in ("torch", "onnxruntime")}
        times = interleaved(calls["torch"], calls["onnxruntime"])
    eager, ort = (np.array(column) for column in zip(*times, strict=True))
    found = count(preset.config)
    floor = 2 * (found.macs + found.attention_macs) / convolution_rate() * 1e3
    low, median, high = ratio_interval(eager, ort)
    print(f"{preset_name}: {found.macs / 1e9:.3f} GMAC, {threads} threads, {BLOCKS} blocks A B B A of {CALLS} calls")
    print(f"torch eager  {np.median(eager):8.2f} ms a call")
    print(f"onnxruntime  {np.median(ort):8.2f} ms a call, {median:.2f}× faster (95 % {low:.2f}–{high:.2f})")
    print(f"fp32 floor   {floor:8.2f} ms at the machine's convolution rate; onnxruntime takes {np.median(ort) / floor:.1f}× that")


def caller(bundle: Bundle, runtime: str, threads: int) -> Callable[[], None]:
    """A call of the denoiser on the golden trajectory's first step, warmed up."""
    session = find_runtime(runtime).load(bundle, threads)
    sample, features = bundle.golden.trajectories[0].samples[:1], bundle.plan.features[:1]

    def call() -> None:
        session(sample, features)

    for _ in range(5):
        call()
    return call


def interleaved(a: Callable[[], None], b: Callable[[], None]) -> list[tuple[float, float]]:
    """Milliseconds a call of (a, b) in each block; within a block the order is a b b a."""
    return [
        ((first + last) / 2, (second + third) / 2)
        for first, second, third, last in ([timed(call) for call in (a, b, b, a)] for _ in range(BLOCKS))
    ]


def timed(call: Callable[[], None]) -> float:
    """Milliseconds a call, over `CALLS` calls."""
    began = time.perf_counter()
    for _ in range(CALLS):
        call()
    return (time.perf_counter() - began) * 1e3 / CALLS


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
            for _ in range(8):
                began = time.perf_counter()
                layer(x)
                best = max(best, 2 * 9 * channels**2 * size**2 / (time.perf_counter() - began))
    return best


if __name__ == "__main__":
    main(*sys.argv[1:2], *(int(value) for value in sys.argv[2:3]))
