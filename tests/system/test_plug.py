"""Disks that come to running guests and go, as `xl` does it, and by xenstore-write alone."""

import gc
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from common import abi
from common.hypercall import HypercallError
from common.xenbus import backend_path, frontend_path
from common.xenstore import XenStoreClient
from tests.system.conftest import grantlab
from toolstack import LoadSpec, Topology, attach
from toolstack.attached import up
from toolstack.disks import device_of
from toolstack.failures import GuestFailed, MachineError
from toolstack.loadspec import ConfigError
from toolstack.names import machine_names
from toolstack.plugged_machine import PluggedMachine
from toolstack.vbd_config import plug_in

pytestmark = pytest.mark.system

XVDB, XVDC, XVDE = map(device_of, ("xvdb", "xvdc", "xvde"))
PORTS = 64  # more than any domain here has


@pytest.fixture
def machine() -> Iterator[PluggedMachine]:
    """Two guests with a disk and room for two more; the disks they have work to the end."""
    topology = Topology(guests=2, disk_mib=4, dom0_vcpus=2, spare_disks=2, on_crash="restart")
    with topology.start() as machine:
        assert isinstance(machine, PluggedMachine)
        yield machine
        for domid in (1, 2):
            if f"guest-{domid}" in machine.pids:
                assert len(machine.guest(domid).disk.read(0, 4096)) == 4096
    assert machine.close_failure == ""


def nodes(store: XenStoreClient, path: str = "/") -> list[str]:
    below = [f"{path.rstrip('/')}/{name}" for name in store.directory(path)]
    return [path, *(each for name in below for each in nodes(store, name))]


def ports(machine: PluggedMachine, domid: int) -> list[int]:
    """Those of a domain that are in use."""
    found = []
    for port in range(1, PORTS):
        asked = abi.EVTCHNOP_STATUS, abi.EVTCHN_STATUS
        try:
            status, _ = machine._builder._hypercalls.event_channel_op(
                "status", *asked, dom=domid, port=port
            )
        except HypercallError:
            continue
        if status["status"][0]:
            found.append(port)
    return found


def mappings(pid: int) -> int:
    """Of memory that a process has in common with others: a guest's pages, a ram disk's."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return sum("/dev/shm/" in line or "/memfd:" in line for line in lines)


def held(machine: PluggedMachine) -> dict[str, object]:
    """What the machine holds, each as exactly as it can be counted."""
    gc.collect()  # what an earlier machine has left to Python
    pids = {name: machine.pids[name] for name in ("hypervisor", "xenstored", "dom0", "guest-1")}
    grants = [block["grants_mapped"][0] for block in machine.snapshot().hypervisor.values()]
    sockets = [str(path) for path in Path(machine.run_dir).rglob("*")]
    return {
        "descriptors": {name: psutil.Process(pid).num_fds() for name, pid in pids.items()},
        "mappings": {name: mappings(pid) for name, pid in pids.items()},
        "our own descriptors": psutil.Process().num_fds(),
        "handles": [int(count) for count in grants],
        "ports": {domid: len(ports(machine, domid)) for domid in (0, 1, 2)},
        "nodes": nodes(machine._store),
        "sockets": len(sockets),
    }


def eventually_held(machine: PluggedMachine, before: dict[str, object]) -> dict[str, object]:
    """What is held, once it is as before; or as it is, if that takes too long: a guest lets go of
    what is still mapped when it looks again."""
    deadline = time.monotonic() + 10
    while (now := held(machine)) != before and time.monotonic() < deadline:
        time.sleep(0.1)
    return now


def test_ten_pairs_under_load_leave_nothing(machine: PluggedMachine) -> None:
    load = machine.load(LoadSpec(runtime_s=600, vdev="xvda"), every_s=0.2)
    for _ in range(5):  # until it keeps what it will ever keep
        next(load)
    before = held(machine)
    for number in range(10):
        disk = machine.attach_disk(1, f"ram:{number + 1}m")
        assert (disk.vdev, disk.size) == ("xvdb", (number + 1) << 20)
        assert disk.read(0, 512) == bytes(512)  # another's, but not what that has left
        disk.write(0, b"new" * 1024)
        assert disk.read(0, 3072) == b"new" * 1024
        assert [each.vdev for each in machine.guest(1).disks] == ["xvda", "xvdb"]
        machine.detach_disk(1, "xvdb")
        next(load)
    after = eventually_held(machine, before)
    assert after == before
    snapshot = next(load)
    load.close()
    assert snapshot.frontend[1]["verify_errors"].sum() == 0
    assert snapshot.frontend[1]["io_errors"].sum() == 0
    with pytest.raises(MachineError, match="domain 1: xvdb: not Connected: there is no such disk"):
        disk.read(0, 512)


def test_what_cannot_be_is_one_line(machine: PluggedMachine, tmp_path: Path) -> None:
    before = held(machine)
    machine.attach_disk(1, "ram:1m,vdev=xvdd,access=ro")
    for disk, line in (
        ("ram:1m,vdev=xvda", "disk: guest 1 has an xvda already"),
        ("ram:1m,vdev=xvdz", "is not in xvda..xvdp"),
        ("floppy:1", "target: "),
        ("ram:8m,name=x,vdev=xvda", "disk: guest 1 has an xvda already"),
    ):
        with pytest.raises(ConfigError, match=line):
            machine.attach_disk(1, disk)
    with pytest.raises(ConfigError, match=r"guest: 3 is not one of 1\.\.2"):
        machine.attach_disk(3, "ram:1m")
    with pytest.raises(ConfigError, match="'xvdb' is no disk of guest 1, which has xvda, xvdd"):
        machine.detach_disk(1, "xvdb")
    with pytest.raises(MachineError, match=r"guest 1's xvdb cannot be: .*/none/such"):
        machine.attach_disk(1, "file:/none/such")  # as dom0 finds
    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 20))
    machine.attach_disk(1, f"file:{image}")
    with pytest.raises(ConfigError, match="is written by guest 1's xvdb and guest 2's xvdb"):
        machine.attach_disk(2, f"file:{image}")
    with pytest.raises(ConfigError, match="guest 1 has room for 3 disks, and they are there"):
        machine.attach_disk(1, "null:1g")
    front, path = frontend_path(1, XVDE), machine.xenstore_path
    plug_by_hand(path, 1, XVDE, "null:1m")  # who does not ask is told by the guest
    assert awaited(path, f"{front}/error", "no room for another disk: all 3 places are taken")
    with pytest.raises(MachineError, match=r"error|read-only"):
        machine.guest(1).numbered(3).write(0, bytes(512))
    machine.detach_disk(1, "xvdb")
    assert awaited(path, f"{front}/state", "4")  # and has the room that comes
    machine.detach_disk(1, "xvde")
    machine.detach_disk(1, "xvdd")
    assert eventually_held(machine, before) == before


def test_a_disk_with_a_load_stays_unless_forced(machine: PluggedMachine) -> None:
    machine.attach_disk(1, "ram:4m")
    load = machine.load(LoadSpec(runtime_s=600), every_s=0.1)
    next(load)
    with pytest.raises(MachineError, match="guest 1's xvdb has a load: end that first"):
        machine.detach_disk(1, "xvdb")
    machine.detach_disk(1, "xvdb", force=True)
    before = next(load).frontend[1]["ios"].tolist()
    after = next(load).frontend[1]["ios"].tolist()
    assert after[0] > before[0] and after[1] == before[1]  # the other disk's goes on
    load.close()
    assert machine.attach_disk(1, "ram:2m").size == 2 << 20


def test_a_guest_that_does_not_answer_holds_nobody_up(
    machine: PluggedMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("toolstack.hotplug.PLUG_TIMEOUT_S", 0.5)
    born = held(machine)
    assert machine.attach_disk(2, "ram:1m").read(0, 512) == bytes(512)
    before = held(machine)
    os.kill(machine.pids["guest-2"], signal.SIGSTOP)
    try:
        line = "guest 2's xvdc is not Connected within 0.5 s: its frontend is Initialising, its b"
        with pytest.raises(MachineError, match=line):
            machine.attach_disk(2, "ram:1m")
        line = "guest 2's xvdb is not let go within 0.5 s: its frontend is Connected, its backend"
        with pytest.raises(MachineError, match=line):
            machine.detach_disk(2, "xvdb")
        assert [disk.vdev for disk in machine.guest(2).disks] == ["xvda", "xvdb"]
        machine.attach_disk(1, "ram:1m")  # the other guest's come and go meanwhile
        machine.detach_disk(1, "xvdb")
        machine.detach_disk(2, "xvdb", force=True)
        assert not machine._store.exists(frontend_path(2, XVDB))
        assert not machine._store.exists(backend_path(2, XVDB))
        handles = [block["grants_mapped"][0] for block in machine.snapshot().hypervisor.values()]
        assert handles == [1, 1]  # the rings of the disks that are left
    finally:
        os.kill(machine.pids["guest-2"], signal.SIGCONT)
    # It is to have seen that its xvdb was taken: else it may close the next of that name for it.
    assert eventually_held(machine, born) == born
    assert machine.attach_disk(2, "ram:1m").read(0, 512) == bytes(512)
    assert eventually_held(machine, before) == before


def test_the_dead_get_no_disks(machine: PluggedMachine) -> None:
    machine.attach_disk(2, "ram:1m")
    os.kill(machine.pids["guest-2"], signal.SIGKILL)
    with pytest.raises(GuestFailed, match="guest-2 was killed by SIGKILL"):
        machine.attach_disk(2, "ram:1m")
    with pytest.raises(GuestFailed, match="guest-2 was killed by SIGKILL"):
        machine.detach_disk(2, "xvdb")


def test_what_was_attached_outlives_dom0(machine: PluggedMachine) -> None:
    machine.attach_disk(1, "ram:1m").write(0, b"kept" * 128)
    os.kill(machine.pids["dom0"], signal.SIGKILL)
    assert machine.guest(1).disks[1].read(0, 512) == b"kept" * 128
    machine.detach_disk(1, "xvdb")
    assert [disk.vdev for disk in machine.guest(1).disks] == ["xvda"]


# --- by the store alone ---------------------------------------------------------------------------


def by_hand(path: str, *arguments: str) -> str:
    """A tool of Xen's, as a toolstack of somebody else's would be."""
    done = subprocess.run(
        arguments,
        env={**os.environ, "XENSTORED_PATH": path},
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    return done.stdout.strip()


def plug_by_hand(path: str, domid: int, device: int, target: str) -> None:
    """In an order of its own."""
    front, back = frontend_path(domid, device), backend_path(domid, device)
    pairs = {
        f"{back}/frontend": front,
        f"{back}/frontend-id": str(domid),
        f"{back}/params": target,
        f"{back}/mode": "w",
        f"{back}/online": "1",
        f"{back}/state": "1",
        f"{front}/backend-id": "0",
        f"{front}/virtual-device": str(device),
        f"{front}/state": "1",
        f"{front}/backend": back,
    }
    by_hand(path, "xenstore-write", front, "", back, "")
    by_hand(path, "xenstore-chmod", front, f"n{domid}", "r0")
    by_hand(path, "xenstore-chmod", back, "n0", f"r{domid}")
    by_hand(path, "xenstore-write", *(word for pair in pairs.items() for word in pair))


def awaited(path: str, node: str, value: str) -> bool:
    deadline = time.monotonic() + 20
    with XenStoreClient(path) as store:
        while store.read_or_none(node) != value.encode():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
    return True


def test_the_store_alone_plugs_a_disk_in_and_out(machine: PluggedMachine) -> None:
    path = machine.xenstore_path
    load = machine.load(LoadSpec(runtime_s=600, vdev="xvda"), every_s=0.2)
    for _ in range(5):
        next(load)
    before = held(machine)
    for _ in range(2):
        plug_by_hand(path, 1, XVDC, "ram:2m")
        assert awaited(path, f"{frontend_path(1, XVDC)}/state", "4")
        machine.follow()
        disk = machine.guest(1).numbered(2)
        assert (disk.vdev, disk.size) == ("xvdc", 2 << 20)
        disk.write(512, b"hand" * 128)
        assert disk.read(0, 1024) == bytes(512) + b"hand" * 128
        back = backend_path(1, XVDC)
        by_hand(path, "xenstore-write", f"{back}/online", "0", f"{back}/state", "5")
        assert awaited(path, f"{back}/state", "6")
        by_hand(path, "xenstore-rm", frontend_path(1, XVDC))
        by_hand(path, "xenstore-rm", back)
        machine.follow()
        assert [each.vdev for each in machine.guest(1).disks] == ["xvda"]
    assert eventually_held(machine, before) == before
    plug_by_hand(path, 1, XVDC, "ram:2m")  # and what was plugged in so is taken out as any
    assert awaited(path, f"{frontend_path(1, XVDC)}/state", "4")
    machine.detach_disk(1, "xvdc")
    assert eventually_held(machine, before) == before
    load.close()


def test_a_disk_that_is_gone_before_it_is_connected_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def plug_in_and_lose_one(store: XenStoreClient, disks: list[object]) -> None:
        plug_in(store, disks)  # type: ignore[arg-type]
        for path in (frontend_path(1, XVDB), backend_path(1, XVDB)):
            store.rm(path)

    monkeypatch.setattr("toolstack.machine.plug_in", plug_in_and_lose_one)
    with pytest.raises(GuestFailed, match="xvdb: it was gone before this guest was born"):
        Topology(guests=1, disks=["ram:1m", "ram:1m"], dom0_vcpus=1).start()


# --- a machine that stays -------------------------------------------------------------------------


@pytest.fixture
def staying(run_base: str) -> Iterator[None]:
    up(Topology(guests=1, disks=["ram:4m"], dom0_vcpus=1), "m", lambda _: None)
    yield
    if "m" in machine_names():
        attach("m").down()


def test_attach_ls_detach(staying: None, run_base: str) -> None:
    done = grantlab("attach", "m", "1", "ram:2m,vdev=xvdc", run_base=run_base)
    assert (done.stdout, done.stderr) == ("guest 1 has xvdc: ram:2m, 2097152 bytes\n", "")
    with attach("m") as machine:
        plug_by_hand(machine.xenstore_path, 1, XVDB, "ram:1m")
        assert awaited(machine.xenstore_path, f"{frontend_path(1, XVDB)}/state", "4")
        disks = [
            (disk["vdev"], disk["target"], disk["state"]) for disk in machine.status()["disks"]
        ]
        assert disks == [
            ("xvda", "ram:4m", "Connected"),
            ("xvdc", "ram:2m", "Connected"),
            ("xvdb", "ram:1m", "Connected"),
        ]
        plug_by_hand(machine.xenstore_path, 1, XVDE, "floppy:1")  # which nobody can begin
        (bad,) = (disk for disk in machine.status()["disks"] if disk["vdev"] == "xvde")
        assert (bad["target"], bad["state"], bad["size"]) == ("floppy:1", "Initialising", 0)
        machine.detach_disk(1, "xvde")
        assert len(machine.status()["disks"]) == 3
        *_, last = machine.load(LoadSpec(ios=500, vdev="xvdb"))
        assert last.frontend[1]["ios"].tolist()[:3] == [0, 500, 0]
        for words, status, line in (
            ("attach m 1 ram:1m,vdev=xvdb", 2, "disk: guest 1 has an xvdb already"),
            ("attach m 1 file:/none/such", 2, "disk: "),
            ("attach m x ram:1m", 2, "guest: 'x' is not a guest's number, as 1"),
            (
                "detach m 1 xvdp",
                2,
                "vdev: 'xvdp' is no disk of guest 1, which has xvda, xvdb, xvdc",
            ),
        ):
            done = grantlab(*words.split(), run_base=run_base)
            assert done.returncode == status
            assert done.stderr.startswith(f"grantlab: error: {line}")
            assert done.stderr.count("\n") == 1
        done = grantlab("detach", "m", "1", "xvdc", run_base=run_base)
        assert (done.stdout, done.stderr) == ("guest 1 has no xvdc any more\n", "")
        machine.detach_disk(1, "xvdb")
        assert [disk.vdev for disk in machine.guest(1).disks] == ["xvda"]
        machine.down()
    assert machine_names() == []
