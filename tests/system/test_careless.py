"""A careless hand: what a user or a toolstack may write into the store of a running machine.

Whatever it is, nobody hangs and dom0 lives: who is hurt is the disk that was written to, which says
why, and everybody else goes on.
"""

import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.abi import BLKIF_OP_READ, XEN_PAGE_SIZE
from common.atomics import load_acquire, store_release
from common.blkif import put_request, put_segment
from common.machine_memory import host_of
from common.ring import REQ, RSP, new_half, slot
from common.u32 import u32_add
from common.xenbus import (
    CLOSED,
    CLOSING,
    CONNECTED,
    INIT_WAIT,
    INITIALISED,
    INITIALISING,
    backend_path,
    frontend_path,
)
from common.xenstore import XenStoreClient
from frontend.grants import grant_access
from frontend.vbd import BUFFER_FRAME, FrontendVbd
from tests.system.conftest import ROOT, environment
from tests.system.scripted import PATIENCE_S, ScriptedGuest, await_value, eventually
from toolstack.loadspec import LoadSpec
from toolstack.machine import GuestFailed, Machine, MachineError
from toolstack.topology import Topology
from toolstack.vbd_config import XVDA, create_vbd

pytestmark = pytest.mark.system

Harm = Callable[[XenStoreClient, int], None]


def write_front(value: bytes) -> Harm:
    return lambda store, domid: store.write(f"{frontend_path(domid, XVDA)}/state", value)


def write_back(value: bytes) -> Harm:
    return lambda store, domid: store.write(f"{backend_path(domid, XVDA)}/state", value)


def remove(*paths: Callable[[int, int], str]) -> Harm:
    def harm(store: XenStoreClient, domid: int) -> None:
        for path in paths:
            store.rm(path(domid, XVDA))

    return harm


def make_again(store: XenStoreClient, domid: int) -> None:
    """Another disk in the same place, at once."""
    store.rm(backend_path(domid, XVDA))
    write_backend(store, domid, params="ram:3")


def detach(store: XenStoreClient, domid: int) -> None:
    """As libxl does."""
    with store.transaction() as transaction:
        transaction.write(f"{backend_path(domid, XVDA)}/online", b"0")
        transaction.write(f"{backend_path(domid, XVDA)}/state", b"5")


def plug(domid: int, **changes: str | None) -> dict[str, str]:
    """What a backend's directory needs; changes: None for a key that is left out."""
    keys: dict[str, str | None] = {
        "frontend": frontend_path(domid, XVDA),
        "frontend-id": str(domid),
        "online": "1",
        "params": "ram:2",
        "mode": "w",
        "state": "1",
        **{key.replace("_", "-"): value for key, value in changes.items()},
    }
    return {key: value for key, value in keys.items() if value is not None}


def write_backend(store: XenStoreClient, domid: int, **changes: str | None) -> None:
    store.mkdir(backend_path(domid, XVDA))
    store.set_perms(backend_path(domid, XVDA), ["n0", f"r{domid}"])
    for key, value in plug(domid, **changes).items():
        store.write(f"{backend_path(domid, XVDA)}/{key}", value.encode())


def write_frontend(store: XenStoreClient, domid: int) -> None:
    """The frontend's directory, as the toolstack makes it: the guest's from then on."""
    front = frontend_path(domid, XVDA)
    store.mkdir(front)
    store.set_perms(front, [f"n{domid}", "r0"])
    for key, value in (("backend", backend_path(domid, XVDA)), ("backend-id", "0"), ("state", "1")):
        store.write(f"{front}/{key}", value.encode())


def connect(guest: ScriptedGuest, persistent: bool = True) -> FrontendVbd:
    """blkfront on a guest of ours, Connected."""
    vbd = guest.vbd(persistent)
    follow(guest, vbd, CONNECTED)
    return vbd


def follow(guest: ScriptedGuest, vbd: FrontendVbd, state: int) -> None:
    """Let blkfront follow its store until it is in `state`."""
    deadline = time.monotonic() + PATIENCE_S
    vbd.handle_store()
    while vbd.state != state:
        assert time.monotonic() < deadline, f"it stays in {vbd.state}"
        guest.store.wait_event(0.1)
        vbd.handle_store()


def mapped(machine: Machine, domid: int) -> int:
    """Pages of `domid` that dom0 has mapped."""
    return int(host_of(machine._memory.segment("host"))["hypervisor"]["grants_mapped"][0, domid])


@pytest.fixture
def machine() -> Iterator[Machine]:
    """One honest guest, whose disk works at the end as at the beginning; room for more domains."""
    with Topology(guests=1, disk_mib=4, events="pipe").start() as machine:
        machine.guest(1).disk.write(0, b"honest" * 256)
        yield machine
        assert machine.guest(1).disk.read(0, 1536) == b"honest" * 256
        machine._supervisor.check()  # dom0 lives, always
    assert machine.close_failure == ""


@pytest.fixture
def guest(machine: Machine) -> Iterator[ScriptedGuest]:
    """Domain 2, with a disk plugged in; the test is its frontend."""
    guest = ScriptedGuest(machine._builder, 2)
    create_vbd(machine._store, 2, 2)
    yield guest
    guest.die()


# --- (a) under load ---------------------------------------------------------------------------

HARMS: dict[str, Harm] = {
    "the frontend's state 5": write_front(b"5"),
    "the frontend's state 6": write_front(b"6"),
    "the frontend's state x": write_front(b"x"),
    "the frontend's state 99": write_front(b"99"),
    "the frontend's state empty": write_front(b""),
    "the frontend's directory removed": remove(frontend_path),
    "both directories removed": remove(frontend_path, backend_path),
    "the backend's directory removed": remove(backend_path),
    "the backend's state removed": lambda s, d: s.rm(f"{backend_path(d, XVDA)}/state"),
    "the backend's state 1": write_back(b"1"),
    "the backend's state 6": write_back(b"6"),
    "the backend's state x": write_back(b"x"),
    "made again with another size": make_again,
    "detached by the toolstack": detach,
}


@pytest.mark.parametrize("mode", ["persistent", "non-persistent"])
def test_a_disk_that_is_written_to_under_load_fails_its_io_and_the_others_go_on(mode: Any) -> None:
    guests = len(HARMS) + 1
    topology = Topology(guests=guests, disk_mib=4, buffer_mib=1).with_mode(mode)
    with topology.start() as machine:
        harmed = dict(enumerate(HARMS, 1))
        load = machine.load(LoadSpec(runtime_s=600, iodepth=4), every_s=0.1)
        before = next(load)
        while any(int(c["ios"][0]) < 50 for c in before.frontend.values()):
            before = next(load)
        for domid, name in harmed.items():
            HARMS[name](machine._store, domid)
        deadline = time.monotonic() + PATIENCE_S
        while len(machine.failures) < len(harmed):
            after = next(load)
            missing = {harmed[d] for d in harmed if f"guest-{d}" not in machine.failures}
            assert time.monotonic() < deadline, f"still running: {missing}"
        for domid in harmed:
            failure = machine.failures[f"guest-{domid}"]
            assert failure.startswith(f"domain {domid}: xvda: "), failure
            assert "I/Os in flight have failed" in failure
        at = after.frontend[guests]["ios"][0]
        while (after := next(load)).frontend[guests]["ios"][0] <= at:
            assert time.monotonic() < deadline, "the others' load does not go on"
        load.close()
        assert set(machine.failures) == {f"guest-{domid}" for domid in harmed}
        for domid in harmed:
            with pytest.raises(GuestFailed, match=rf"domain {domid}: xvda: not Connected"):
                machine.guest(domid).disk.read(0, 512)
        for domid in range(1, guests):  # told to disconnect, it does not hang
            assert machine.ask(f"guest-{domid}", "disconnect") == 0
    assert machine.close_failure == "" and machine.closed is not None
    for domid in range(1, guests + 1):
        counted = machine.closed.frontend[domid]
        assert machine.closed.hypervisor[domid]["grants_mapped"][0] == 0, harmed.get(domid)
        assert counted["grants_issued"][0] == counted["grants_ended"][0], harmed.get(domid)
        assert counted["verify_errors"][0] == 0
    assert machine.closed.frontend[guests]["io_errors"][0] == 0


def test_a_load_ends_with_guest_failed_once_the_others_are_done() -> None:
    with Topology(guests=2, disk_mib=4).start() as machine:
        load = machine.load(LoadSpec(runtime_s=3), every_s=0.1)
        next(load)
        write_front(b"5")(machine._store, 1)
        with pytest.raises(GuestFailed, match="domain 1: xvda: ") as failed:
            for _ in load:
                pass
        assert "domain 2" not in str(failed.value)
        assert machine.guest(2).disk.read(0, 512)


class Run:
    """`./run.sh` with two guests, both Connected."""

    def __init__(self, run_base: str, runtime: int) -> None:
        flags = ("--guests", "2", "--persistent", "--disk-mib", "4", "--runtime", str(runtime))
        self.process = subprocess.Popen(
            ["./run.sh", *flags],
            cwd=ROOT,
            env=environment(run_base),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        found: list[Path] = []
        deadline = time.monotonic() + 300  # it may have to compile
        while not (found := list(Path(run_base).glob("grantlab-*/xenstored"))):
            assert time.monotonic() < deadline and self.process.poll() is None
            time.sleep(0.1)
        self.store = XenStoreClient(str(found[0]))
        for domid in (1, 2):
            await_value(self.store, f"{frontend_path(domid, XVDA)}/state", b"4")

    def end(self) -> tuple[int, str]:
        """Its exit status and what it said on stderr."""
        _, err = self.process.communicate(timeout=60)
        self.store.close()
        assert "Traceback" not in err
        return self.process.returncode, err


def test_a_run_names_the_disk_and_ends_with_1(run_base: str) -> None:
    run = Run(run_base, runtime=3)
    time.sleep(1)  # into its load; before it, the same is said
    run.store.rm(frontend_path(1, XVDA))
    status, err = run.end()
    assert status == 1
    assert "domain 1: xvda: " in err and "domain 2" not in err


@pytest.mark.parametrize("name", ["both directories removed", "detached by the toolstack"])
def test_ctrl_c_ends_a_run_whose_disks_are_all_gone(run_base: str, name: str) -> None:
    run = Run(run_base, runtime=600)
    time.sleep(1)
    HARMS[name](run.store, 1)
    time.sleep(0.5)
    run.process.send_signal(signal.SIGINT)
    status, _ = run.end()
    assert status == 130


# --- (b) what a backend's directory may say ---------------------------------------------------

WRONG: dict[str, tuple[dict[str, str | None], str]] = {
    "no store": ({"params": "foo"}, "params b'foo' name no store: 'ram:MIB' does"),
    "a path": ({"params": "/dev/ram0"}, "params b'/dev/ram0' name no store: 'ram:MIB' does"),
    "nothing": ({"params": ""}, "params b'' name no store: 'ram:MIB' does"),
    "no size": ({"params": "ram:"}, "params b'ram:' have no size in MiB of at least 1"),
    "size 0": ({"params": "ram:0"}, "params b'ram:0' have no size in MiB of at least 1"),
    "negative": ({"params": "ram:-1"}, "params b'ram:-1' have no size in MiB of at least 1"),
    "words": ({"params": "ram:ten"}, "params b'ram:ten' have no size in MiB of at least 1"),
    "1e12": (
        {"params": "ram:1000000000000"},
        "params b'ram:1000000000000': no such ramdisk can be had: Cannot allocate memory",
    ),
    "more than there is": (
        {"params": "ram:9999999999999999999999"},
        "params b'ram:9999999999999999999999' have no size in MiB of at least 1",
    ),
    "another's directory": (
        {"frontend": frontend_path(1, XVDA)},
        "frontend b'/local/domain/1/device/vbd/51712' is not '/local/domain/2/device/vbd/51712'",
    ),
    "nonsense": (
        {"frontend": "../../x y\0z"},
        "frontend b'../../x y\\x00z' is not '/local/domain/2/device/vbd/51712'",
    ),
    "no path": ({"frontend": ""}, "frontend b'' is not '/local/domain/2/device/vbd/51712'"),
    "another's id": ({"frontend_id": "1"}, "frontend-id b'1' is not '2'"),
    "no id": ({"frontend_id": "two"}, "frontend-id b'two' is not '2'"),
    "read-only": ({"mode": "r"}, "mode b'r' is not served: only 'w'"),
}


def test_what_is_wrong_is_said_in_the_error_node_until_it_is_mended(machine: Machine) -> None:
    store, back = machine._store, backend_path(2, XVDA)
    guest = ScriptedGuest(machine._builder, 2)
    for what, (wrong, said) in WRONG.items():
        write_backend(store, 2, **wrong)
        await_value(store, f"{back}/error", said.encode())
        assert store.read(f"{back}/state") == b"1", what
        store.rm(back)
    write_backend(store, 2, params="foo")
    await_value(store, f"{back}/error", WRONG["no store"][1].encode())
    write_frontend(store, 2)
    store.write(f"{back}/params", b"ram:2")
    vbd = connect(guest)
    await_value(store, f"{back}/error", None)
    assert vbd.disk is not None and vbd.disk.nr_sectors == 2 * 2048
    vbd.detach()
    follow(guest, vbd, CLOSED)
    guest.die()


@pytest.mark.parametrize("order", ["state first", "state last", "backwards", "one is late"])
def test_a_directory_may_be_written_key_by_key_in_any_order(machine: Machine, order: str) -> None:
    store, back = machine._store, backend_path(2, XVDA)
    guest = ScriptedGuest(machine._builder, 2)
    write_frontend(store, 2)
    store.mkdir(back)
    store.set_perms(back, ["n0", "r2"])
    vbd = guest.vbd()
    keys = list(plug(2).items())
    if order == "state first":
        keys = keys[::-1]
    elif order == "backwards":
        keys = [*keys[4::-1], keys[5]]
    elif order == "one is late":
        keys = [keys[-1], *keys[:-1]]
    for number, (key, value) in enumerate(keys):
        assert store.read_or_none(f"{back}/state") in (None, b"1"), f"begun without {key}"
        store.write(f"{back}/{key}", value.encode())
        if number < len(keys) - 1:
            time.sleep(0.02)  # let dom0 look
    follow(guest, vbd, CONNECTED)
    assert store.read_or_none(f"{back}/error") is None
    vbd.detach()
    follow(guest, vbd, CLOSED)
    guest.die()


@pytest.mark.parametrize("missing", list(plug(2)))
def test_what_is_missing_is_waited_for(
    machine: Machine, guest: ScriptedGuest, missing: str
) -> None:
    store = machine._store
    guest.await_backend(INIT_WAIT)
    store.rm(guest.back)
    write_backend(store, 2, **{missing.replace("-", "_"): None})
    for _ in range(20):  # events enough for it to look; it must not begin
        store.write(f"{guest.back}/hotplug-status", b"connected")
        time.sleep(0.01)
    assert store.read_or_none(f"{guest.back}/state") == (None if missing == "state" else b"1")
    assert store.read_or_none(f"{guest.back}/error") is None
    store.write(f"{guest.back}/{missing}", plug(2)[missing].encode())
    guest.await_backend(INIT_WAIT)


def test_a_domain_that_does_not_exist_is_said_to_be_none(machine: Machine) -> None:
    store, front = machine._store, frontend_path(40, XVDA)
    write_backend(store, 40)
    write_frontend(store, 40)
    await_value(store, f"{backend_path(40, XVDA)}/state", b"2")
    for key in ("ring-ref", "event-channel"):
        store.write(f"{front}/{key}", b"8")
    store.write(f"{front}/protocol", b"x86_64-abi")
    store.write(f"{front}/state", b"3")
    eventually(
        lambda: store.read_or_none(f"{backend_path(40, XVDA)}/error"), "the error of domain 40"
    )
    assert b"of domain 40" in store.read(f"{backend_path(40, XVDA)}/error")
    assert store.read(f"{backend_path(40, XVDA)}/state") == b"5"


@pytest.mark.parametrize(
    "name", ["0/51712", "65535/51712", "32752/1", "x/51712", "2/x", "02/51712", "2/051712", "2/-1"]
)
def test_names_that_are_no_disks_are_nobodys(machine: Machine, name: str) -> None:
    path = f"/local/domain/0/backend/vbd/{name}"
    for key, value in plug(2).items():
        machine._store.write(f"{path}/{key}", value.encode())
    assert machine.guest(1).disk.read(0, 512)
    assert machine._store.read(f"{path}/state") == b"1"


def test_a_disk_made_again_begins_once_its_frontend_has_let_go(
    machine: Machine, guest: ScriptedGuest
) -> None:
    """Removed and made again at once, with another size, while connected."""
    store = machine._store
    vbd = connect(guest)
    guest.disk(vbd).write(0, b"old!" * 1024)
    make_again(store, 2)
    await_value(
        store,
        f"{guest.back}/error",
        b"the frontend has not let go of the disk that was here before",
    )
    assert mapped(machine, 2) == 0
    follow(guest, vbd, CLOSED)
    assert guest.permitted() == 0
    guest.await_backend(CLOSED)
    guest.say(INITIALISING)
    again = connect(guest)
    assert again.disk is not None and again.disk.nr_sectors == 3 * 2048
    assert guest.disk(again).read(0, 4096) == bytes(4096)
    await_value(store, f"{guest.back}/error", None)
    again.detach()
    follow(guest, again, CLOSED)


def test_a_size_that_changes_before_anything_was_promised_is_the_one_that_counts(
    machine: Machine,
) -> None:
    store = machine._store
    guest = ScriptedGuest(machine._builder, 2)
    write_backend(store, 2, params="ram:2")
    store.rm(backend_path(2, XVDA))
    write_backend(store, 2, params="ram:5")
    store.write(f"{backend_path(2, XVDA)}/params", b"ram:7")
    write_frontend(store, 2)
    vbd = connect(guest)
    assert vbd.disk is not None and vbd.disk.nr_sectors == 7 * 2048
    vbd.detach()
    follow(guest, vbd, CLOSED)
    guest.die()


def test_ten_thousand_directories_cost_the_others_nothing_but_turns(machine: Machine) -> None:
    store = machine._store
    for device in range(10_000):
        store.write(f"/local/domain/0/backend/vbd/5/{device}/state", b"1")
    guest = ScriptedGuest(machine._builder, 2)
    create_vbd(store, 2, 2)
    vbd = connect(guest)
    vbd.detach()
    follow(guest, vbd, CLOSED)
    guest.die()
    store.rm("/local/domain/0/backend/vbd/5")


# --- (c) detached by the toolstack ------------------------------------------------------------


@pytest.mark.parametrize("persistent", [True, False])
def test_a_toolstack_detaches_an_idle_disk_with_warm_grants(
    machine: Machine, guest: ScriptedGuest, persistent: bool
) -> None:
    vbd = connect(guest, persistent)
    disk = guest.disk(vbd)
    disk.write_many(np.arange(8) * 65536, np.ones((8, 44 * 1024), np.uint8))
    assert mapped(machine, 2) == (1 + 88 if persistent else 1)
    detach(machine._store, 2)
    follow(guest, vbd, CLOSED)
    # Refused at first, as dom0 unmaps when it sees this end Closed; tried again until it is ended.
    eventually(lambda: (vbd.handle_store(), vbd.stuck_grants == 0)[1], "every grant ended")
    assert guest.permitted() == 0
    assert mapped(machine, 2) == 0
    guest.await_backend(CLOSED)
    assert guest.store.read(f"{guest.front}/state") == b"6"
    assert guest.counters["grants_issued"][0] == guest.counters["grants_ended"][0]


def test_a_guest_tries_again_by_itself_with_nothing_else_to_do() -> None:
    """Its process, idle and warm: no command comes to remind it."""
    with Topology(guests=1, disk_mib=4).start() as machine:
        machine.guest(1).disk.write_many([0, 65536], np.ones((2, 44 * 1024), np.uint8))
        assert mapped(machine, 1) == 1 + 22
        detach(machine._store, 1)
        await_value(machine._store, f"{backend_path(1, XVDA)}/state", b"6")
        assert machine._store.read(f"{frontend_path(1, XVDA)}/state") == b"6"
        assert mapped(machine, 1) == 0

        def all_ended() -> bool:
            counted = machine.snapshot().frontend[1]
            return bool(counted["grants_issued"][0] == counted["grants_ended"][0])

        eventually(all_ended, "every grant ended")
        with pytest.raises(MachineError, match="domain 1: xvda: not Connected but Closed"):
            machine.guest(1).disk.read(0, 512)
        assert machine.ask("guest-1", "disconnect") == 0


# --- (d), (e), (f) other frontends ------------------------------------------------------------


@pytest.mark.parametrize("before", [None, INIT_WAIT])
def test_a_frontend_that_writes_4_and_never_3_is_connected(machine: Machine, before: Any) -> None:
    """MirageOS and mini-os; before the backend looks, and after it has."""
    store = machine._store
    guest = ScriptedGuest(machine._builder, 2)
    write_frontend(store, 2)
    if before is None:
        guest.publish(CONNECTED)
        write_backend(store, 2)
    else:
        write_backend(store, 2)
        guest.await_backend(before)
        guest.publish(CONNECTED)
    guest.await_backend(CONNECTED)
    assert mapped(machine, 2) == 1
    assert store.read(f"{guest.back}/sectors") == b"4096"
    guest.say(CLOSING)
    guest.await_backend(CLOSING)
    guest.say(CLOSED)
    guest.await_backend(CLOSED)
    assert mapped(machine, 2) == 0
    guest.die()


@pytest.mark.parametrize("waits", [True, False])
def test_a_frontend_that_closes_before_it_ever_connected_may_come_back(
    machine: Machine, guest: ScriptedGuest, waits: bool
) -> None:
    """Windows walks a device through 5 and 6 first."""
    for state in (CLOSING, CLOSED):
        guest.say(state)
        if waits:
            guest.await_backend(state)
    guest.say(INITIALISING)
    guest.await_backend(INIT_WAIT)
    guest.publish(INITIALISED)
    guest.await_backend(CONNECTED)
    guest.say(CONNECTED)
    assert mapped(machine, 2) == 1


@pytest.mark.parametrize(
    ("protocol", "said"),
    [
        (None, b"protocol x86_32-abi (no `protocol` key) is not served: only x86_64-abi"),
        ("x86_32-abi", b"protocol b'x86_32-abi' is not 'x86_64-abi'"),
    ],
)
def test_without_a_protocol_it_is_x86_32_which_is_not_served_yet(
    machine: Machine, guest: ScriptedGuest, protocol: str | None, said: bytes
) -> None:
    guest.await_backend(INIT_WAIT)
    guest.publish(INITIALISED, protocol=protocol)
    guest.await_backend(CLOSING)
    assert machine._store.read(f"{guest.back}/error") == said
    assert mapped(machine, 2) == 0
    guest.say(CLOSED)
    guest.await_backend(CLOSED)
    guest.say(INITIALISING)
    guest.await_backend(INIT_WAIT)
    guest.publish(INITIALISED)
    guest.await_backend(CONNECTED)
    await_value(machine._store, f"{guest.back}/error", None)


# --- one guest's storm ------------------------------------------------------------------------


class FullRing:
    """A frontend that keeps its ring full, and never asks to be notified."""

    def __init__(self, guest: ScriptedGuest) -> None:
        self.words = guest.ram[:XEN_PAGE_SIZE].view(np.uint32)
        self._qwords = guest.ram[:XEN_PAGE_SIZE].view(np.uint64)
        self._half = new_half(32, 0)
        self._gref = grant_access(guest.grants, 0, BUFFER_FRAME, False)
        self._running = True
        self._thread = threading.Thread(target=self._keep_full)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._running = False
        self._thread.join()

    def _keep_full(self) -> None:
        produced = 0
        store_release(self.words, RSP + 1, np.uint32(1 << 31))  # rsp_event: notify us never
        while self._running:
            answered = int(load_acquire(self.words, RSP))
            while (produced - answered) & 0xFFFFFFFF < 32:
                at = slot(self._half, np.uint32(produced))
                put_request(self._qwords, at, BLKIF_OP_READ, 1, 0, produced & 31, 0)
                put_segment(self._qwords, at, 0, int(self._gref), 0, 7)
                produced = int(u32_add(np.uint32(produced), 1))
            store_release(self.words, REQ, np.uint32(produced))


@pytest.mark.parametrize("spin", ["off", "adaptive"])
def test_a_ring_that_is_kept_full_is_closed_like_any_other(spin: Any) -> None:
    with Topology(guests=1, disk_mib=4, events="pipe", spin=spin).start() as machine:
        guest = ScriptedGuest(machine._builder, 2)
        create_vbd(machine._store, 2, 2)
        guest.await_backend(INIT_WAIT)
        guest.publish(INITIALISED)
        full = FullRing(guest)
        full.start()
        guest.await_backend(CONNECTED)
        at = int(machine.snapshot().hypervisor[1]["map_ops"][0])
        eventually(lambda: int(load_acquire(full.words, RSP)) > 200, "requests served")
        guest.say(CLOSING)
        guest.await_backend(CLOSING)
        assert mapped(machine, 2) == 0
        full.stop()
        guest.say(CLOSED)
        guest.await_backend(CLOSED)
        assert machine.guest(1).disk.read(0, 512) and at >= 0
        guest.die()


def test_one_guests_storm_costs_the_others_no_handshake(
    machine: Machine, guest: ScriptedGuest
) -> None:
    """Events as fast as one can write them, connections that come and go, beside honest ones."""
    stormy = True

    def storm() -> None:
        while stormy:
            for state in (5, 6, 1, 3, 99, 4, 1):
                guest.say(state)

    thread = threading.Thread(target=storm)
    thread.start()
    try:
        for domid in range(3, 8):
            honest = ScriptedGuest(machine._builder, domid)
            create_vbd(machine._store, domid, 2)
            vbd = connect(honest)
            honest.disk(vbd).write(0, bytes(4096))
            vbd.detach()
            follow(honest, vbd, CLOSED)
            assert honest.permitted() == 0
            honest.die()
    finally:
        stormy = False
        thread.join()
