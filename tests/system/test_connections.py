"""A disk's connections, one after the other: what an old one says is nothing to the new one.

Hypervisor and xenstored are processes; dom0's driver and the guest's are in this one, so that what
a ring's thread has to say can be kept back.
"""

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from backend.stores import RamStore
from common.atomics import store_release
from common.hypercall import Hypercalls
from common.machine_memory import MachineMemory, host_of
from common.ring import REQ
from common.xenbus import CLOSED, CLOSING, CONNECTED, INITIALISED
from common.xenstore import XenStoreClient
from machine.connection import BackendOptions
from machine.places import Places
from machine.plug import XVDA
from tests.dom0_disk import BackDisk
from tests.system.scripted import ScriptedGuest
from toolstack.birth import Builder
from toolstack.supervisor import Supervisor
from toolstack.topology import Topology
from toolstack.vbd_config import create_vbd

pytestmark = pytest.mark.system

REASON = "the frontend produced more requests than the ring holds"


class House:
    """A hypervisor and a store; domain 1 and dom0's disk for it are here."""

    def __init__(self) -> None:
        self.supervisor = Supervisor(print)
        self.supervisor.await_fork_server()
        path = f"{self.supervisor.run_dir}/xenstored"
        builder = Builder(Topology(guests=1, events="pipe", spin="off"), self.supervisor, path)
        self.guest = ScriptedGuest(builder, 1)
        self.store = XenStoreClient(path)
        self._hypercalls = Hypercalls(builder._dom0)
        memory = MachineMemory(self._hypercalls)
        self._host = host_of(memory.segment("host"))
        create_vbd(self.store, 1, "ram:1m")
        options = BackendOptions(True, 352, 1, False, False, 2, "pipe")
        self._places = Places(self._hypercalls, memory, self.supervisor.run_dir, options)
        place = self._places.take((1, XVDA))
        self.back = BackDisk(self.store, place, RamStore(2048), options)

    def connect(self) -> None:
        """The frontend publishes a fresh ring, and the backend connects to it."""
        self.back.settle()
        self.guest.publish(INITIALISED)
        self.back.settle()
        assert self.back.state == CONNECTED
        self.guest.say(CONNECTED)

    def break_ring(self) -> Callable[[], None]:
        """The frontend breaks it; what the ring's thread says."""
        store_release(self.guest.ram[:4096].view(np.uint32), REQ, np.uint32(1000))
        self.guest.channel.notify()
        return self.back.reports.get(timeout=10)

    def mapped(self) -> int:
        return int(self._host["hypervisor"]["grants_mapped"][0, 1])

    def close(self) -> None:
        self.back.close()
        self._places.close()
        self.guest.die()
        self.store.close()
        self.supervisor.close()


@pytest.fixture
def house() -> Iterator[House]:
    house = House()
    yield house
    house.close()


def test_a_broken_ring_closes_its_disk_once_its_thread_has_ended(house: House) -> None:
    house.connect()
    report = house.break_ring()
    assert house.back.state == CONNECTED  # nobody but the main thread closes it
    report()
    house.back.finish()
    assert house.back.state == CLOSING and house.mapped() == 0
    assert house.store.read(f"{house.back.path}/error") == REASON.encode()


def test_a_report_that_comes_late_does_not_close_the_next_connection(house: House) -> None:
    house.connect()
    late = house.break_ring()
    house.guest.say(CLOSED)  # the frontend is faster than the report
    house.back.reports.put(late)
    house.back.settle()
    assert house.back.state == CLOSED
    assert house.store.read_or_none(f"{house.back.path}/error") is None
    house.guest.say(1)
    house.back.settle()
    house.connect()
    late()  # told twice
    house.back.settle()
    assert house.back.state == CONNECTED and house.mapped() == 1
    assert house.store.read_or_none(f"{house.back.path}/error") is None
    house.break_ring()()  # its own is heeded
    house.back.finish()
    assert house.back.state == CLOSING


def test_a_report_to_a_disk_that_is_closed_is_nothing_to_it(house: House) -> None:
    house.connect()
    late = house.break_ring()
    house.guest.say(CLOSED)
    house.back.reports.put(late)
    house.back.settle()
    late()
    house.back.finish()
    assert house.back.state == CLOSED


def test_a_directory_that_is_gone_is_not_made_again(house: House) -> None:
    house.connect()
    house.store.rm(house.back.path)
    house.back.settle()
    assert house.mapped() == 0
    assert not house.back.finished  # its frontend is Connected still
    house.guest.say(CLOSED)
    house.back.settle()
    assert house.back.finished
    assert not house.store.exists(house.back.path)
