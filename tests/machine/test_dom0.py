"""dom0's loop in this process, on a real hypervisor and a real store with slow answers."""

import os
import shutil
import tempfile
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from common.abi import VDISK_READONLY
from common.atomics import store_release
from common.control import Control, control_pair
from common.machine_memory import stats_of
from common.memory import sealed_memory
from common.ring import REQ
from common.spinning import new_spin
from common.xenbus import CLOSED, CLOSING, CONNECTED, INIT_WAIT, backend_path, frontend_path
from common.xenstore import XenStoreClient
from common.xenstore_wire import MessageType, Packet
from frontend.frames import ram_frames
from machine.connection import BackendOptions
from machine.dom0 import Dom0, Dom0Config
from machine.front import guest_disks
from machine.front_disk import FrontDisk, Line
from machine.plug import XVDA
from tests.hypervisor.running import Running
from tests.machine.slow_store import SlowStore
from tests.patience import PATIENCE_S, eventually
from tests.xenstored.serving import Serving
from toolstack.vbd_config import create_vbd

COMPILES_S = 300.0


class House:
    """dom0 in a thread; domains 1 and 2. What is asked about domain 1 is answered when told to."""

    def __init__(self, run_dir: str) -> None:
        self.hypervisor = Running("pipe", nr_cpus=2)
        self._born = {
            domid: self.hypervisor.create(domid, ram_frames=ram_frames(1, 8)) for domid in (1, 2)
        }
        self._xenstored = Serving(run_dir)
        self.store = XenStoreClient(self._xenstored.path)
        self._guests = {domid: self._xenstored.guest(domid) for domid in (1, 2)}
        self.slow = SlowStore(f"{run_dir}/slow", self._xenstored.path, self._is_slow)
        self.control, its = control_pair()
        options = BackendOptions(True, 352, 1, False, False, 1, "pipe")
        config = Dom0Config(run_dir, f"{run_dir}/slow", options)
        self._thread = threading.Thread(
            target=lambda: Dom0(config, Control(its), self.hypervisor.dom0).serve(), daemon=True
        )
        self._thread.start()
        assert self.control.receive(COMPILES_S) == ["ok", None]
        self.control.send("begin")
        assert self.control.receive(COMPILES_S) == ["ok", None]

    @staticmethod
    def _is_slow(packet: Packet) -> bool:
        return packet.type == MessageType.READ and b"vbd/1/51712" in packet.payload

    def front(self, domid: int) -> FrontDisk:
        segments, spin = self._born[domid].segments, new_spin(adaptive=False)
        ram, grant, event = segments["ram"], segments["grant"], segments["event"]
        counters = stats_of(segments["stats"])["counters"][0]
        (domain,) = guest_disks(domid, ram, grant, event, counters, spin, buffer_frames=8)
        line = Line(self._born[domid].hypercalls, event, "pipe", "")
        return FrontDisk(self._guests[domid], domain, line, XVDA, True)

    def follow(self, front: FrontDisk, state: int) -> None:
        """Take every step until it is there."""
        eventually(lambda: (front.settle(), front.state == state)[1])

    def state(self, domid: int) -> bytes:
        return self.store.read(f"{backend_path(domid, XVDA)}/state")

    def exit(self) -> None:
        self.control.send("exit")
        assert self.control.receive(PATIENCE_S) == ["ok", None]
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()

    def close(self) -> None:
        if self._thread.is_alive():
            self.slow.hurry()
            self.exit()
        self.slow.close()
        for client in (*self._guests.values(), self.store):
            client.close()
        self.control.close()
        self._xenstored.stop()
        self.hypervisor.close()


@pytest.fixture
def house() -> Iterator[House]:
    run_dir = tempfile.mkdtemp(prefix="gl-", dir="/tmp")
    house = House(run_dir)
    yield house
    house.close()
    shutil.rmtree(run_dir)


def test_a_slow_answer_holds_up_its_own_disk_and_nobody_elses(house: House) -> None:
    create_vbd(house.store, 1, "ram:2m")
    eventually(lambda: house.slow.held)
    create_vbd(house.store, 2, "ram:2m")
    front = house.front(2)
    house.follow(front, CONNECTED)
    assert house.state(1) == b"1"
    front.detach()
    house.follow(front, CLOSED)
    house.slow.hurry()
    eventually(lambda: house.state(1) == b"%d" % INIT_WAIT)
    late = house.front(1)
    house.follow(late, CONNECTED)


def test_it_exits_while_an_answer_is_awaited_and_a_disk_is_connected(house: House) -> None:
    create_vbd(house.store, 2, "ram:2m")
    front = house.front(2)
    house.follow(front, CONNECTED)
    create_vbd(house.store, 1, "ram:2m")
    eventually(lambda: house.slow.held)
    house.exit()
    mapped = house.hypervisor.broker._hypervisor.domains.find(2)
    assert mapped is not None and mapped.mapped == 0
    assert house.store.exists(f"{frontend_path(2, XVDA)}/state")


def error_of(house: House) -> bytes | None:
    return house.store.read_or_none(f"{backend_path(2, XVDA)}/error")


def test_a_disks_memory_is_what_dom0_is_given_of_its_key(house: House) -> None:
    fd = sealed_memory("two", 4096)
    house.control.send("store", f"2/{XVDA}", descriptors=[fd])
    assert house.control.receive(PATIENCE_S) == ["ok", None]
    os.close(fd)
    create_vbd(house.store, 2, "ram:8k")
    eventually(lambda: error_of(house))
    assert b"store 2/51712 has 4096 bytes, and not 8192" in (error_of(house) or b"")
    house.store.write(f"{backend_path(2, XVDA)}/params", b"ram:4k")
    eventually(lambda: house.state(2) == b"%d" % INIT_WAIT)


def test_forgotten_memory_is_made_anew(house: House) -> None:
    fd = sealed_memory("two", 4096)
    house.control.send("store", f"2/{XVDA}", descriptors=[fd])
    house.control.send("forget-store", f"2/{XVDA}")
    for _ in range(2):
        assert house.control.receive(PATIENCE_S) == ["ok", None]
    os.close(fd)
    create_vbd(house.store, 2, "ram:8k")
    eventually(lambda: house.state(2) == b"%d" % INIT_WAIT)


def test_what_is_no_memory_for_a_disk_is_refused_and_dom0_goes_on(house: House) -> None:
    before = len(os.listdir("/proc/self/fd"))
    fd = os.memfd_create("open", os.MFD_ALLOW_SEALING)
    for descriptors, why in (
        ([], "store x: 0 descriptors are not one"),
        ([fd, fd], "store x: 2 descriptors are not one"),
        ([fd], "the memory of store x is not sealed"),
    ):
        house.control.send("store", "x", descriptors=descriptors)
        assert house.control.receive(PATIENCE_S) == ["error", why]
    os.close(fd)
    eventually(lambda: len(os.listdir("/proc/self/fd")) == before)


@pytest.mark.parametrize("read_only", [False, True])
def test_a_read_only_disk_says_so(house: House, read_only: bool) -> None:
    create_vbd(house.store, 2, "null:1g", read_only=read_only)
    front = house.front(2)
    house.follow(front, CONNECTED)
    assert front.disk is not None and front.disk.read_only == read_only
    info = house.store.read(f"{backend_path(2, XVDA)}/info")
    assert info == b"%d" % (VDISK_READONLY * read_only)


def test_one_thread_serves_the_disks_of_a_vcpu_and_one_of_them_may_break(house: House) -> None:
    create_vbd(house.store, 1, "ram:2m")
    create_vbd(house.store, 2, "ram:2m")
    house.slow.hurry()
    fronts = [house.front(domid) for domid in (1, 2)]
    for front in fronts:
        house.follow(front, CONNECTED)
    names = [thread.name for thread in threading.enumerate()]
    assert sorted(name for name in names if name.startswith("blkback-")) == ["blkback-0"]
    dev, channel = fronts[0].dev, fronts[0].channel
    assert dev is not None and channel is not None
    store_release(dev.words, REQ, np.uint32(1000))
    channel.notify()
    eventually(lambda: house.state(1) == b"%d" % CLOSING)
    assert house.state(2) == b"%d" % CONNECTED
    fronts[1].detach()
    house.follow(fronts[1], CLOSED)
    house.exit()
    assert not [t for t in threading.enumerate() if t.name.startswith("blkback-")]
