"""dom0's loop in this process, on a real hypervisor and a real store with slow answers."""

import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from common.control import Control, control_pair
from common.machine_memory import stats_of
from common.spinning import new_spin
from common.xenbus import CLOSED, CONNECTED, INIT_WAIT, backend_path, frontend_path
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
from tests.xenstored.serving import Serving
from toolstack.vbd_config import create_vbd

PATIENCE_S = 60.0


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
        options = BackendOptions(True, 352, 1, False, False, 2, "pipe")
        config = Dom0Config(run_dir, f"{run_dir}/slow", options)
        self._thread = threading.Thread(
            target=lambda: Dom0(config, Control(its), self.hypervisor.dom0).serve(), daemon=True
        )
        self._thread.start()
        assert self.control.receive(PATIENCE_S) == ["ok", None]

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


def eventually(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.005)


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
