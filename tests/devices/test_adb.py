"""Devices by adb: Debian's own client and server on one side, a phone of ours in a namespace on the other."""

import contextlib
import hashlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adbd import Phone
from adbd.server import PORT, private_server
from edge_sd.bundle import Bundle
from edge_sd.devices import Job, find_device
from edge_sd.devices._adb import Listed, parse_devices
from edge_sd.devices._remote import RemoteConnection
from edge_sd.devices.adb import Adb, AdbTransport, list_serials
from edge_sd.errors import DeviceError, InstallationError, UsageError
from edge_sd.files import sha256

OLD = ""  # the features of an Android before 7


@pytest.fixture(scope="module", autouse=True)
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with private_server(tmp_path_factory.mktemp("adb")):
        yield


@pytest.fixture(scope="module")
def phone() -> Iterator[Phone]:
    with Phone() as phone:
        yield phone
        assert not phone.log()


@pytest.fixture
def adb(phone: Phone) -> Iterator[AdbTransport]:
    """The phone, and nothing left on it or here when the test is over."""
    transport = AdbTransport(phone.serial)
    yield transport
    transport.close()
    assert settled(phone) == []
    assert phone.left() == []
    assert clients() == []


def settled(phone: Phone, seconds: float = 5.0) -> list[list[str]]:
    """What still runs on a phone after a while in which it had the time to end."""
    deadline = time.monotonic() + seconds
    while (running := phone.processes()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return running


def clients() -> list[list[str]]:
    """adb processes that this one started and that still run."""
    return [process.cmdline() for process in psutil.Process().children(recursive=True) if process.name() == "adb"]


# Commands


def test_a_command_comes_back_with_its_streams_and_exit_code(adb: AdbTransport) -> None:
    lines: list[str] = []
    done = adb.shell("printf 'a\\0\\r\\n\\377'; echo one >&2; echo two >&2; exit 7", on_line=lines.append)
    assert (done.status, done.out, done.err) == (7, b"a\0\r\n\xff", "one\ntwo")
    assert lines == ["one", "two"]


def test_output_is_kept_to_the_byte(adb: AdbTransport) -> None:
    done = adb.shell("cd $TMPDIR; head -c 5000000 /dev/urandom > noise; cat noise; sha256sum < noise >&2; rm noise")
    assert len(done.out) == 5_000_000
    assert hashlib.sha256(done.out).hexdigest() in done.err


def test_a_script_that_says_nothing_or_fails_to_parse(adb: AdbTransport) -> None:
    assert (adb.shell(":").status, adb.shell(":").out) == (0, b"")
    assert adb.shell("cd /nowhere && exec cat").status != 0
    assert adb.shell("exec /data/local/tmp/nothing").status == 127
    with pytest.raises(DeviceError, match="broke off"):
        adb.shell("if")


def test_an_android_before_7_tells_exit_codes_too() -> None:
    with Phone(features=OLD) as old:
        adb = AdbTransport(old.serial)
        done = adb.shell("printf 'a\\0\\r\\n\\377'; exit 7")
        assert (done.status, done.out) == (7, b"a\0\r\n\xff")
        done = adb.shell("echo lost >&2; exit 1")
        assert (done.status, done.err) == (1, "lost\n")
        with pytest.raises(DeviceError, match="said nothing"):
            adb.shell("exec sleep 1000", patience=0.5)
        assert settled(old) == []
        adb.close()
        assert not old.log()


def test_it_is_the_phones_own_shell(adb: AdbTransport) -> None:
    """Guards the tests: were it this machine's, they would prove less."""
    assert "MIRBSD KSH" in adb.shell("echo $KSH_VERSION").text
    assert adb.shell("id -u").text == "2000"
    assert adb.shell("command -v python3 bash apt-get; ls /tmp /bin").status != 0


# Nothing runs on


@pytest.mark.parametrize("script", ["exec sleep 1000", "sleep 1000; echo", "cd /data/local/tmp && exec cat"])
def test_what_falls_silent_is_ended_at_both_ends(adb: AdbTransport, phone: Phone, script: str) -> None:
    with pytest.raises(DeviceError, match=r"said nothing for 0\.5 s") as caught:
        adb.shell(script, patience=0.5)
    assert caught.value.code == 4


def test_what_runs_there_ends_when_this_process_is_killed(phone: Phone) -> None:
    """Not even SIGKILL leaves a job behind: its standard input ends."""
    run = (
        f"from edge_sd.devices.adb import AdbTransport\nAdbTransport({phone.serial!r}).shell('cd /data/local/tmp && exec cat')\n"
    )
    with subprocess.Popen([sys.executable, "-c", run], cwd="/") as process:
        deadline = time.monotonic() + 60
        while ["cat"] not in phone.processes() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert ["cat"] in phone.processes()
        client = next(child for child in psutil.Process(process.pid).children() if child.name() == "adb")
        os.kill(process.pid, signal.SIGKILL)
        client.wait(10)
    assert settled(phone) == []
    subprocess.run(["adb", "disconnect", phone.serial], check=True, capture_output=True)


# Files

ODD = ["a b", "$(reboot)", "`id`", "'quoted\"", "-rf", ";x", "ü☃", "two\nlines", "*", "~"]


def test_a_tree_is_the_same_there_and_back(adb: AdbTransport, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    for index, name in enumerate(["plain.bin", *ODD, "deep/er/file"]):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes(os.urandom(1 + 70_000 * index))
    (tree / "empty").touch()
    (tree / "deep/run").write_text("#!/system/bin/sh\necho started\n")
    (tree / "deep/run").chmod(0o755)
    folder = adb.shell("mktemp -d /data/local/tmp/edge-sd-XXXXXXXX").text
    seen: list[tuple[int, int, str]] = []
    adb.push(tree, folder, lambda done, total, note="": seen.append((done, total, note)))
    files = sorted(file for file in tree.rglob("*") if file.is_file())
    total = sum(file.stat().st_size for file in files)
    assert seen[0][:2] == (0, total)
    assert seen[-1][:2] == (total, total)
    there = adb.shell(f"cd {folder} && find . -type f -exec sha256sum {{}} +").text
    for file in files:
        assert sha256(file) in there, file
        adb.pull(f"{folder}/{file.relative_to(tree).as_posix()}", tmp_path / "back")
        assert (tmp_path / "back").read_bytes() == file.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back", "tree"]
    assert adb.shell(f"cd {folder} && exec ./deep/run").text == "started"
    assert adb.shell(f"test -x {folder}/plain.bin").status == 1
    adb.shell(f"rm -rf {folder}")


def test_a_file_that_is_not_there(adb: AdbTransport, tmp_path: Path) -> None:
    (tmp_path / "old").write_text("old")
    with pytest.raises(DeviceError, match="did not give nothing"):
        adb.pull("/data/local/tmp/nothing", tmp_path / "old")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("old", "old")]


def test_a_place_that_may_not_be_written_to(adb: AdbTransport, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DeviceError, match="did not take file"):
        adb.push(tmp_path, "/proc/nothing")


# Serials


@pytest.mark.parametrize("serial", ["", "-s", "-H evil", "--", "a\nb", "a\0b", "\x1b[31m", "x" * 300])
def test_serials_that_no_device_can_have(serial: str) -> None:
    with pytest.raises(UsageError, match="no device can have the serial"):
        AdbTransport(serial)


@pytest.mark.parametrize(
    "serial", ["; reboot", "a b", "'", '"', "$(id)", "model:One", "product:example", "usb:1-1", "127.0.0.1", "127.0.0.1:"]
)
def test_serials_that_adb_could_take_for_another_device(adb: AdbTransport, phone: Phone, serial: str) -> None:
    """`adb -s model:One` talks to whichever phone has that model; we talk to what was named, or to nobody."""
    before = list_serials()
    with pytest.raises(DeviceError, match="is not there") as caught:
        AdbTransport(serial)
    assert f"{phone.serial} (One)" in caught.value.message
    assert caught.value.code == 4
    assert list_serials() == before


def test_nobody_in_the_network(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        serial = f"127.0.0.1:{closed.getsockname()[1]}"
        with pytest.raises(DeviceError, match="refused") as caught:
            AdbTransport(serial)
    assert "same network" in caught.value.hint
    assert serial not in [listed.serial for listed in list_serials()]


def test_two_phones_are_kept_apart(tmp_path: Path) -> None:
    """At the same time, from two threads: each gets its own files and says its own name."""
    found: dict[str, tuple[str, str]] = {}
    with Phone(model="Left") as left, Phone(model="Right") as right:

        def work(phone: Phone, name: str) -> None:
            (tmp_path / name).mkdir()
            (tmp_path / name / "name").write_text(name * 100_000)
            with RemoteConnection(AdbTransport(phone.serial)) as connection:
                adb = connection._transport
                folder = adb.shell("mktemp -d /data/local/tmp/edge-sd-XXXXXXXX").text
                adb.push(tmp_path / name, folder)
                found[name] = connection.info().model, adb.shell(f"cat {folder}/name").text
                adb.shell(f"rm -rf {folder}")

        threads = [threading.Thread(target=work, args=pair) for pair in ((left, "left"), (right, "right"))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert found == {"left": ("Example Left", "left" * 100_000), "right": ("Example Right", "right" * 100_000)}
        assert left.left() == right.left() == []
        assert not left.log() + right.log()


def test_a_phone_that_was_connected_before_stays_connected() -> None:
    with Phone() as phone:
        AdbTransport(phone.serial).close()
        assert list_serials() == ()
        subprocess.run(["adb", "connect", phone.serial], check=True, capture_output=True)
        AdbTransport(phone.serial).close()
        assert [listed.serial for listed in list_serials()] == [phone.serial]
        subprocess.run(["adb", "disconnect", phone.serial], check=True, capture_output=True)


def test_a_phone_on_a_cable() -> None:
    """A serial that is no address: adb's way to an emulator stands for the cable. It comes back by itself, or not."""
    with Phone() as phone:
        with socket.socket() as held:  # where an emulator has its console
            held.bind(("127.0.0.1", 0))
            console = held.getsockname()[1]
        plug = ["adb", "connect", f"emu:{console},{phone.serial.rpartition(':')[2]}"]
        subprocess.run(plug, check=True, capture_output=True)
        adb = AdbTransport(f"emulator-{console}")
        assert adb.shell("getprop ro.product.model").text == "One"
        adb.close()
        assert [listed.state for listed in list_serials()] == ["device"]


# The command line's end


def test_what_a_phone_says_of_itself(adb: AdbTransport) -> None:
    with RemoteConnection(adb) as connection:
        info = connection.info()
    assert (info.device, info.address, info.model, info.processor) == ("adb", adb.address, "Example One", "SM0000")
    assert info.system.startswith("Android 14 (example/")
    assert (info.power, info.battery_percent, info.governor, info.emulated) == ("battery", 83, "schedutil", False)
    assert info.celsius == {"cpu-0-0-usr": 30.0}
    assert set(info.max_mhz) == {2400.0}


def test_a_whole_job(bundle: Bundle, phone: Phone, adb: AdbTransport) -> None:
    with RemoteConnection(adb) as connection:
        assert connection.runtimes(bundle) == ("executorch-runner",)  # a phone has no Python
        connection.push(bundle, Job(runtime="executorch-runner", least_warmup=2, most_warmup=6, iterations=12, images=1))
        seen: list[tuple[int, int]] = []
        connection.run(lambda done, total, note="": seen.append((done, total)))
        outcome = connection.pull()
    assert outcome.measurement is not None
    assert len(outcome.measurement.samples_ms) == 12
    assert outcome.evidence is not None
    assert len(outcome.evidence) == 2
    assert seen[-1] == (12, 12)


def test_a_whole_job_on_an_android_before_7(bundle: Bundle) -> None:
    with Phone(features=OLD) as old, RemoteConnection(AdbTransport(old.serial)) as connection:
        connection.push(bundle, Job(runtime="executorch-runner", least_warmup=2, most_warmup=6, iterations=12, images=1))
        connection.run()
        outcome = connection.pull()
        connection.close()
        assert outcome.measurement is not None
        assert outcome.evidence is not None
        assert old.left() == []


def test_without_adb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(InstallationError, match="adb is not installed"):
        find_device("adb:anything")
    with pytest.raises(InstallationError, match="cannot start adb"):
        AdbTransport("anything")


def test_a_server_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Something else has the port of adb's server."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()

        def hang_up() -> None:
            with contextlib.suppress(OSError):
                while True:
                    other.accept()[0].close()

        threading.Thread(target=hang_up, daemon=True).start()
        monkeypatch.setenv(PORT, str(other.getsockname()[1]))
        with pytest.raises(DeviceError) as caught:
            AdbTransport("anything")
        assert caught.value.code == 4


def test_the_device_is_found_by_its_name(phone: Phone) -> None:
    device, address = find_device(f"adb:{phone.serial}")
    assert isinstance(device, Adb)
    assert address == phone.serial
    with device.open(address) as connection:
        assert connection.info().address == phone.serial
    with pytest.raises(UsageError, match="needs an address"):
        find_device("adb")


# The list of devices

NO_PERMISSIONS = (
    "no permissions (user in plugdev group; are your udev rules wrong?); see [http://developer.android.com/tools/device.html]"
)
SERIALS = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=40).filter(lambda text: text[0] != "*")
WORDS = st.text("abcXYZ019_.-", min_size=1, max_size=12)
DEVICES = st.builds(
    Listed,
    st.one_of(SERIALS, SERIALS.map(lambda serial: f"adb-{serial} (2)._adb-tls-connect._tcp"), st.just("(no serial number)")),
    st.sampled_from(["device", "offline", "unauthorized", "authorizing", "connecting", "recovery", NO_PERMISSIONS]),
    st.dictionaries(st.sampled_from(["usb", "product", "model", "device", "transport_id"]), WORDS),
)


def printed(listed: Listed) -> str:
    """A line as adb's `append_transport` writes it."""
    return f"{listed.serial:<22} {listed.state}" + "".join(f" {name}:{value}" for name, value in listed.properties.items())


@given(st.lists(DEVICES, max_size=5))
def test_every_list_of_devices_is_read_as_it_was_meant(devices: list[Listed]) -> None:
    text = "List of devices attached\n" + "".join(printed(listed) + "\n" for listed in devices) + "\n"
    assert parse_devices(text) == tuple(devices)
    assert parse_devices("* daemon not running; starting now at tcp:5037\n* daemon started successfully\n" + text) == tuple(
        devices
    )


@given(st.text())
def test_no_text_upsets_it(text: str) -> None:
    for listed in parse_devices(text):
        assert listed.serial.strip() == listed.serial != ""
        assert listed.serial in str(listed)


def test_lists_as_adb_prints_them() -> None:
    text = """List of devices attached
R58M123ABC             device usb:1-2 product:beyond1 model:SM_G973F device:beyond1 transport_id:4
0123456789ABCDEF       unauthorized usb:3-1.4 transport_id:5
adb-R5CT-xyz (2)._adb-tls-connect._tcp device product:p model:M device:d transport_id:6
????????????           no permissions (user in group; are your udev rules wrong?); see [http://a.b/c] usb:1-1 transport_id:7
192.168.1.20:5555      offline transport_id:8

"""
    assert [str(listed) for listed in parse_devices(text)] == [
        "R58M123ABC (SM G973F)",
        "0123456789ABCDEF (unauthorized)",
        "adb-R5CT-xyz (2)._adb-tls-connect._tcp (M)",
        "???????????? (no permissions)",
        "192.168.1.20:5555 (offline)",
    ]
    assert parse_devices(text)[0].properties["transport_id"] == "4"
