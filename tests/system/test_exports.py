"""Disks of a machine that stays, served as NBD to programs of others: whole, alone, and gone."""

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from frontend.nbd_export import CONNECTIONS_MAX
from tests.patience import eventually
from tests.system.conftest import ROOT, environment, grantlab, leftovers
from toolstack import LoadSpec, Topology, attach
from toolstack.attached import AttachedMachine, up
from toolstack.failures import GuestFailed, MachineError
from toolstack.loadspec import ConfigError
from toolstack.names import machine_names

pytestmark = pytest.mark.system

MIB = 1 << 20


@pytest.fixture(scope="module")
def run_base() -> Iterator[str]:
    """Of all tests here: a machine is for as many as it outlives."""
    base = tempfile.mkdtemp(prefix="gl-", dir="/tmp")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", base)
        patch.setenv("TMPDIR", base)
        yield base


@pytest.fixture(scope="module", autouse=True)
def nothing_left_behind(run_base: str) -> Iterator[None]:
    """When all are done; of sockets each test sees to that itself."""
    yield
    if "m" in machine_names():
        attach("m").down()
    for path in Path(run_base).glob("*.img"):
        path.unlink()
    eventually(lambda: leftovers(run_base) == [])
    os.rmdir(run_base)


@pytest.fixture
def base(run_base: str) -> Path:
    """Where files may be left whose names end in .img."""
    return Path(run_base)


@pytest.fixture
def machine(base: Path) -> Iterator[AttachedMachine]:
    """Two guests: the first with a disk in memory, a file's, and one that is read-only."""
    if "m" not in machine_names():
        (base / "file.img").write_bytes(bytes(16 * MIB))
        disks = ["ram:16m", f"file:{base}/file.img", "ram:1m,access=ro"]
        of_guests = [{"disks": disks}, {"disks": ["ram:16m"]}]
        up(
            Topology(guests=2, dom0_vcpus=2, on_crash="restart", events="pipe", guest=of_guests),
            "m",
            print,
        )
    with attach("m") as machine:
        yield machine


def run(*command: str) -> str:
    """A program's output; it must be there, and succeed."""
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def fio(uri: str, *more: str, seconds: float = 0) -> list[str]:
    timed = [f"--runtime={seconds}", "--time_based"] if seconds else []
    return ["fio", "--name=x", "--ioengine=nbd", f"--uri={uri}", "--bs=4k", "--rw=randrw",
            "--rwmixread=70", "--iodepth=32", "--output-format=json", *timed, *more]  # fmt: skip


# --- programs of others ---------------------------------------------------------------------------


def test_a_file_system_goes_in_and_comes_out_the_same(machine: AttachedMachine, base: Path) -> None:
    image, back = base / "in.img", base / "out.img"
    image.write_bytes(bytes(16 * MIB))
    run("mkfs.ext4", "-q", "-F", "-d", str(ROOT / "frontend"), str(image))
    with machine.export(1, "xvda") as export:
        run("nbdcopy", "--connections=4", str(image), export.uri)
        run("qemu-img", "convert", "-f", "raw", "-O", "raw", export.uri, str(back))
    run("e2fsck", "-fn", str(back))
    assert sha256(back) == sha256(image)
    direct = machine.guest(1).disk.read(0, 16 * MIB)
    assert hashlib.sha256(direct).hexdigest() == sha256(image)


def test_what_it_is_and_can_do_is_told_and_true(machine: AttachedMachine) -> None:
    with machine.export(1, "xvdb") as export:
        (told,) = json.loads(run("nbdinfo", "--json", export.uri))["exports"]
        offered = ["is_read_only", "can_flush", "can_fua", "can_multi_conn", "can_trim", "can_zero"]
        assert [told[name] for name in offered] == [False, True, True, True, True, True]
        assert (told["export-size"], told["block_size_minimum"]) == (16 * MIB, 512)
        commands = ["write -P 7 1m 12m", "read -P 7 1m 12m", "write -f -P 9 4k 8k", "flush",
                    "discard 1m 1m", "write -z 2m 3m", "read -P 0 1m 4m", "read -P 9 4k 8k",
                    "read -P 7 5m 8m"]  # fmt: skip
        out = run("qemu-io", "-f", "raw", *(w for c in commands for w in ("-c", c)), export.uri)
        assert "failed" not in out
        assert machine.status()["disks"][1]["exported"] == export.socket
    with machine.export(1, "xvdc") as export:
        (told,) = json.loads(run("nbdinfo", "--json", export.uri))["exports"]
        assert told["is_read_only"] is True and told["can_zero"] is False
        run("qemu-io", "-r", "-f", "raw", "-c", "read -P 0 0 1m", export.uri)


def test_fio_verifies_what_it_wrote_beside_others_loads_and_dom0s_death(
    machine: AttachedMachine,
) -> None:
    others = machine.load(LoadSpec(runtime_s=600, domid=2), every_s=0.05)
    next(others)
    with machine.export(1, "xvda") as export:
        jobs = ["--numjobs=4", "--size=4m", "--offset_increment=4m"]
        verified = [
            *fio(export.uri, *jobs),
            "--verify=crc32c",
            "--loops=20",
            "--verify_state_save=0",
        ]
        running = subprocess.Popen(verified, stdout=subprocess.PIPE, text=True)
        try:
            ios = machine.status()["disks"][0]["ios"]
            eventually(lambda: machine.status()["disks"][0]["ios"] > ios + 5000)
            os.kill(machine.pids["dom0"], signal.SIGKILL)
            out, _ = running.communicate(timeout=120)
        finally:
            running.kill()
        found = json.loads(out[out.index("{") :])["jobs"]
    assert running.returncode == 0
    assert [job["error"] for job in found] == [0] * 4
    assert all(job["read"]["total_ios"] and job["write"]["total_ios"] for job in found)
    assert int(next(others).frontend[2]["verify_errors"].sum()) == 0
    others.close()


# --- one user at a time ---------------------------------------------------------------------------


def test_a_disk_has_one_user_at_a_time(machine: AttachedMachine, base: Path) -> None:
    with attach("m") as other, machine.export(1, "xvda"):
        for refused in (
            lambda: other.export(1, "xvda"),
            lambda: next(other.load(LoadSpec(ios=1, domid=1, vdev="xvda"))),
        ):
            with pytest.raises(MachineError, match=r"guest 1's xvda is exported.* one user"):
                refused()
        with pytest.raises(MachineError, match="xvda: it is exported"):
            other.guest(1).disk.read(0, 512)
        assert other.guest(1).disks[1].read(0, 512) == bytes(512)
    load = machine.load(LoadSpec(runtime_s=600, domid=1, vdev="xvda"), every_s=0.05)
    next(load)
    done = grantlab("export", "m", "1:xvda", run_base=str(base))
    assert done.returncode == 1
    line = "grantlab: error: m: guest 1's xvda has a load, and has one user at a time\n"
    assert done.stderr == line
    load.close()
    machine.export(1, "xvda").close()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("m 1:xvdz", "disk: '1:xvdz' is not GUEST:VDEV, as 1:xvda"),
        ("m x", "disk: 'x' is not GUEST:VDEV, as 1:xvda"),
        ("m", "export: disk is needed"),
        ("nobody 1:xvda", "machine 'nobody' is not up; machines that are: "),
    ],
)
def test_what_a_user_gets_wrong_is_one_line(arguments: str, line: str, run_base: str) -> None:
    done = grantlab("export", *arguments.split(), run_base=run_base)
    assert done.returncode == 2
    assert done.stderr.startswith(f"grantlab: error: {line}") and done.stderr.count("\n") == 1


def test_what_the_machine_refuses_leaves_nothing(machine: AttachedMachine, base: Path) -> None:
    path = base / "mine.img"
    path.write_bytes(b"mine")
    for domid, vdev, socket_path, refusal in [
        (9, "xvda", "", "disk: 9:xvda is none of this machine's: 1:xvda, 1:xvdb, 1:xvdc, 2:xvda"),
        (1, "xvda", "/none/such", "socket: '/none/such' cannot be made: No such file"),
        (1, "xvda", "/" + 120 * "x", "socket: '/xxx.* is not an absolute path of at most 107"),
        (1, "xvda", str(path), "socket: .* cannot be made: Address already in use"),
    ]:
        with pytest.raises(ConfigError, match=f"^{refusal}"):
            machine.export(domid, vdev, socket_path)
    assert path.read_bytes() == b"mine"
    machine.export(1, "xvda").close()


# --- ends -----------------------------------------------------------------------------------------


def connected(path: str) -> socket.socket:
    """A client that has been greeted."""
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(20)
    client.connect(path)
    assert client.recv(18)[:8] == b"NBDMAGIC"
    return client


def is_left(client: socket.socket) -> bool:
    try:
        return client.recv(1) == b""
    except ConnectionResetError:
        return True


def test_one_client_hurts_itself_alone(machine: AttachedMachine) -> None:
    """Rubbish, silence, a connection too many: the others are served."""
    with machine.export(1, "xvda") as export, ExitStack() as stack:
        rude = connected(export.socket)
        rude.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert is_left(rude)
        rude.close()
        clients = [stack.enter_context(connected(export.socket)) for _ in range(CONNECTIONS_MAX)]
        with socket.socket(socket.AF_UNIX) as late:
            late.settimeout(20)
            late.connect(export.socket)
            assert is_left(late)
        clients[0].close()
        assert "16M" in run("nbdinfo", export.uri)
        assert [len(machine.guest(2).disk.read(0, 512)), machine.status()["loads"]] == [512, 0]


def test_ctrl_c_ends_the_export_and_not_the_machine(machine: AttachedMachine, base: Path) -> None:
    path = base / "here.img"
    command = ["./run.sh", "export", "m", "1:xvda", "--socket", str(path)]
    export = subprocess.Popen(
        command, cwd=ROOT, env=environment(str(base)), stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert export.stdout is not None
    uri = f"nbd+unix:///?socket={path}"
    assert export.stdout.readline() == f"1:xvda is served, 16m, until Ctrl-C: {uri}\n"
    with connected(str(path)) as client:
        os.killpg(export.pid, signal.SIGINT)
        _, err = export.communicate(timeout=60)
        assert is_left(client)
    assert export.returncode == 130
    assert err == "grantlab: error: interrupted; the export has ended, m stays\n"
    assert not os.path.lexists(path)
    assert len(machine.guest(1).disk.read(0, 512)) == 512


def test_it_ends_with_the_machine(machine: AttachedMachine) -> None:
    export = machine.export(1, "xvda")
    with connected(export.socket) as client:
        with attach("m") as other:
            other.down()
        assert is_left(client)
    assert not os.path.lexists(export.socket)


def test_whatever_dies_the_socket_goes_with_it(machine: AttachedMachine, base: Path) -> None:
    path = base / "x.img"
    # who asked for it
    program = (
        "from toolstack import attach; import time;"
        f"e = attach('m').export(1, 'xvda', {str(path)!r}); print(1, flush=True); time.sleep(99)"
    )
    asker = subprocess.Popen(
        [sys.executable, "-c", program], env=environment(str(base)), stdout=subprocess.PIPE
    )
    assert asker.stdout is not None and asker.stdout.readline() == b"1\n"
    with connected(str(path)) as client:
        asker.kill()
        asker.wait()
        assert is_left(client)
    eventually(lambda: not os.path.lexists(path))
    # the guest
    mine = machine.export(1, "xvda", str(path))
    second = base / "y.img"
    machine.export(2, "xvda", str(second))
    with connected(str(path)) as client, connected(str(second)) as other:
        os.kill(machine.pids["guest-1"], signal.SIGKILL)
        with pytest.raises(GuestFailed, match=r"^guest-1 was killed by SIGKILL$"):
            mine.wait()
        assert is_left(client) and not os.path.lexists(path)
        # the keeper: nobody is left but the janitor
        os.kill(machine.described["pid"], signal.SIGKILL)
        assert is_left(other)
    eventually(lambda: not os.path.lexists(second))
