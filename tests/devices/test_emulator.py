"""The emulated board: made from packages, started, used as a device, stopped, and whatever can go wrong with each."""

import json
import lzma
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from filelock import FileLock

from edge_sd.devices import emulation, find_device
from edge_sd.devices.emulation import _boot as boots
from edge_sd.devices.emulation import _create as made
from edge_sd.devices.emulation._disk import digest
from edge_sd.devices.emulation._initrd import depends, in_order, newc
from edge_sd.devices.emulation._process_id import ProcessId
from edge_sd.devices.emulation._qemu import KEEPER
from edge_sd.devices.emulator import BoardTransport, Emulator
from edge_sd.errors import DeviceError, InstallationError
from edge_sd.files import read_model, sha256, write_model
from verbs import call

PROGRAM = "import sys; from edge_sd.cli.main import main; sys.argv[0] = 'edge-sd'; main()"


@pytest.fixture
def cache(board_cache: Path) -> Path:
    """A user's cache with a board."""
    return board_cache


@pytest.fixture
def home(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The board's folder; after the test no process knows it any more, and nothing but the board is in it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    yield cache / "edge-sd" / "emulator"
    emulation.stop()
    assert not processes(cache)
    assert {path.name for path in (cache / "edge-sd" / "emulator").iterdir()} == {"board", "lock"}


def processes(cache: Path) -> list[psutil.Process]:
    """All whose command names a folder, this one left out."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if process.pid != os.getpid() and str(cache) in " ".join(process.info["cmdline"] or ()).replace(",,", ","):
            found.append(process)
    return found


def gone(cache: Path, seconds: float = 15) -> bool:
    """Whether such processes end by themselves."""
    deadline = time.monotonic() + seconds
    while processes(cache) and time.monotonic() < deadline:
        time.sleep(0.1)
    return not processes(cache)


# Its parts


def module(folder: Path, name: str, needs: str) -> Path:
    """A kernel module as far as we read it: an ELF object for arm64 with a section .modinfo."""
    source = f'__attribute__((section(".modinfo"))) const char info[] = "license=GPL\\0depends={needs}\\0name={name}";'
    (folder / "source.c").write_text(source)
    path = folder / f"{name}.ko"
    subprocess.run(["aarch64-linux-gnu-gcc", "-c", "-o", path, folder / "source.c"], check=True)
    return path


def test_modules_come_after_what_they_need(tmp_path: Path) -> None:
    version = tmp_path / "6.1.0-arm64"
    (version / "kernel").mkdir(parents=True)
    module(version / "kernel", "virtio-net", "failover,virtio_ring")
    module(version / "kernel", "failover", "")
    ring = module(version / "kernel", "virtio_ring", "virtio")
    whole = module(version / "kernel", "virtio", "").read_bytes()
    ring.with_name("virtio.ko.xz").write_bytes(lzma.compress(whole))
    (version / "kernel" / "virtio.ko").unlink()
    (version / "modules.builtin").write_text("kernel/fs/ext4/ext4.ko\n")
    assert depends(ring.read_bytes()) == ["virtio"]
    found = in_order(version, ("virtio_net", "ext4"))
    assert [name for name, _ in found] == ["failover", "virtio", "virtio_ring", "virtio_net"]
    assert dict(found)["virtio"] == whole
    with pytest.raises(InstallationError, match=r"6\.1\.0-arm64 has no module virtio_blk"):
        in_order(version, ("virtio_blk",))
    with pytest.raises(InstallationError, match="no ELF file"):
        depends(b"MZ")


def test_an_archive_is_laid_out_as_the_kernel_reads_it() -> None:
    packed = newc([("bin", 0o040755, b""), ("bin/a", 0o100755, b"12345")])
    assert len(packed) % 4 == 0
    assert packed.startswith(b"070701" + b"00000001" + b"000041ED")
    second = packed.index(b"070701", 6)
    assert second % 4 == 0
    header = [int(packed[second + 6 + 8 * field : second + 14 + 8 * field], 16) for field in range(13)]
    assert (header[1], header[6], header[11]) == (0o100755, 5, len("bin/a\0"))
    data = second + 110 + len("bin/a\0")
    data += -data % 4
    assert packed[data : data + 5] == b"12345"
    assert b"TRAILER!!!\0" in packed[data:]


def test_a_digest_does_not_tell_a_hole_from_zeros_but_all_else(tmp_path: Path) -> None:
    sparse, dense, other, shorter = (tmp_path / name for name in ("sparse", "dense", "other", "shorter"))
    with sparse.open("wb") as file:
        file.seek(5_000_000)
        file.write(b"here")
        file.truncate(30_000_001)
    dense.write_bytes(sparse.read_bytes())
    assert digest(sparse) == digest(dense)
    content = bytearray(sparse.read_bytes())
    content[20_000_000] = 1
    other.write_bytes(content)
    shorter.write_bytes(sparse.read_bytes()[:-1])
    (tmp_path / "empty").touch()
    assert len({digest(path) for path in (sparse, other, shorter, tmp_path / "empty")}) == 4


def test_a_process_is_known_by_more_than_its_number() -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        known = ProcessId.of(process.pid)
        assert known.alive
        for wrong in ({"started": known.started + 1}, {"boot": "another"}):
            known.model_copy(update=wrong).kill()
        assert known.alive
        known.kill()
        assert not known.alive  # it has ended, though nobody has waited for it yet
        assert process.wait() == -signal.SIGKILL
    assert not known.alive
    with pytest.raises(ProcessLookupError):
        ProcessId.of(process.pid)


# Making it


def test_the_board_is_made_of_what_it_says(home: Path) -> None:
    board = emulation.read_board()
    assert (home / "board").stat().st_mode & 0o777 == 0o700
    assert (home / "board" / made.CLIENT_KEY).stat().st_mode & 0o777 == 0o600
    assert set(board.wheels) == {"numpy", "onnxruntime"}
    assert any(name.startswith(f"linux-image-{board.kernel}_") for name in board.packages)
    assert not any(name.startswith(("systemd_", "perl_")) for name in board.packages)
    available = Emulator().available()
    assert (available.ok, board.kernel in available.detail) == (True, True)
    assert call("emulator", "create").failed_with(2, "there is a board in", "--overwrite")


def test_two_do_not_change_it_at_once(home: Path) -> None:
    with FileLock(home / "lock"):
        for verb in ("start", "stop", "remove"):
            assert call("emulator", verb).failed_with(2, "another edge-sd is at the board")
        assert call("emulator", "create", "--overwrite").failed_with(2, "another edge-sd is at the board")


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's cache without a board."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_without_a_board_each_verb_says_how_to_make_one(empty: Path) -> None:
    assert call("emulator", "start").failed_with(4, "no emulated board yet", "edge-sd emulator create")
    assert json.loads(call("emulator", "status", "--format", "json").out)["created"] is False
    assert "edge-sd emulator create" in Emulator().available().detail
    with pytest.raises(DeviceError, match="no emulated board yet"):
        Emulator().open("")
    assert "no board was running" in call("emulator", "stop").err
    assert "there was no board" in call("emulator", "remove").err
    assert call("emulator", "remove").code == 0
    assert not (empty / "edge-sd" / "emulator").exists()


def test_a_missing_tool_is_named_with_its_package(empty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert call("emulator", "create").failed_with(5, "qemu-system-aarch64", "apt-get install -y qemu-system-arm")
    found = Emulator().available()
    assert (found.ok, "qemu-system-arm" in found.remedy) == (False, True)


def test_package_sources_that_do_not_answer_are_named_with_the_log(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    done = call("emulator", "create")
    assert done.failed_with(5, "the board cannot be made: apt-get: ", "create.log", "apt-get update")
    home = empty / "edge-sd" / "emulator"
    assert {path.name for path in home.iterdir()} == {"create.log", "lock"}
    assert "127.0.0.1:9" in (home / "create.log").read_text()


def command_of(process: psutil.Process) -> str:
    """Its words; empty once it has ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def interrupt(cache: Path, verb: str, when: str, number: signal.Signals) -> None:
    """Send a signal to `edge-sd emulator VERB` once a process with a word in its command, or a file of that name, is there."""
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache)}
    command = [sys.executable, "-c", PROGRAM, "emulator", verb]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, cwd="/") as process:
        deadline = time.monotonic() + 60
        while not any(when in command_of(each) for each in processes(cache)):
            assert process.poll() is None, process.stderr and process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(number)
        process.communicate()
        assert process.returncode in (1, -number, 128 + number)


def test_an_interrupted_making_leaves_nothing(empty: Path) -> None:
    interrupt(empty, "create", "dpkg-deb", signal.SIGINT)
    assert gone(empty)
    assert {path.name for path in (empty / "edge-sd" / "emulator").iterdir()} <= {"create.log", "lock"}


def test_what_a_killed_making_left_is_cleared_away(empty: Path) -> None:
    interrupt(empty, "create", "dpkg-deb", signal.SIGKILL)
    assert gone(empty)
    home = empty / "edge-sd" / "emulator"
    assert len(list(home.glob(".*"))) == 2
    assert "no board was running" in call("emulator", "stop").err
    assert not list(home.glob(".*"))


# Starting and stopping it


def test_a_board_runs_on_its_own_and_heals_when_it_is_started_again(home: Path, cache: Path, tmp_path: Path) -> None:
    started = call("emulator", "start", "--memory", "512", "--cores", "1")
    assert started.code == 0, started.err
    status = json.loads(call("emulator", "status", "--format", "json").out)
    assert (status["running"], status["memory_mib"], status["cores"]) == (True, 512, 1)
    assert call("emulator", "start").failed_with(2, f"runs already, process {status['process']}", "edge-sd emulator stop")
    assert call("emulator", "remove").failed_with(2, "the board runs")
    assert call("emulator", "create", "--overwrite").failed_with(2, "the board runs")

    shown = subprocess.run(["sh", "-c", f"{started.out.strip()} uname -m"], capture_output=True, text=True, check=True)
    assert shown.stdout == "aarch64\n"  # what the command printed is of use as it stands
    with Emulator().open("") as connection:
        info = connection.info()
        assert (info.device, info.machine, info.cores, info.emulated) == ("emulator", "aarch64", 1, True)
        assert info.processor == "Cortex-A72"
        assert 400 * 2**20 < info.memory_bytes < 512 * 2**20
        transport = connection._transport  # type: ignore[attr-defined]
        ask_about_python(transport)
        travel(transport, tmp_path)
        alone = "python3 -c \"import socket; socket.create_connection(('10.0.2.2', {port}), 3)\""
        assert transport.shell(alone.format(port=status["port"])).status == 1, "it reaches this machine"
        assert transport.shell("echo mine > /root/mine; sync").status == 0
    assert emulation.find_running() is not None  # a connection does not end what it did not start

    psutil.Process(status["process"]).kill()  # a board that crashes
    assert gone(cache)
    assert json.loads(call("emulator", "status", "--format", "json").out)["running"] is False
    assert call("emulator", "start").code == 0
    running = emulation.find_running()
    assert running is not None
    mine = subprocess.run(
        ["ssh", "-F", running.config, emulation.HOST, "cat /root/mine"], capture_output=True, text=True, check=False
    )
    assert "No such file" in mine.stderr
    assert call("emulator", "stop").err.strip() == "stopped"
    assert not processes(cache)
    assert emulation.find_running() is None
    emulation.read_board()  # as whole as it was


def ask_about_python(transport: BoardTransport) -> None:
    board = emulation.read_board(whole=False)
    done = transport.shell("python3 -c 'import numpy, onnxruntime; print(numpy.__version__, onnxruntime.__version__)'")
    assert done.text == f"{board.wheels['numpy']} {board.wheels['onnxruntime']}", done
    assert (
        transport.shell("test -z \"$(find / -xdev -name '*onnxruntime*db' -o -xdev -name deviceid)\"").status == 0
    )  # no telemetry


def travel(transport: BoardTransport, folder: Path) -> None:
    sent = folder / "sent"
    (sent / "inside").mkdir(parents=True)
    (sent / "noise.bin").write_bytes(os.urandom(2_000_001))
    (sent / "inside" / "bytes.bin").write_bytes(bytes(range(256)))
    remote = transport.shell(f"mktemp -d {transport.base}/edge-sd-XXXXXXXX").text
    transport.push(sent, remote)
    for name in ("noise.bin", "inside/bytes.bin"):
        transport.pull(f"{remote}/{name}", folder / "back")
        assert sha256(folder / "back") == sha256(sent / name)


def test_a_device_of_its_own_runs_as_long_as_the_connection(home: Path, cache: Path) -> None:
    device, address = find_device("emulator")
    assert device.shares_host
    before = psutil.Process().children(recursive=True)
    connection = device.open(address)
    try:
        assert connection.info().cores == 2
        assert processes(cache)
        assert emulation.find_running() is None
    finally:
        connection.close()
        connection.close()
    assert not processes(cache)
    assert psutil.Process().children(recursive=True) == before


def test_no_board_outlives_a_process_that_is_killed(home: Path, cache: Path) -> None:
    """What a process holds in its hand when it is killed, the keeper lets fall."""
    code = (
        "import time; from edge_sd.devices.emulator import Emulator; connection = Emulator().open('')\n"
        "print(connection._transport._board.folder, flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd="/") as process:
        assert process.stdout is not None
        folder = Path(process.stdout.readline().strip())
        assert processes(cache)
        assert call("emulator", "remove").failed_with(2, "runs for another edge-sd")
        process.kill()
    assert gone(cache)
    assert folder.parent == home
    Emulator().open("").close()
    assert not folder.exists()  # the next one clears away what is of no use to anyone


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_start_that_is_cut_off_leaves_no_board(home: Path, cache: Path, number: signal.Signals) -> None:
    interrupt(cache, "start", "qemu-system-aarch64", number)
    assert gone(cache)
    assert emulation.find_running(ready=False) is None
    if number == signal.SIGINT:
        assert not (home / "run").exists()


def test_the_keeper_kills_what_it_started_for_one_that_never_hears_of_it(tmp_path: Path) -> None:
    """Killed while the keeper starts: nobody holds the other ends of its pipes when it answers."""
    nobody, answer = os.pipe()
    os.close(nobody)
    board = ["sh", "-c", "echo there; sleep 1000", str(tmp_path)]
    keeper = ["sh", "-c", KEEPER, "sh", str(tmp_path / "console"), *board]
    subprocess.run(keeper, stdin=subprocess.DEVNULL, stdout=answer, stderr=subprocess.DEVNULL, check=True, timeout=60)
    os.close(answer)
    assert gone(tmp_path)


# A board that does not start


def test_a_damaged_disk_is_refused(home: Path, cache: Path) -> None:
    disk = home / "board" / made.DISK
    with disk.open("r+b") as file:
        file.seek(1 << 20)
        before = file.read(1)
        file.seek(1 << 20)
        file.write(bytes([before[0] ^ 1]))
    try:
        assert call("emulator", "start").failed_with(4, "the emulated board is damaged", "disk.img", "create --overwrite")
        with pytest.raises(DeviceError, match="is damaged"):
            Emulator().open("")
    finally:
        with disk.open("r+b") as file:
            file.seek(1 << 20)
            file.write(before)
    assert not processes(cache)
    emulation.read_board()


@pytest.fixture
def copied(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A board of which a test may replace a file."""
    folder = tmp_path / "cache" / "edge-sd" / "emulator" / "board"
    folder.mkdir(parents=True)
    for file in (cache / "edge-sd" / "emulator" / "board").iterdir():
        os.link(file, folder / file.name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return folder


def replace(board: Path, name: str, content: bytes) -> None:
    """Another file in its place, and a board.json that says so."""
    (board / name).unlink()
    (board / name).write_bytes(content)
    said = read_model(emulation.Board, board / made.BOARD)
    (board / made.BOARD).unlink()
    write_model(board / made.BOARD, said.model_copy(update={"digests": {**said.digests, name: digest(board / name)}}))


def test_a_board_that_panics_shows_its_last_words(copied: Path, tmp_path: Path) -> None:
    replace(copied, made.INITRD, b"no initrd at all")
    began = time.monotonic()
    with pytest.raises(DeviceError, match=r"ended while it started; its console's last lines:\n(.|\n)*Kernel panic") as caught:
        emulation.start(emulation.Settings())
    assert time.monotonic() - began < 60
    assert "create --overwrite" in caught.value.hint
    assert gone(tmp_path)
    assert not (copied.parent / "run").exists()


def test_a_board_of_another_key_is_not_talked_to(copied: Path, tmp_path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "other")], check=True)
    public = (tmp_path / "other.pub").read_text().split()
    replace(copied, made.KNOWN_HOSTS, f"{made.ALIAS} {public[0]} {public[1]}\n".encode())
    with pytest.raises(DeviceError, match=r"does not answer: .*erification failed"):
        emulation.start(emulation.Settings())
    assert gone(tmp_path)


def test_a_port_that_another_takes_first_is_replaced(home: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ports = iter([taken.getsockname()[1], boots._free_port()])
        monkeypatch.setattr(boots, "_free_port", lambda: next(ports))
        running = emulation.start(emulation.Settings(cores=1))
        assert running.state.port != taken.getsockname()[1]


@pytest.mark.parametrize("name", ['a"b', "a\\b", "a$b", "a\nb"])
def test_a_cache_that_configurations_cannot_name_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name))
    assert call("emulator", "create").failed_with(5, "does not fit", "XDG_CACHE_HOME")
    assert not list(tmp_path.iterdir())
