"""Apple's own hardware: this Mac by Core ML, or a connected iPhone by Core ML Tools' benchmarker. On a Mac only.

Unproven: nothing here has met a Mac or an iPhone yet. With an identifier, Core ML Tools' experimental remote device (9.0) builds
an application by Xcode (EDGE_SD_APPLE_TEAM is the development team that signs it), installs it and times the denoiser there; it
gives no answers back, so that such a job proves nothing. What to send us when you try it: the result's JSON, and what
`xcrun devicectl list devices` says of the device.
"""

import os
import platform
import re
from typing import Any

from edge_sd.bundle import Bundle
from edge_sd.devices._device import Connection, Device, Observe, unobserved
from edge_sd.devices._fingerprint import DeviceInfo
from edge_sd.devices._job import Job, Measurement, Outcome
from edge_sd.devices.host import HostConnection
from edge_sd.errors import DeviceError, UsageError
from edge_sd.quiet import quiet
from edge_sd.runnable import Availability, packages_available

RUNTIME, TEAM = "coreml", "EDGE_SD_APPLE_TEAM"
_IDENTIFIER = re.compile(r"[A-Za-z0-9-]{1,64}")


class Apple(Device):
    """Core ML where it is at home."""

    name = "apple"
    about = "this Mac by Core ML; with an identifier, a connected iPhone (experimental)"
    address = "[IDENTIFIER]"

    def available(self) -> Availability:
        if platform.system() != "Darwin":
            return Availability(
                False,
                f"Core ML runs on Apple's systems only, this is {platform.system()}",
                "--runtime coreml-reference on the host",
            )
        return packages_available("coremltools")

    def open(self, address: str) -> Connection:
        if not address:
            return _Mac()
        if not _IDENTIFIER.fullmatch(address):
            raise UsageError(f"{address!r} is no identifier of a device", "xcrun devicectl list devices")
        return _Connected(address)


class _Mac(HostConnection):
    def info(self) -> DeviceInfo:
        return super().info().model_copy(update={"device": Apple.name})

    def runtimes(self, bundle: Bundle) -> tuple[str, ...]:
        return tuple(name for name in super().runtimes(bundle) if name == RUNTIME)


class _Connected(Connection):
    def __init__(self, address: str) -> None:
        try:
            from coremltools.models.ml_program.experimental.remote_device import Device as Remote
            from coremltools.models.ml_program.experimental.remote_device import DeviceState
        except ImportError as error:
            raise DeviceError(f"this Core ML Tools knows no remote devices: {error}", 'pip install "edge-sd[coreml]"') from error
        with quiet():
            known = [each for each in Remote.get_devices() if each.state == DeviceState.CONNECTED]
        found = [each for each in known if address in (each.identifier, each.udid)]
        if not found:
            names = ", ".join(f"{each.name} ({each.identifier})" for each in known) or "none"
            raise DeviceError(
                f"no connected device has the identifier {address}; connected: {names}", "xcrun devicectl list devices"
            )
        self._address, self._device = address, found[0]
        self._work: tuple[Bundle, Job] | None = None
        self._found: Measurement | None = None

    def info(self) -> DeviceInfo:
        remote = self._device
        return DeviceInfo(
            device=Apple.name,
            address=self._address,
            model=str(remote.name),
            processor=str(remote.type.value),
            machine="arm64",
            cores=1,  # neither these nor the memory are told
            memory_bytes=0,
            system=f"{remote.os_version} ({remote.os_build_number})",
        )

    def runtimes(self, bundle: Bundle) -> tuple[str, ...]:
        return (RUNTIME,) if any(program.target == RUNTIME for program in bundle.manifest.programs) else ()

    def push(self, bundle: Bundle, job: Job, observe: Observe = unobserved) -> None:
        if job.prove:
            raise UsageError("a connected Apple device gives no answers back, so it proves nothing yet", "--no-prove")
        self._work = bundle, job

    def run(self, observe: Observe = unobserved) -> None:
        import asyncio

        try:
            self._found = asyncio.run(self._measure())
        except (ValueError, RuntimeError, OSError) as error:  # what its tools raise
            raise DeviceError(
                f"{Apple.name}:{self._address}: {error}", "is it unlocked, trusted, and in developer mode?"
            ) from error

    async def _measure(self) -> Measurement:
        from coremltools.models import MLModel
        from coremltools.models.ml_program.experimental.perf_utils import MLModelBenchmarker
        from coremltools.models.ml_program.experimental.remote_device import AppSigningCredentials

        assert self._work is not None  # noqa: S101 (push comes first)
        bundle, job = self._work
        program, golden = bundle.program(RUNTIME), bundle.golden.trajectories[0]
        credentials = AppSigningCredentials(development_team=os.environ.get(TEAM, ""))
        device: Any = await self._device.prepare_for_model_debugging(credentials=credentials)
        model = MLModel(str(bundle.path / program.file), skip_model_load=True, function_name=program.entry or None)
        benchmarker = MLModelBenchmarker(model=model, device=device)
        loading = await benchmarker.benchmark_load(iterations=1)
        names = [spec.name for spec in bundle.manifest.contract().inputs]
        inputs = dict(zip(names, (golden.samples[:1], golden.features[:1]), strict=True))
        calls = await benchmarker.benchmark_predict(inputs=inputs, iterations=1 + job.least_warmup + job.iterations)
        times = [float(sample) for sample in calls.samples]
        return Measurement(
            runtime_version=f"Core ML on {self._device.os_version}, the first golden input",
            load_ms=float(loading.samples[0]),
            first_ms=times[0],
            warmup_ms=tuple(times[1 : 1 + job.least_warmup]),
            stable=False,  # not looked at: its benchmarker takes a number of calls
            samples_ms=tuple(times[1 + job.least_warmup :]),
        )

    def pull(self) -> Outcome:
        return Outcome(self._found, None)

    def close(self) -> None:
        self._work = self._found = None
