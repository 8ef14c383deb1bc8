"""How times are taken: one procedure for every runtime in Python, here and on boards.

Load, first call and steady state are told apart. Warm-up goes on until two windows of calls in turn have medians that differ by
no more than 5 %, at most as long as the job says, and the result says which of the two it was. Every call is timed by itself.

Only NumPy and the standard library are imported: this file travels to boards that have nothing else (`_staging.py`). The C++
runner (`runtimes/cpp/measure.h`) and the browser's page do the same.
"""

import glob
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

AGREE = 0.05
_WINDOW_SECONDS = 5.0  # of the sustained curve
_SIZE = 768  # of the matrices whose product is the ceiling


class Limits(NamedTuple):
    """The part of a job that says how much is timed; see `edge_sd.devices.Job`."""

    least_warmup: int
    most_warmup: int
    iterations: int
    images: int
    ceiling: bool
    minutes: float
    most_seconds: float


class Calls(NamedTuple):
    """What is timed.

    Attributes:
        step: calls the denoiser on the inputs of the golden's row.
        decode: calls the decoder on a golden's last sample, where there is one.
        image: draws one image from noise.
    """

    step: Callable[[int], object]
    decode: Callable[[], object] | None
    image: Callable[[], object]


def stable(times: list[float], window: int) -> bool:
    """Whether the medians of the last two windows agree."""
    if len(times) < 2 * window:
        return False
    last, before = float(np.median(times[-window:])), float(np.median(times[-2 * window : -window]))
    return abs(last - before) <= AGREE * last


def measure(calls: Calls, rows: int, limits: Limits, threads: int, observe: Callable[[int, int], None]) -> dict[str, Any]:
    """Time it, and return all fields of a `Measurement` but those of the program's loading; times in milliseconds."""
    number = 0
    say = _seldom(observe)

    def step() -> float:
        nonlocal number
        number += 1
        return _timed(lambda: calls.step((number - 1) % rows))

    first = step()
    warmup: list[float] = []
    began = time.monotonic()
    while not (settled := stable(warmup, limits.least_warmup)):
        if len(warmup) >= limits.most_warmup or time.monotonic() - began > limits.most_seconds:
            break
        warmup.append(step())
        say(0, limits.iterations)
    samples: list[float] = []
    began = time.monotonic()
    while len(samples) < limits.iterations and (len(samples) < 3 or time.monotonic() - began <= limits.most_seconds):
        samples.append(step())
        say(len(samples), limits.iterations)
    observe(len(samples), limits.iterations)
    found: dict[str, Any] = {"first_ms": first, "warmup_ms": warmup, "stable": settled, "samples_ms": samples}
    if calls.decode is not None:
        found["decoder_ms"] = _several(calls.decode, max(limits.images, 1) + 1)[1:]
    found["image_ms"] = []
    for _ in range(limits.images):
        found["image_ms"].append(_timed(calls.image))
        say(limits.iterations, limits.iterations)
    found["sustained"] = sustain(step, limits.minutes, observe)
    found["peak_memory_bytes"] = memory("VmHWM")  # before the ceiling's matrices
    if limits.ceiling:
        found["ceiling_gflops"], found["ceiling"] = ceiling(threads)
    return found


def sustain(step: Callable[[], float], minutes: float, observe: Callable[[int, int], None]) -> list[dict[str, Any]]:
    """Call without a pause, and note every few seconds how long calls take, how warm it is and how fast the clocks run."""
    moments: list[dict[str, Any]] = []
    began = time.monotonic()
    while (now := time.monotonic() - began) < 60 * minutes:
        times: list[float] = []
        while not times or time.monotonic() - began < now + _WINDOW_SECONDS:
            times.append(step())
        p50, p90 = (float(value) for value in np.percentile(times, (50, 90)))
        seconds = time.monotonic() - began
        moments.append(
            {
                "seconds": seconds,
                "calls": len(times),
                "p50_ms": p50,
                "p90_ms": p90,
                "celsius": temperatures(),
                "mhz": frequencies(),
            }
        )
        observe(int(seconds), int(60 * minutes))
    return moments


def ceiling(threads: int) -> tuple[float, str]:
    """Most float32 operations a second that NumPy's matrix product reaches here, in GFLOP/s, and how it was measured."""
    left, right = (np.random.default_rng(seed).standard_normal((_SIZE, _SIZE)).astype(np.float32) for seed in (0, 1))
    best = min(_timed(lambda: left @ right) for _ in range(12))
    return 2 * _SIZE**3 / (best * 1e6), f"NumPy's product of two {_SIZE} x {_SIZE} float32 matrices, {threads} threads"


def memory(field: str) -> int | None:
    """Bytes of this process: VmRSS, its resident set, or VmHWM, the largest so far; None where /proc does not tell.

    getrusage's maximum would count the parent too, whose pages a child holds until it executes something else.
    """
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as status:  # noqa: PTH123 (no more than is needed)
            line = next(line for line in status if line.startswith(f"{field}:"))
    except (OSError, StopIteration):
        return None
    return int(line.split()[1]) * 1024


def temperatures() -> dict[str, float]:
    """Degrees Celsius of each thermal zone that can be read, by its type."""
    found = {}
    for zone in sorted(glob.glob("/sys/class/thermal/thermal_zone*")):  # noqa: PTH207
        kind, value = _first_line(f"{zone}/type"), _first_line(f"{zone}/temp")
        if value.lstrip("-").isdecimal() and -40 < (celsius := int(value) / (1000 if abs(int(value)) >= 1000 else 1)) < 150:
            found[kind or "zone"] = celsius
    return found


def frequencies() -> list[float]:
    """Megahertz of each processor at this moment, where the system tells."""
    files = sorted(glob.glob("/sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq"))  # noqa: PTH207
    return [int(value) / 1000 for value in map(_first_line, files) if value.isdecimal()]


def _first_line(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:  # noqa: PTH123
            return file.readline().strip()
    except OSError:
        return ""


def _seldom(observe: Callable[[int, int], None]) -> Callable[[int, int], None]:
    """Tell on at most twice a second: a line for each call would wake up the link, beside what is being timed."""
    last = 0.0

    def say(done: int, total: int) -> None:
        nonlocal last
        if (now := time.monotonic()) - last >= 0.5:
            last = now
            observe(done, total)

    return say


def _several(call: Callable[[], object], count: int) -> list[float]:
    return [_timed(call) for _ in range(count)]


def _timed(call: Callable[[], object]) -> float:
    start = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - start) / 1e6
