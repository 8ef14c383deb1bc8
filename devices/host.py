"""This machine: the job runs in a fresh process."""

import multiprocessing
import os
import platform
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import psutil

from edge_sd.devices._device import Device
from edge_sd.devices._job import BenchResult, DeviceInfo, Job
from edge_sd.errors import DeviceError
from edge_sd.runnable import Availability


class Host(Device):
    """The machine that edge-sd runs on."""

    name = "host"
    about = "this machine, in a process of its own"

    def available(self) -> Availability:
        return Availability(True, f"{psutil.cpu_count()} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB")

    def info(self) -> DeviceInfo:
        return DeviceInfo(
            device=self.name,
            machine=platform.machine(),
            processor=_processor(),
            cores=psutil.cpu_count() or 1,
            memory_bytes=psutil.virtual_memory().total,
            system=f"{platform.system()} {platform.release()}",
        )

    def bench(self, job: Job) -> BenchResult:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(max_workers=1, mp_context=context, initializer=_limit_threads, initargs=(job.threads,)) as pool:
            try:
                return BenchResult.model_validate_json(
                    pool.submit(_measure, job.model_dump_json(), self.info().model_dump_json()).result()
                )
            except BrokenProcessPool as error:
                raise DeviceError(
                    f"the process that ran {job.bundle} in {job.runtime} died", "is there memory enough? edge-sd doctor"
                ) from error


def _limit_threads(threads: int) -> None:
    os.environ["OMP_NUM_THREADS"] = str(threads)


def _measure(job: str, info: str) -> str:
    """In the child: import what the job needs only here, after the environment is set."""
    from edge_sd.devices._work import measure

    return measure(Job.model_validate_json(job), DeviceInfo.model_validate_json(info)).model_dump_json()


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() in ("model name", "Model"):
                return value.strip()
    return platform.processor() or platform.machine()
