"""One job on one device, from the connection to the result."""

import os
from collections.abc import Mapping
from typing import Literal

from edge_sd.bundle import Bundle
from edge_sd.checkpoint import versions
from edge_sd.devices._device import Connection, Observe, devices, find_device, unobserved
from edge_sd.devices._fingerprint import DeviceInfo
from edge_sd.devices._job import BenchResult, Job, Latency, Measurement, Outcome
from edge_sd.errors import DeviceError, EdgeSDError, unknown
from edge_sd.runtimes import runtimes
from edge_sd.runtimes.evidence import Evidence
from edge_sd.runtimes.floor import Floor, Precision, noise_floor
from edge_sd.runtimes.parity import Gate, ParityResult, activations_on_grids, judge, precision_of

Floors = Mapping[Precision, Floor]


def target_of(runtime: str) -> str:
    """The target whose programs a runtime runs.

    Raises:
        UsageError: there is no such runtime.
    """
    known = {name: each.target for name, each in runtimes().items()}
    for device in devices().values():
        known |= device.own_runtimes
    if runtime not in known:
        raise unknown("runtime", runtime, known)
    return known[runtime]


def bench(
    place: str,
    bundle: Bundle,
    job: Job,
    *,
    gate: Gate | None = None,
    floors: Floors | None = None,
    observe: Observe = unobserved,
) -> BenchResult:
    """Do a job where `place` says, as `--device` takes it.

    Args:
        floors: of this bundle, where they have been measured already.
        observe: called with (done, total, what is being done).

    Raises:
        UsageError, InstallationError: no such device or runtime, or this machine lacks what it takes.
        DeviceError: nobody answers, or the device went away.
        EdgeSDError: the job failed in words.
    """
    bundle.program(target_of(job.runtime))
    device, address = find_device(place)
    with device.open(address) as connection:
        return bench_on(connection, bundle, job, gate=gate, floors=floors, observe=observe)


def bench_on(
    connection: Connection,
    bundle: Bundle,
    job: Job,
    *,
    gate: Gate | None = None,
    floors: Floors | None = None,
    observe: Observe = unobserved,
) -> BenchResult:
    """Do a job on a device that is connected; errors as `bench`'s."""
    info, outcome = _do(connection, bundle, job, observe)
    measurement = outcome.measurement
    memory = bundle.program(target_of(job.runtime)).memory
    return BenchResult(
        job=job,
        bundle=bundle.path.name,
        bundle_digest=bundle.manifest.digest,
        device=info,
        times=times_of(job.runtime, info),
        steps=len(bundle.plan),
        macs=_macs(bundle),
        measurement=measurement,
        latency=None if measurement is None else Latency.of(measurement.samples_ms),
        parity=_judged(bundle, job, info, outcome, gate or Gate(), floors or {}) if job.prove else None,
        forecast_memory_bytes=None if memory is None else memory.total_bytes,
        warnings=() if measurement is None else tuple(_warnings(job, measurement, info)),
        versions=versions(),
    )


def prove(
    place: str,
    bundle: Bundle,
    job: Job,
    *,
    gate: Gate | None = None,
    floors: Floors | None = None,
    observe: Observe = unobserved,
) -> tuple[ParityResult, tuple[Evidence, ...]]:
    """Follow the golden trajectories where `place` says, time nothing, and judge what came back; errors as `bench`'s.

    Args:
        job: its `runtime` may be empty: what the device prefers.
    """
    device, address = find_device(place)
    with device.open(address) as connection:
        runtime = job.runtime or preferred(connection, bundle, place)
        bundle.program(target_of(runtime))
        alone = job.model_copy(update={"runtime": runtime, "prove": True, "iterations": 0})
        info, outcome = _do(connection, bundle, alone, observe)
        return _judged(bundle, alone, info, outcome, gate or Gate(), floors or {}), outcome.evidence or ()


def preferred(connection: Connection, bundle: Bundle, place: str) -> str:
    """The runtime that a device prefers for a bundle.

    Raises:
        EdgeSDError: it runs none of its programs.
    """
    known = connection.runtimes(bundle)
    if not known:
        targets = ", ".join(sorted({program.target for program in bundle.manifest.programs}))
        raise EdgeSDError(f"{place} runs none of the programs in {bundle.path} ({targets})", "edge-sd export --target all")
    return known[0]


def _do(connection: Connection, bundle: Bundle, job: Job, observe: Observe) -> tuple[DeviceInfo, Outcome]:
    info = connection.info()
    memory = bundle.program(target_of(job.runtime)).memory
    if memory is not None and 0 < info.memory_bytes < memory.total_bytes:
        needed, there = memory.total_bytes / 2**20, info.memory_bytes / 2**20
        raise DeviceError(
            f"{info.title} has {there:.0f} MiB of memory, the program alone is foretold to need {needed:.0f} MiB",
            "a smaller model, or fewer bits: edge-sd quantize",
        )
    observe(0, 1, "copying")
    connection.push(bundle, job, observe)
    connection.run(observe)
    return info, connection.pull()


def times_of(runtime: str, info: DeviceInfo) -> Literal["real", "emulated", "evaluated"]:
    """What the times of a runtime on a device are."""
    known = runtimes().get(runtime)
    if known is not None and known.evaluates:
        return "evaluated"
    return "emulated" if info.emulated or (known is not None and known.emulated) else "real"


def _judged(bundle: Bundle, job: Job, info: DeviceInfo, outcome: Outcome, gate: Gate, floors: Floors) -> ParityResult:
    target = target_of(job.runtime)
    precision = precision_of(bundle, target)
    floor = floors[precision] if precision in floors else noise_floor(bundle, precision)
    return judge(
        *(bundle, job.runtime, outcome.runtime_version, outcome.evidence or (), floor, gate),
        threads=job.threads,
        quantized=activations_on_grids(bundle, target),
        emulated=times_of(job.runtime, info) == "emulated",
        device=info.title,
    )


def _macs(bundle: Bundle) -> int:
    from edge_sd.models.count import count

    found = count(bundle.manifest.model)
    return found.macs + found.attention_macs


def _warnings(job: Job, measurement: Measurement, info: DeviceInfo) -> list[str]:
    """What makes the figures less than they seem, in words."""
    found = []
    if not measurement.stable:
        calls = len(measurement.warmup_ms)
        found.append(f"the warm-up did not settle in {calls} calls: other work on the device, or clocks that move")
    if len(measurement.samples_ms) < job.iterations:
        found.append(f"timed {len(measurement.samples_ms)} of {job.iterations} calls in {job.most_seconds:g} s")
    if info.governor not in ("", "performance"):
        found.append(f"the governor is {info.governor}: clocks follow the load")
    if info.power == "battery":
        percent = "" if info.battery_percent is None else f" ({info.battery_percent} %)"
        found.append(f"it runs on its battery{percent}")
    if info.device == "host" and hasattr(os, "getloadavg") and (load := os.getloadavg()[0]) > 0.5 * info.cores + job.threads:
        found.append(f"other work ran beside (load {load:.1f} on {info.cores} processors)")
    return found
