"""Fingerprints: of this machine, of boards and phones by what they print, and of nonsense."""

import os
import platform
import shutil
import subprocess
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sd.devices._probe import SCRIPT, read_probe
from edge_sd.errors import DeviceError

PHONE = """
machine=aarch64
kernel=Linux 6.1.75-android14-11-g0d0d0d
memory=11738452
cores=9
parts=0xd05 0xd41 0xd44
brand=Google
product=Pixel 8
soc=Tensor G3
platform=zuma
android=15
build=google/shiba/shiba:15/AP3A.241105.007/12470370:user/release-keys
khz=1704000
khz=2367000
khz=2914000
governor=sched_pixel
governor=sched_pixel
governor=powersave
zone=31500 battery
zone=47000 BIG
zone=-274000 off
zone=junk
supply=Battery||Discharging|83
supply=USB|0|Unknown|
"""


def test_a_phone() -> None:
    info = read_probe(PHONE, device="adb", address="SERIAL 1")
    assert (info.title, info.model, info.machine, info.cores) == ("adb:SERIAL 1", "Google Pixel 8", "aarch64", 9)
    assert info.processor == "Tensor G3 (Cortex-A55 + Cortex-A78 + Cortex-X1)"
    assert info.system.startswith("Android 15 (google/shiba/shiba:15/AP3A.241105.007/")
    assert info.memory_bytes == 11738452 * 1024
    assert info.max_mhz == (1704.0, 2367.0, 2914.0)
    assert info.governor == "sched_pixel/powersave"
    assert (info.power, info.battery_percent) == ("battery", 83)
    assert info.celsius == {"battery": 31.5, "BIG": 47.0}


@pytest.mark.parametrize(
    ("supplies", "power", "percent"),
    [
        ([], "", None),
        (["Mains|1||"], "mains", None),
        (["Mains|0||", "Battery||Discharging|7"], "battery", 7),
        (["USB|1||", "Battery||Charging|50"], "charging", 50),
        (["Battery||Full|100", "USB|1||"], "mains", 100),
        (["Battery||Unknown|banana"], "", None),
        (["Battery"], "", None),
    ],
)
def test_power(supplies: list[str], power: str, percent: int | None) -> None:
    text = "machine=x\nkernel=Linux\nmemory=1\ncores=1\n" + "\n".join(f"supply={supply}" for supply in supplies)
    info = read_probe(text, device="ssh")
    assert (info.power, info.battery_percent) == (power, percent)


def test_this_machine_by_the_same_script() -> None:
    done = subprocess.run(["/bin/sh", "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    info = read_probe(done.stdout, device="host")
    assert (info.machine, info.cores) == (platform.machine(), psutil.cpu_count())
    assert info.memory_bytes == psutil.virtual_memory().total
    assert platform.release() in info.system


def test_the_script_runs_in_busyboxs_shell_too(tmp_path: Path) -> None:
    """The shells of boards and phones are not bash; CI installs this one."""
    busybox = shutil.which("busybox")
    assert busybox, "apt-get install busybox"
    done = subprocess.run([busybox, "ash", "-c", SCRIPT], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stderr == ""
    assert read_probe(done.stdout, device="ssh").cores == os.cpu_count()


def test_what_is_missing_is_named() -> None:
    with pytest.raises(DeviceError, match=r"adb:X did not say its kernel, cores, memory"):
        read_probe("machine=aarch64\ncores=many\nmemory=0\n", device="adb", address="X")


@given(st.text(max_size=400))
def test_nonsense_is_refused_in_words(text: str) -> None:
    with pytest.raises(DeviceError):
        read_probe(text, device="ssh", address="somewhere")


@given(
    st.lists(st.tuples(st.sampled_from(["khz", "governor", "zone", "supply", "soc", "parts", "product"]), st.text()), max_size=8)
)
def test_odd_values_of_what_may_be_odd_do_no_harm(pairs: list[tuple[str, str]]) -> None:
    lines = [f"{name}={value}" for name, value in pairs]
    info = read_probe("\n".join(["machine=m", "kernel=k", "memory=5", "cores=2", *lines]), device="ssh")
    assert (info.machine, info.cores, info.memory_bytes) == ("m", 2, 5120)
    assert all(-40 < celsius < 150 for celsius in info.celsius.values())
