"""The job itself, run in a process of its own on the device, so that its memory is its own and a crash stays there."""

import sys
import time
from pathlib import Path

import psutil

from edge_sd.bundle import open_bundle
from edge_sd.bundle.manifest import MANIFEST
from edge_sd.checkpoint import versions
from edge_sd.devices._job import BenchResult, DeviceInfo, Job, Latency
from edge_sd.files import sha256
from edge_sd.runtimes import find_runtime, load_denoiser


def measure(job: Job, info: DeviceInfo) -> BenchResult:
    """Load, call once, warm up, and time; inputs are the bundle's golden trajectories, step by step."""
    bundle = open_bundle(Path(job.bundle))
    runtime = find_runtime(job.runtime)
    golden = bundle.golden.trajectories[0]
    memory = bundle.program(runtime.target).memory
    base = psutil.Process().memory_info().rss
    began = time.perf_counter()
    session = load_denoiser(runtime, bundle, job.threads)
    load_ms = (time.perf_counter() - began) * 1e3

    def call(number: int) -> float:
        row = number % len(bundle.plan)
        sample, row_features = golden.samples[row : row + 1], golden.features[row : row + 1]
        session.select(int(bundle.plan.program[row]))
        start = time.perf_counter_ns()
        session(sample, row_features)
        return (time.perf_counter_ns() - start) / 1e6

    warmup = [call(number) for number in range(job.warmup)]
    samples = [call(number) for number in range(job.iterations)]
    return BenchResult(
        job=job,
        bundle_digest=sha256(bundle.path / MANIFEST),
        device=info,
        runtime_version=runtime.available().detail,
        load_ms=load_ms,
        first_ms=warmup[0],
        warmup_ms=warmup[1:],
        samples_ms=samples,
        steps=len(bundle.plan),
        latency=Latency.of(samples),
        base_memory_bytes=base,
        peak_memory_bytes=_peak_memory(),
        forecast_memory_bytes=None if memory is None else memory.total_bytes,
        versions=versions(),
    )


def _peak_memory() -> int | None:
    """Largest resident set of this process in bytes; None where the system does not tell.

    Linux: VmHWM. getrusage's maximum would count the parent too, whose pages a child holds until it executes something else.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
