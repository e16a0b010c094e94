"""A careless hand: disks that are detached, and frontends that are not Linux's.

Whatever it is, nobody hangs and dom0 lives: who is hurt is the disk that was written to, which says
why, and everybody else goes on.
"""

import threading
import time
from typing import Any

import numpy as np
import pytest

from common.abi import BLKIF_OP_READ, XEN_PAGE_SIZE
from common.arena import Arena
from common.atomics import load_acquire, store_release
from common.blkif import put_request, put_segment
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
from frontend.frames import disk_frames
from frontend.grants import grant_access
from machine.plug import XVDA
from tests.patience import eventually
from tests.system.scripted import (
    ScriptedGuest,
    await_value,
    connect,
    detach,
    follow,
    mapped,
    write_backend,
    write_frontend,
)
from toolstack.machine import Machine, MachineError
from toolstack.topology import Topology
from toolstack.vbd_config import create_vbd, take_offline

pytestmark = pytest.mark.system

# --- (c) detached by the toolstack ------------------------------------------------------------


@pytest.mark.parametrize("persistent", [True, False])
def test_a_toolstack_detaches_an_idle_disk_with_warm_grants(
    machine: Machine, guest: ScriptedGuest, persistent: bool
) -> None:
    vbd = connect(guest, persistent)
    disk = guest.disk(vbd)
    disk.write(0, bytes(44 * 1024))
    assert mapped(machine, 2) == (1 + 11 if persistent else 1)
    detach(machine._store, 2)
    follow(guest, vbd, CLOSED)
    # Refused at first, as dom0 unmaps when it sees this end Closed; tried again until it is ended.
    eventually(lambda: (vbd.settle(), vbd.stuck_grants == 0)[1], "every grant ended")
    assert guest.permitted() == 0
    assert mapped(machine, 2) == 0
    guest.await_backend(CLOSED)
    assert guest.store.read(f"{guest.front}/state") == b"6"
    assert guest.counters["grants_issued"][0] == guest.counters["grants_ended"][0]


@pytest.mark.parametrize("removed", [False, True])
def test_a_guest_tries_again_by_itself_with_nothing_else_to_do(removed: bool) -> None:
    """Its process, idle and warm: no command comes to remind it, and where the directories are
    removed no event either, as dom0 unmaps and has nothing to write that to."""
    with Topology(guests=1, disk_mib=4).start() as machine:
        machine.guest(1).disk.write(0, bytes(44 * 1024))
        assert mapped(machine, 1) == 1 + 11
        if removed:
            machine._store.rm(backend_path(1, XVDA))
            machine._store.rm(frontend_path(1, XVDA))
        else:
            detach(machine._store, 1)
            await_value(machine._store, f"{backend_path(1, XVDA)}/state", b"6")
            assert machine._store.read(f"{frontend_path(1, XVDA)}/state") == b"6"
        eventually(lambda: mapped(machine, 1) == 0, "nothing mapped")

        def all_ended() -> bool:
            counted = machine.snapshot().frontend[1]
            return bool(counted["grants_issued"][0] == counted["grants_ended"][0])

        eventually(all_ended, "every grant ended")
        how = " but Closed|: there is no such disk" if removed else " but Closed"  # soon, it goes
        with pytest.raises(MachineError, match=f"domain 1: xvda: not Connected({how})"):
            machine.guest(1).disk.read(0, 512)
        assert machine.ask("guest-1", "disconnect") == 0
        if removed:
            take_offline(machine._store, 1)
            assert not machine._store.exists(backend_path(1, XVDA))
            assert not machine._store.exists(frontend_path(1, XVDA))


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
        self._channel = guest.channel
        self.words = guest.ram[:XEN_PAGE_SIZE].view(np.uint32)
        self._qwords = guest.ram[:XEN_PAGE_SIZE].view(np.uint64)
        self._half = new_half(Arena(), 32)
        self._gref = grant_access(guest.grants, 0, disk_frames(0, 0).buffers, False)
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
            self._channel.notify()
            time.sleep(1e-4)  # a ring takes longer than that; who serves it needs a CPU, too


@pytest.mark.parametrize("spin", ["off", "adaptive"])
def test_a_ring_that_is_kept_full_is_closed_like_any_other(spin: Any) -> None:
    with Topology(guests=1, disk_mib=4, events="pipe", spin=spin).start() as machine:
        guest = ScriptedGuest(machine._builder, 2)
        create_vbd(machine._store, 2, "ram:2m")
        guest.await_backend(INIT_WAIT)
        guest.publish(INITIALISED)
        full = FullRing(guest)
        full.start()
        guest.await_backend(CONNECTED)
        eventually(lambda: int(load_acquire(full.words, RSP)) > 64, "requests served")
        guest.say(CLOSING)
        guest.await_backend(CLOSING)
        assert mapped(machine, 2) == 0
        full.stop()
        guest.say(CLOSED)
        guest.await_backend(CLOSED)
        assert machine.guest(1).disk.read(0, 512)
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
            create_vbd(machine._store, domid, "ram:2m")
            vbd = connect(honest)
            honest.disk(vbd).write(0, bytes(4096))
            vbd.detach()
            follow(honest, vbd, CLOSED)
            assert honest.permitted() == 0
            honest.die()
    finally:
        stormy = False
        thread.join()
