"""How fast is one call of the exported denoiser? `make bench`, or `python tests/benchmarks/denoiser.py PRESET THREADS`.

ONNX Runtime against torch eager on the same bundle (random weights), interleaved A B B A in one process, batch 1: the ratio's
median and its 95 % bootstrap interval. Beside it the floor: the multiply-accumulates at the best fp32 convolution rate that
this machine shows in the same run. Then, as samples are drawn here, 32 together on one thread: channels last against channels
first.
"""

import copy
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from _measure import convolution_rate, interleaved, ratio_interval

from edge_sd.bundle import Bundle
from edge_sd.checkpoint import Checkpoint, Provenance
from edge_sd.diffusion import SCHEDULES
from edge_sd.export import ExportRequest, export_bundle
from edge_sd.models import PRESETS
from edge_sd.models.count import count
from edge_sd.models.unet import SpectralUNet
from edge_sd.runtimes import find_runtime

BLOCKS, CALLS, DRAWN = 24, 4, 32


def main(preset_name: str = "tiny16", threads: int = 2) -> None:
    """Measure and print."""
    preset = PRESETS[preset_name]
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    checkpoint = Checkpoint.of(
        SpectralUNet(preset.config), SCHEDULES[preset.schedule], preset.prediction, Provenance(made_by="bench")
    )
    with tempfile.TemporaryDirectory() as folder:
        bundle = export_bundle(checkpoint, Path(folder) / "bench.edgesd", ExportRequest(("onnx",), steps=4, goldens=1))
        calls = {name: caller(bundle, name, threads) for name in ("torch", "onnxruntime")}
        eager, ort = interleaved(calls["torch"], calls["onnxruntime"], blocks=BLOCKS, calls=CALLS)
    found = count(preset.config)
    floor = 2 * (found.macs + found.attention_macs) / convolution_rate() * 1e3
    low, median, high = ratio_interval(eager, ort)
    print(f"{preset_name}: {found.macs / 1e9:.3f} GMAC, {threads} threads, {BLOCKS} blocks A B B A of {CALLS} calls")
    print(f"torch eager  {np.median(eager):8.2f} ms a call")
    print(f"onnxruntime  {np.median(ort):8.2f} ms a call, {median:.2f}× faster (95 % {low:.2f}–{high:.2f})")
    print(f"fp32 floor   {floor:8.2f} ms at the machine's convolution rate; onnxruntime takes {np.median(ort) / floor:.1f}× that")
    torch.set_num_threads(1)
    model = checkpoint.build()
    turned = copy.deepcopy(model).to(memory_format=torch.channels_last)
    first, last = interleaved(drawing(model), drawing(turned), blocks=BLOCKS // 2, calls=1)
    low, median, high = ratio_interval(first, last)
    print(
        f"drawing {DRAWN}   {np.median(last):8.2f} ms a step on one thread with channels last, "
        f"{median:.2f}× faster (95 % {low:.2f}–{high:.2f})"
    )


def caller(bundle: Bundle, runtime: str, threads: int) -> Callable[[], object]:
    """A call of the denoiser on the golden trajectory's first step."""
    session = find_runtime(runtime).load(bundle, threads)
    golden = bundle.golden.trajectories[0]
    return lambda: session(golden.samples[:1], golden.features[:1])


def drawing(model: SpectralUNet) -> Callable[[], object]:
    """A call of the denoiser in torch for samples that are drawn together."""
    x = torch.randn(DRAWN, *model.config.sample_shape)
    features = model.temporal(torch.full((DRAWN,), 500.0)).detach()

    def call() -> object:
        with torch.no_grad():
            return model.denoise(x, features)

    return call


if __name__ == "__main__":
    main(*sys.argv[1:2], *(int(value) for value in sys.argv[2:3]))
