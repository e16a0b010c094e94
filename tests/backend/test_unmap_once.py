"""A slot is emptied once for each unmap, before the hypercall, whoever makes that."""

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

from backend import steps, worker
from backend.foreign_memory import Balloon, map_granted
from backend.ring_hands import RingHands
from common import abi, effects
from common.atomics import store_release
from common.hypercall import GATE_KICK, HYPERCALL, MESSAGE_MAX, Hypercalls
from common.hypercall_gate import ASLEEP, TAKEN, gate_bytes, header_of, new_gate
from common.ring import RSP
from common.steps import STEP
from hypervisor.gate_server import GateServer
from machine.back import mapped
from tests.pair import OKAY, READ, Pair, Raw

STRANGER = 2  # a frame, and the bytes in it
READ_BYTE = 0x33


class Dom0:
    """A pair whose slots are real addresses, and the hypervisor's two doors, both served."""

    def __init__(self) -> None:
        self.pair = Pair("non-persistent")
        self.balloon = Balloon(len(self.pair.back.page_table))
        self.ram_fd = os.memfd_create("ram")
        os.truncate(self.ram_fd, len(self.pair.ram))
        os.pwrite(self.ram_fd, bytes([STRANGER]) * abi.XEN_PAGE_SIZE, STRANGER * abi.XEN_PAGE_SIZE)
        reach = mapped(self.balloon, self.ram_fd)
        self.pair.back.page_table[:] = reach.page_table
        for field, value in {"balloon": reach.balloon, **reach.door}.items():
            self.pair.back.back[field] = value
        gate = np.zeros(gate_bytes(1), np.uint8)
        self.gate = new_gate(gate, 0)
        self.server = GateServer(self.pair.hypervisor, gate, 1)
        ours, self.socket = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.hypercalls, none = Hypercalls(ours), cast(Any, None)
        self.hands = RingHands(self.pair.back, self.pair.store, none, self.hypercalls)
        self.pair.spin_on(10**10)

    def work(self) -> int:
        return int(worker.work(self.pair.rings, 0, 100, 0))

    def open_gate(self) -> None:
        """From now on the worker posts its calls."""
        self.hands.dev = self.pair.back = self.pair.back._replace(gate=self.gate)

    def put_stranger(self) -> None:
        """Map another frame where the request's page was mapped."""
        op = np.zeros(1, abi.GNTTAB_MAP_GRANT_REF)
        op["host_addr"], op["dev_bus_addr"] = self.slot, STRANGER * abi.XEN_PAGE_SIZE
        op["flags"] = abi.GNTMAP_HOST_MAP
        assert map_granted(self.ram_fd, op, 0, 1) == 0

    def in_slot(self) -> int:
        """The first byte of the page there."""
        at = (self.slot - self.balloon.address) // abi.XEN_PAGE_SIZE
        return int(self.balloon.view(at)[0])

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
    """One page is mapped, and has been read into; the slot is to be emptied next."""
    made = Dom0()
    pair = made.pair
    assert pair.store.memory is not None
    pair.store.memory[:] = READ_BYTE
    pair.push_raw(Raw([(pair.grant(pair.buffer_frame), 0, 7)], READ))
    assert pair.back_until() == effects.HYPERCALL
    assert pair.hypercalls == [("map", 1)]
    assert pair.back_until(steps.EMPTY) == effects.STOP
    assert made.in_slot() == READ_BYTE
    yield made
    made.close()


@pytest.mark.parametrize("gate_is", ["none", "taken", "asleep"])
def test_what_the_worker_has_emptied_its_driver_does_not_empty_again(
    dom0: Dom0, gate_is: str
) -> None:
    if gate_is != "none":
        dom0.open_gate()
    if gate_is == "taken":
        store_release(dom0.gate.words, int(header_of(0)) + TAKEN, 1)
    elif gate_is == "asleep":
        store_release(dom0.gate.words, ASLEEP, 1)
    assert dom0.work() == effects.HYPERCALL
    assert dom0.pair.back.back["posted"][0] == (gate_is == "asleep")
    assert dom0.is_empty()
    dom0.put_stranger()
    with dom0.hypervisor():
        dom0.hands.hypercall()
    assert not dom0.is_empty()
    assert dom0.in_slot() == STRANGER
    assert dom0.work() == effects.WAKE
    assert dom0.in_slot() == STRANGER
    finished(dom0)


def test_a_call_made_through_the_gate_leaves_nothing_to_the_driver(dom0: Dom0) -> None:
    ends = threading.Event()

    def serve() -> None:
        while not ends.is_set():
            dom0.server.make_call(0, False)

    dom0.open_gate()
    serving = threading.Thread(target=serve)
    serving.start()
    try:
        assert dom0.work() == effects.WAKE
    finally:
        ends.set()
        serving.join()
    assert dom0.is_empty()
    finished(dom0)


def finished(dom0: Dom0) -> None:
    """The request is answered, nothing is mapped, and the next unmap is a new one."""
    pair = dom0.pair
    assert pair.responses[0].item() == (0, READ, OKAY)
    assert pair.back.words[RSP] == 1
    assert pair.counts()["grants_mapped"] == 0
    assert pair.back.turn[STEP] == steps.CLEAR
    assert pair.back_until(steps.TAKE, steps.WATCH) == effects.STOP
    assert pair.back.back["unmap_ops"][0] == 0
