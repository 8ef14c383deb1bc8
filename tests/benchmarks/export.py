"""What an export costs and what it brings: `make bench`, or `python tests/benchmarks/export.py`.

Spectral Diffusion's U-Net for FFHQ (21 M parameters) and LDM-4's (274 M), random weights, batch 1, 2 threads:

* seconds and peak memory of each export, each in a process of its own;
* our program against a naive export of the same module (time embedding inside, no rewrites, the exporter's defaults);
* the slim model against LDM-4 in the same runtime, both exported by us;
* the floor: multiply-accumulates at the machine's own best fp32 convolution rate.

Ratios are of calls interleaved A B B A in one process: the median, and its 95 % bootstrap interval over blocks.
`python tests/benchmarks/export.py rewrites TARGET` leaves out one rewrite at a time; `… profile` shows what a lowering
spends its time on.
"""

import contextlib
import cProfile
import io
import json
import pstats
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _measure import convolution_rate, interleaved, ratio_interval
from denoiser import caller
from torch import Tensor, nn

from edge_sd.bundle import open_bundle
from edge_sd.checkpoint import Checkpoint, Provenance
from edge_sd.diffusion import SCHEDULES
from edge_sd.errors import EdgeSDError
from edge_sd.export import ExportRequest, export_bundle, targets
from edge_sd.models import PRESETS
from edge_sd.models.count import count
from edge_sd.models.unet import SpectralUNet
from edge_sd.runtimes.parity import check_parity

SLIM, LARGE, THREADS = "ffhq-sd", "ffhq-ldm", 2
RUNTIMES = {"onnx": "onnxruntime", "executorch": "executorch"}
BLOCKS = {SLIM: 16, LARGE: 7}


class WithTime(nn.Module):
    """The whole model, as a naive export takes it: (x, t) → prediction."""

    def __init__(self, model: SpectralUNet) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        out: Tensor = self.model(x, t)
        return out


def random_model(preset_name: str) -> SpectralUNet:
    """A model with random weights, none of its layers left at zero."""
    torch.manual_seed(0)
    model = SpectralUNet(PRESETS[preset_name].config).eval()
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    return model


def checkpoint_of(preset_name: str) -> Checkpoint:
    """The same as a checkpoint."""
    preset = PRESETS[preset_name]
    return Checkpoint.of(random_model(preset_name), SCHEDULES[preset.schedule], preset.prediction, Provenance(made_by="bench"))


# Exports


def export_here(preset_name: str, target: str, out: str) -> None:
    """In the child: export, and print what it took."""
    checkpoint = checkpoint_of(preset_name)
    began = time.perf_counter()
    bundle = export_bundle(checkpoint, Path(out), ExportRequest((target,), steps=2, goldens=1))
    seconds = time.perf_counter() - began
    status = Path("/proc/self/status").read_text()
    peak = next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))
    program = bundle.program(target)
    print(json.dumps({"seconds": seconds, "target_seconds": program.seconds, "peak": peak, "verdict": program.placement.verdict}))


def in_child(*arguments: str) -> dict[str, Any]:
    """Run this file in a process of its own: its memory is its own, and it leaves no threads behind."""
    command = [sys.executable, __file__, *arguments]
    output = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True).stdout
    result: dict[str, Any] = json.loads(output.strip().splitlines()[-1])
    return result


def exports(folder: Path) -> dict[tuple[str, str], Path]:
    """Export both models to every target and print the table."""
    print(f"\n{'model':10s} {'target':12s} {'seconds':>8s} {'of them target':>15s} {'peak GiB':>9s}  placement")
    found = {}
    for preset in (SLIM, LARGE):
        for target in targets():
            out = folder / f"{preset}-{target}.edgesd"
            result = in_child("child", preset, target, str(out))
            found[preset, target] = out
            print(
                f"{preset:10s} {target:12s} {result['seconds']:8.1f} {result['target_seconds']:15.1f} "
                f"{result['peak'] / 2**30:9.2f}  {result['verdict']}",
                flush=True,
            )
    return found


# Speed


def export_naively(target: str, file: str) -> None:
    """In the child: export the slim model as anyone would, and print the seconds it took."""
    model = random_model(SLIM)
    inputs = torch.randn(1, *model.config.sample_shape), torch.tensor([500.0])
    began = time.perf_counter()
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        if target == "onnx":
            torch.onnx.export(WithTime(model), inputs, dynamo=True, verbose=False).save(file)
        else:
            from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
            from executorch.exir import to_edge_transform_and_lower

            exported = torch.export.export(WithTime(model), inputs)
            lowered = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()])
            Path(file).write_bytes(lowered.to_executorch().buffer)
    print(json.dumps({"seconds": time.perf_counter() - began}))


def naive(target: str, file: Path) -> Callable[[], object]:
    """A call of a naive export."""
    x, t = torch.randn(1, *PRESETS[SLIM].config.sample_shape), torch.tensor([500.0])
    if target == "onnx":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = THREADS, 3
        options.add_session_config_entry("session.force_spinning_stop", "1")  # as ours: they share two cores
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        feeds = {value.name: array.numpy() for value, array in zip(session.get_inputs(), (x, t), strict=True)}
        return lambda: session.run(None, feeds)
    from executorch.extension.pybindings.portable_lib import _load_for_executorch

    module = _load_for_executorch(str(file))
    return lambda: module.run_method("forward", (x, t))


def compare(title: str, a: Callable[[], object], b: Callable[[], object], blocks: int) -> float:
    """Time two calls and print a / b; returns b's median in milliseconds."""
    times_a, times_b = interleaved(a, b, blocks=blocks, calls=1)
    low, median, high = ratio_interval(times_a, times_b)
    print(
        f"{title:58s} {np.median(times_a):8.1f} → {np.median(times_b):7.1f} ms  {median:6.2f}× (95 % {low:.2f}–{high:.2f})",
        flush=True,
    )
    return float(np.median(times_b))


def main() -> None:
    """Measure and print everything."""
    torch.set_num_threads(THREADS)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found = exports(folder)
        print()
        rate = convolution_rate()  # and again beside the calls: the better of two moments on a shared machine
        for target, runtime in RUNTIMES.items():
            bundle = open_bundle(found[SLIM, target])
            ours = caller(bundle, runtime, THREADS)
            seconds = in_child("naive", target, str(folder / f"naive.{target}"))["seconds"]
            call = naive(target, folder / f"naive.{target}")
            milliseconds = compare(f"{runtime}: naive export ({seconds:.0f} s) → ours", call, ours, BLOCKS[SLIM])
            if target == "onnx":
                total = count(PRESETS[SLIM].config)
                rate = max(rate, convolution_rate())
                floor = 2 * (total.macs + total.attention_macs) / rate * 1e3
                print(
                    f"  floor {floor:.1f} ms ({(total.macs + total.attention_macs) / 1e9:.2f} GMAC at {rate / 1e9:.0f} GFLOP/s): "
                    f"ours takes {milliseconds / floor:.2f}× that"
                )
            if (LARGE, target) in found:
                large = open_bundle(found[LARGE, target])
                compare(f"{runtime}: LDM-4 → Spectral Diffusion", caller(large, runtime, THREADS), ours, BLOCKS[LARGE])
                print(f"  {check_parity(large, runtime, threads=THREADS)[0].verdict}")
            print(f"  {check_parity(bundle, runtime, threads=THREADS)[0].verdict}")


def leave_one_out(target: str) -> None:
    """Time the slim model's program without each of a target's rewrites in turn, against the one with all."""
    torch.set_num_threads(THREADS)
    checkpoint, chosen, runtime = checkpoint_of(SLIM), targets()[target], RUNTIMES[target]
    every = chosen.rewrites
    with tempfile.TemporaryDirectory() as name:
        request = ExportRequest((target,), steps=2, goldens=1)
        whole = caller(export_bundle(checkpoint, Path(name) / "all.edgesd", request), runtime, THREADS)
        for left_out in every:
            chosen.rewrites = tuple(rewrite for rewrite in every if rewrite != left_out)
            try:
                bundle = export_bundle(checkpoint, Path(name) / f"{left_out}.edgesd", request)
            except EdgeSDError as error:
                print(f"without {left_out}: {error.message}")
                continue
            compare(f"{runtime}: without {left_out} → with", caller(bundle, runtime, THREADS), whole, BLOCKS[SLIM])


def profile_lowering() -> None:
    """Profile the slim model's whole ExecuTorch export and print where the time goes, function by function."""
    checkpoint = checkpoint_of(SLIM)
    with tempfile.TemporaryDirectory() as name, cProfile.Profile() as profile:
        export_bundle(checkpoint, Path(name) / "profiled.edgesd", ExportRequest(("executorch",), steps=2, goldens=1))
    pstats.Stats(profile).sort_stats("cumtime").print_stats("executorch|run_decompositions", 30)


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        export_here(*sys.argv[2:5])
    elif sys.argv[1:2] == ["naive"]:
        export_naively(*sys.argv[2:4])
    elif sys.argv[1:2] == ["profile"]:
        profile_lowering()
    elif sys.argv[1:2] == ["rewrites"]:
        leave_one_out(sys.argv[2])
    else:
        main()
