"""ssh, against a real server on the loopback address: commands, files, and every way in which a link can fail."""

import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from edge_sd.devices import _ssh, find_device, ssh
from edge_sd.devices._ssh import Address, parse_address
from edge_sd.devices.ssh import Ssh, SshTransport
from edge_sd.errors import DeviceError, UsageError
from edge_sd.files import sha256
from loopback_sshd import LoopbackSshd, free_port, loopback_sshd, quoted

Open = Callable[..., SshTransport]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[LoopbackSshd]:
    """A server whose files lie in a folder of a name that a configuration file might stumble over."""
    folder = tmp_path / "it's a server, 100 %"
    folder.mkdir()
    with loopback_sshd(folder) as running:
        yield running


def left_beside(before: set[psutil.Process], seconds: float = 10.0) -> set[psutil.Process]:
    """Processes that were not there before, after a while in which the server's own may end; zombies are not counted."""
    deadline = time.monotonic() + seconds
    while left := {each for each in psutil.Process().children(recursive=True) if _runs(each)} - before:
        if time.monotonic() > deadline:
            break
        time.sleep(0.05)
    return left


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def connect(server: LoopbackSshd) -> Iterator[Open]:
    """Transports to it. When all of them are closed, nothing of theirs is left."""
    before, transports, sockets = set(psutil.Process().children(recursive=True)), [], []

    def open_transport(address: str = "board", **settings: str) -> SshTransport:
        transport = SshTransport(address, config=server.config, **settings)  # type: ignore[arg-type]
        transports.append(transport)
        sockets.append(transport._link._socket.parent)
        return transport

    yield open_transport
    for transport in transports:
        transport.close()
        transport.close()
    assert not left_beside(before)
    assert not [folder for folder in sockets if folder.exists()]


@pytest.fixture
def remote(connect: Open) -> Iterator[str]:
    """A folder on the other side."""
    transport = connect()
    folder = transport.shell(f"mktemp -d {transport.base}/edge-sd-XXXXXXXX").text
    yield folder
    shutil.rmtree(folder)


# Commands


def test_a_command_answers_with_its_status_and_both_of_its_streams(connect: Open) -> None:
    transport, lines = connect(), []
    done = transport.shell("printf 'a\\0b\\377'; printf 'one\\ntwo' >&2; exit 3", on_line=lines.append)
    assert (done.status, done.out, done.err) == (3, b"a\0b\xff", "one\ntwo")
    assert lines == ["one", "two"]
    assert transport.shell("echo \"it's\" '$HOME' `echo so`").text == "it's $HOME so"


@pytest.mark.parametrize(
    ("script", "status"), [("true", 0), ("exit 255", 255), ("sh -c 'kill -9 $$'", 137), ("exec sh -c 'kill -15 $$'", 143)]
)
def test_what_a_command_ends_with_is_told_from_a_link_that_breaks(connect: Open, script: str, status: int) -> None:
    """ssh itself says 255 of a link that breaks, and of a process that a signal killed."""
    assert connect().shell(script).status == status


def test_a_large_answer_comes_whole(connect: Open) -> None:
    done = connect().shell("head -c 20000000 /dev/zero | tr '\\0' x; echo said >&2")
    assert len(done.out) == 20_000_000
    assert done.err == "said"


def test_a_shell_that_greets_is_understood(tmp_path: Path) -> None:
    with loopback_sshd(tmp_path, ForceCommand="echo Welcome; echo 'Have fun' >&2; eval \"$SSH_ORIGINAL_COMMAND\"") as server:
        transport = SshTransport("board", config=server.config)
        try:
            assert transport.base == "/tmp"  # noqa: S108
            assert transport.shell("echo here").text == "here"
        finally:
            transport.close()


def test_one_connection_serves_all_commands(server: LoopbackSshd, connect: Open) -> None:
    transport = connect()
    sessions = {transport.shell('echo "$SSH_CONNECTION"').text for _ in range(5)}
    assert len(sessions) == 1


def test_a_command_notices_that_nobody_listens_any_more(connect: Open, tmp_path: Path) -> None:
    """Its input ends with the connection; until then it stays open."""
    transport, mark = connect(), tmp_path / "mark"
    with pytest.raises(DeviceError, match="said nothing for 1 s"):
        transport.shell(f"cat; echo ended > '{mark}'", patience=1)
    deadline = time.monotonic() + 10
    while not mark.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert mark.read_text() == "ended\n"


# Files


@pytest.fixture
def sent(tmp_path: Path) -> Path:
    """A folder with some MB of every byte, a program, an empty file and a folder in it."""
    folder = tmp_path / "to send"
    (folder / "inside").mkdir(parents=True)
    (folder / "noise.bin").write_bytes(os.urandom(3_000_001))
    (folder / "inside" / "bytes.bin").write_bytes(bytes(range(256)) * 9)
    (folder / "empty").touch()
    (folder / "program").write_text("#!/bin/sh\necho it runs\n")
    (folder / "program").chmod(0o755)
    return folder


WAYS = ("rsync", "sftp", "tar")


def only(way: str, transport: SshTransport, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take from a transport the other ways to copy, as a board without their programs would."""
    for other in WAYS:
        if other != way:
            monkeypatch.setattr(transport, f"_push_{other}", lambda local, remote, patience: None)


def digests(folder: Path) -> dict[str, str]:
    return {file.relative_to(folder).as_posix(): sha256(file) for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("way", WAYS)
def test_a_folder_arrives_whole(connect: Open, remote: str, sent: Path, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    transport, seen = connect(), []
    only(way, transport, monkeypatch)
    transport.push(sent, remote, lambda done, total, note: seen.append((done, total)))
    assert digests(Path(remote)) == digests(sent)
    assert transport.shell(f"{remote}/program").text == "it runs"
    total = sum(file.stat().st_size for file in sent.rglob("*") if file.is_file())
    assert (seen[0], seen[-1]) == ((0, total), (total, total))


def test_without_rsync_and_sftp_a_folder_goes_as_a_stream(tmp_path: Path, sent: Path) -> None:
    """As on a board with a small ssh server; nothing is told to it but what it can do."""
    (tmp_path / "there").mkdir()
    with loopback_sshd(tmp_path, Subsystem="") as server:
        transport = SshTransport("board", config=server.config)
        transport._rsync = False  # as the script that looks around finds it there
        try:
            transport.push(sent, str(tmp_path / "there"))
        finally:
            transport.close()
    assert digests(tmp_path / "there") == digests(sent)


@pytest.mark.parametrize("way", WAYS)
def test_a_full_disk_is_named(connect: Open, tiny_disk: Path, sent: Path, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    transport = connect(base=str(tiny_disk))
    assert transport.base == str(tiny_disk)
    only(way, transport, monkeypatch)
    with pytest.raises(DeviceError, match=r"did not take 2\.9 MiB: .*[Nn]o space left on device"):
        transport.push(sent, transport.base)
    assert transport.shell("echo goes on").text == "goes on"


def test_a_file_comes_back_whole(connect: Open, remote: str, tmp_path: Path) -> None:
    content = os.urandom(5_000_000)
    Path(remote, "answer.bin").write_bytes(content)
    connect().pull(f"{remote}/answer.bin", tmp_path / "back.bin")
    assert (tmp_path / "back.bin").read_bytes() == content


def test_a_file_that_is_not_there_is_named(connect: Open, remote: str, tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match=r"does not give .*/answer\.bin: .*No such file"):
        connect().pull(f"{remote}/answer.bin", tmp_path / "back.bin")
    assert not (tmp_path / "back.bin").exists()


def test_a_name_that_is_not_ours_reaches_no_shell(connect: Open, tmp_path: Path) -> None:
    transport = connect()
    for name in ("/srv/a b", "/srv/$(id)", "relative", "/srv/a;id", "/srv/x\n"):
        with pytest.raises(ValueError, match="no name of ours"):
            transport.pull(name, tmp_path / "back")
        with pytest.raises(ValueError, match="no name of ours"):
            transport.push(tmp_path, name)


def test_programs_that_may_not_run_in_tmp_run_below_the_home_folder() -> None:
    """In a mount namespace of its own /tmp is mounted noexec."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as home:
        mounted = 'mount -t tmpfs -o noexec tmpfs /tmp && exec sh -c "$1"'
        run = ["unshare", "-m", "sh", "-c", mounted, "sh", ssh._FIND_BASE]
        done = subprocess.run(run, env={**os.environ, "HOME": home}, capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[0] == f"{home}/.cache"
        assert not list(Path(home, ".cache").iterdir())
        nowhere = subprocess.run(run, env={**os.environ, "HOME": "/proc"}, capture_output=True, text=True, check=False)
        assert nowhere.returncode == 1


# A link that fails


def test_a_server_that_is_killed_in_the_middle_of_a_command(server: LoopbackSshd, connect: Open) -> None:
    transport = connect()

    def kill(line: str) -> None:
        server.kill_connections()

    began = time.monotonic()
    with pytest.raises(DeviceError, match="the connection to board broke"):
        transport.shell("echo begun >&2; sleep 30; echo never", on_line=kill)
    assert time.monotonic() - began < 20
    with pytest.raises(DeviceError, match="the connection to board broke"):
        transport.shell("true")
    assert transport.reconnect()
    assert transport.shell("echo again").text == "again"


def test_a_copy_that_is_cut_off(server: LoopbackSshd, connect: Open, remote: str, sent: Path) -> None:
    transport = connect()
    server.kill_connections()
    with pytest.raises(DeviceError, match="the connection to board broke"):
        transport.push(sent, remote)


def test_a_device_that_does_not_come_back(server: LoopbackSshd, connect: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    transport = connect()
    monkeypatch.setattr(ssh, "_BACK", 0.5)
    server.write_config(Port=str(free_port()))
    assert not transport.reconnect()
    with pytest.raises(DeviceError, match="the connection to board broke"):
        transport.shell("true")


def test_a_command_that_hangs_is_given_up_and_the_link_goes_on(connect: Open) -> None:
    transport, began = connect(), time.monotonic()
    with pytest.raises(DeviceError, match="said nothing for 2 s") as caught:
        transport.shell("sleep 60", patience=2)
    assert 2 <= time.monotonic() - began < 15
    assert "--patience" in caught.value.hint
    assert transport.shell("echo here").text == "here"


def test_a_link_that_is_dead_without_a_word_is_noticed(
    server: LoopbackSshd, connect: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cable that is pulled: no packet says so."""
    quick = [option.replace("ServerAliveInterval=10", "ServerAliveInterval=1") for option in _ssh._OPTIONS]
    monkeypatch.setattr(_ssh, "_OPTIONS", tuple(quick))
    transport = connect()
    try:
        with pytest.raises(DeviceError, match=r"broke: .*not responding"):
            transport.shell("echo begun >&2; cat", patience=60, on_line=lambda line: server.sleep())
    finally:
        server.wake()


def test_nothing_outlives_a_process_that_is_killed(server: LoopbackSshd) -> None:
    before = set(_ssh._SOCKETS.glob(f"{_ssh._PREFIX}*"))
    code = (
        "import sys, time; from pathlib import Path; from edge_sd.devices.ssh import SshTransport\n"
        f"transport = SshTransport('board', config=Path({str(server.config)!r}))\n"
        "print(transport._link._process.pid, flush=True)\n"
        "transport.shell('cat')\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd="/") as process:
        assert process.stdout is not None
        master = psutil.Process(int(process.stdout.readline()))
        deadline = time.monotonic() + 10
        while len(started := process_tree(process.pid)) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    gone, left = psutil.wait_procs([master, *started], 15)
    assert master in gone
    assert not left
    assert not psutil.Process(server.process.pid).children(recursive=True)
    (folder,) = set(_ssh._SOCKETS.glob(f"{_ssh._PREFIX}*")) - before
    os.utime(folder, (0, 0))
    SshTransport("board", config=server.config).close()
    assert not folder.exists()  # the next one clears it away


def process_tree(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


# Who is let in


def refused(server: LoopbackSshd, address: str = "board") -> DeviceError:
    """The error of an address that does not let us in; it leaves no process and no file."""
    before = set(psutil.Process().children(recursive=True)), sockets()
    with pytest.raises(DeviceError) as caught:
        SshTransport(address, config=server.config)
    assert not left_beside(before[0])
    assert sockets() <= before[1]
    return caught.value


def sockets() -> set[Path]:
    """Of all connections on this machine."""
    return set(_ssh._SOCKETS.glob(f"{_ssh._PREFIX}*/*"))


def other_key(folder: Path) -> Path:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / "other")], check=True)
    return folder / "other"


def test_another_host_key_is_refused(server: LoopbackSshd) -> None:
    public = other_key(server.folder).with_suffix(".pub").read_text().split()[:2]
    (server.folder / "known_hosts").write_text(f"[127.0.0.1]:{server.port} {' '.join(public)}\n")
    error = refused(server)
    assert "cannot connect to board" in error.message
    assert "erification failed" in error.message
    assert "if you know why the key changed" in error.hint


def test_a_host_key_that_is_not_known_is_refused(server: LoopbackSshd) -> None:
    (server.folder / "known_hosts").write_text("")
    server.write_config(StrictHostKeyChecking="ask")  # the default; nobody can be asked
    assert "fingerprint" in refused(server).hint


def test_another_user_key_is_refused(server: LoopbackSshd) -> None:
    server.write_config(IdentityFile=quoted(other_key(server.folder)))
    error = refused(server)
    assert "Permission denied" in error.message
    assert "ssh-copy-id" in error.hint


def test_a_port_where_nobody_listens(server: LoopbackSshd) -> None:
    error = refused(server, f"board:{free_port()}")
    assert "Connection refused" in error.message
    assert "does an ssh server run there" in error.hint


def test_a_configuration_that_ssh_does_not_read(server: LoopbackSshd) -> None:
    server.write_config(NoSuchOption="yes")
    assert "ssh -G board" in refused(server).hint


def test_a_server_that_says_nothing(server: LoopbackSshd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_ssh, "_LOGIN", 2)
    server.process.send_signal(signal.SIGSTOP)
    try:
        error = refused(server)
    finally:
        server.process.send_signal(signal.SIGCONT)
    assert "no answer for 2 s" in error.message


def test_options_for_people_do_not_disturb(server: LoopbackSshd) -> None:
    """What a configuration often holds for a host that is worked on."""
    taken = free_port()
    server.write_config(
        RemoteCommand="tmux attach", RequestTTY="force", LocalForward=f"{taken} localhost:1", ForwardAgent="yes",
        ControlMaster="auto", ControlPath=f'"{str(server.folder).replace("%", "%%")}/%C"', ControlPersist="10m", ForwardX11="yes",
        PermitLocalCommand="yes", LocalCommand="touch '%d/ran'", ExitOnForwardFailure="yes",
    )  # fmt: skip
    transport = SshTransport("board", config=server.config)
    try:
        assert transport.shell("echo $TERM $SSH_AUTH_SOCK; tty").text == "not a tty"
        assert taken not in {each.laddr.port for each in psutil.net_connections("tcp") if each.status == "LISTEN"}
        assert [file.name for file in server.folder.iterdir() if len(file.name) == 40] == []  # the user's own socket
    finally:
        transport.close()


# Addresses


@pytest.mark.parametrize(
    ("text", "destination", "port"),
    [
        ("board", "board", ""),
        ("pi@10.0.0.7", "pi@10.0.0.7", ""),
        ("first.last@board-1.local:2222", "first.last@board-1.local", "2222"),
        ("root@[fe80::1%eth0]:22", "root@fe80::1%eth0", "22"),
        ("[::1]", "::1", ""),
        ("a_name", "a_name", ""),
    ],
)
def test_an_address_is_read(text: str, destination: str, port: str) -> None:
    assert parse_address(text) == Address(destination, destination.rpartition("@")[2], port)


ODD = (
    "", "-oProxyCommand=id", "-G", "root@-oProxyCommand=id", "-l@board", "a b", "board;id", "board\nid", "board'", 'bo"ard',
    "$(id)", "`id`", "a|b", "a&b", "a>b", "a@b@c", "@board", "root@", "board:", "board:0", "board:65536", "board:22x", "::1",
    "[::1", "ho\0st", "höst", "host%h", "../etc", "ssh://board", "x" * 256,
)  # fmt: skip


@pytest.mark.parametrize("address", ODD)
def test_an_odd_address_reaches_no_process(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def started(*arguments: object, **keywords: object) -> None:
        raise AssertionError(f"a process was started: {arguments}")

    monkeypatch.setattr(subprocess, "Popen", started)
    with pytest.raises(UsageError, match="no ssh server can have the address"):
        Ssh().open(address)


# The device


def test_the_device_is_found_and_takes_the_configuration_that_a_variable_names(
    server: LoopbackSshd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ssh.CONFIG, str(server.config))
    device, address = find_device("ssh:root@board")
    assert device.available().ok
    assert "OpenSSH" in device.available().detail
    with device.open(address) as connection:
        info = connection.info()
        assert (info.device, info.address, info.machine) == ("ssh", "root@board", platform.machine())
        assert not info.emulated


def test_a_configuration_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(ssh.CONFIG, str(tmp_path / "none"))
    with pytest.raises(UsageError, match="which is no file"):
        Ssh().open("board")


def test_without_ssh_the_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    found = Ssh().available()
    assert (found.ok, found.remedy) == (False, "apt-get install -y openssh-client")
