"""A slot is emptied once for each unmap, by the worker or by its driver, whatever the gate says."""

import os
import select
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from backend import worker
from backend.foreign_memory import Balloon, map_granted
from backend.ring_thread import RingThread
from common import abi
from common.atomics import store_release
from common.hypercall import GATE_KICK, HYPERCALL, MESSAGE_MAX, Hypercalls
from common.hypercall_gate import ASLEEP, TAKEN, Gate, gate_bytes, header_of, new_gate, no_gate
from common.ring import RSP
from common.spinning import new_spin
from hypervisor.gate_server import GateServer
from tests.pair import OKAY, PORT, READ, Pair, Raw

FRAME, STRANGER = 1, 2


class Dom0:
    """A pair whose slots are real addresses, and the hypervisor's two doors, both served."""

    def __init__(self) -> None:
        self.pair = Pair("non-persistent")
        self.balloon = Balloon(len(self.pair.back.page_table))
        self.pair.back.back["balloon"] = self.balloon.address
        self.ram_fd = os.memfd_create("ram")
        for frame in range(3):
            os.write(self.ram_fd, bytes([frame]) * abi.XEN_PAGE_SIZE)
        gate = np.zeros(gate_bytes(1), np.uint8)
        self.gate = new_gate(gate, 0)
        self.server = GateServer(self.pair.hypervisor, gate, 1)
        ours, self.socket = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.hypercalls, none = Hypercalls(ours), cast(Any, None)
        args = (self.pair.store, none, self.hypercalls, none, self.gate, -1, none, none)
        self.hands = RingThread(self.pair.back, *args)
        self.hands._cursor = self.pair.cursor
        self.pair.spin = new_spin(adaptive=True)
        self.pair.spin["limit_ns"] = 10**10

    def work(self, gate: Gate) -> int:
        pair = self.pair
        args = (*pair.front_events, PORT, pair.spin, 1, gate, -1)
        return int(worker.work(pair.back, pair.cursor, *args))

    def put(self, frame: int) -> None:
        """Map `frame` where the request's page was mapped."""
        op = np.zeros(1, abi.GNTTAB_MAP_GRANT_REF)
        op["host_addr"], op["dev_bus_addr"] = self.slot, frame * abi.XEN_PAGE_SIZE
        op["flags"] = abi.GNTMAP_HOST_MAP
        assert map_granted(self.ram_fd, op, 1) == 0

    @property
    def slot(self) -> int:
        return int(self.pair.back.unmap_ops["host_addr"][0])

    def is_empty(self) -> bool:
        for line in Path("/proc/self/maps").read_text().splitlines():
            span, mode = line.split()[:2]
            low, high = (int(end, 16) for end in span.split("-"))
            if low <= self.slot < high:
                return mode == "---p"
        raise AssertionError("the slot is no longer set aside")

    @contextmanager
    def hypervisor(self) -> Iterator[None]:
        """Messages are answered, and a kick makes the posted call."""
        ends = threading.Event()

        def answer() -> None:
            while not ends.is_set():
                if not select.select([self.socket], [], [], 0.01)[0]:
                    continue
                message = bytearray(self.socket.recv(MESSAGE_MAX))
                header = np.frombuffer(message, HYPERCALL, count=1)
                number, cmd = int(header["number"][0]), int(header["cmd"][0])
                if number == GATE_KICK:
                    self.server.make_call(0, False)
                else:
                    payload = message[HYPERCALL.itemsize :]
                    header["rc"] = self.pair.hypervisor.hypercall(0, 0, number, cmd, payload, False)
                    message[HYPERCALL.itemsize :] = payload
                self.socket.send(message)

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            yield
        finally:
            ends.set()
            thread.join()

    def close(self) -> None:
        self.hypercalls.close()
        self.socket.close()
        self.balloon.close()
        os.close(self.ram_fd)


@pytest.fixture
def dom0() -> Iterator[Dom0]:
    """One page of one request is mapped, and is in its slot; the unmap comes next."""
    made = Dom0()
    pair = made.pair
    pair.push_raw(Raw([(pair.grant(pair.buffer_frame), 0, 7)], READ))
    assert made.work(no_gate()) == worker.MAP
    pair.map_pages()
    pair.back.unmap_ops["host_addr"][0] = pair.back.map_ops["host_addr"][0]
    made.put(FRAME)
    yield made
    made.close()


@pytest.mark.parametrize("gate_is", ["taken", "asleep"])
def test_what_the_worker_has_emptied_its_driver_does_not_empty_again(
    dom0: Dom0, gate_is: str
) -> None:
    words = dom0.gate.words
    if gate_is == "taken":
        store_release(words, int(header_of(0)) + TAKEN, 1)
    else:
        store_release(words, ASLEEP, 1)
    assert dom0.work(dom0.gate) == worker.UNMAP
    assert dom0.is_empty()
    dom0.put(STRANGER)
    with dom0.hypervisor():
        dom0.hands._unmap()
    assert not dom0.is_empty()
    slot = (dom0.slot - dom0.balloon.address) // abi.XEN_PAGE_SIZE
    assert (dom0.balloon.view(slot) == STRANGER).all()
    finished(dom0)


def test_without_a_gate_the_driver_empties(dom0: Dom0) -> None:
    assert dom0.work(no_gate()) == worker.UNMAP
    assert not dom0.is_empty()
    with dom0.hypervisor():
        dom0.hands._unmap()
    assert dom0.is_empty()
    finished(dom0)


def test_a_call_made_through_the_gate_leaves_nothing_to_the_driver(dom0: Dom0) -> None:
    ends = threading.Event()

    def serve() -> None:
        while not ends.is_set():
            dom0.server.make_call(0, False)

    serving = threading.Thread(target=serve)
    serving.start()
    try:
        assert dom0.work(dom0.gate) == worker.WAKE
    finally:
        ends.set()
        serving.join()
    assert dom0.is_empty()
    finished(dom0)


def finished(dom0: Dom0) -> None:
    """The request is answered, nothing is mapped, and the next unmap is a new one."""
    pair = dom0.pair
    if int(pair.back.back["unmap_ops"][0]):
        assert dom0.work(no_gate()) == worker.WAKE
    assert pair.responses[0].item() == (0, READ, OKAY)
    assert pair.back.words[RSP] == 1
    assert pair.counts()["grants_mapped"] == 0
    assert pair.cursor[0].item() == (worker.GATHER, 0, 0)
