"""The hypervisor's side of the gate: it finds what is posted, once each, and believes nothing."""

import errno

import numpy as np
import pytest

from common import abi
from common.atomics import load_acquire, store_release
from common.hypercall_gate import (
    ANSWERED,
    ASLEEP,
    IDLE,
    NBYTES,
    PAYLOAD_MAX,
    PENDING,
    POSTED,
    STATE,
    Gate,
    call,
    collect,
    gate_bytes,
    header_of,
    new_gate,
)
from common.spinning import new_spin
from hypervisor.gate_server import NOBODY, GateServer, find_posted
from tests.hypervisor.world import World

SLOTS = 4


class Gates:
    """A world whose dom0 has a gate of four slots."""

    def __init__(self) -> None:
        self.world = World(nr_cpus=SLOTS)
        self.segment = np.zeros(gate_bytes(SLOTS), np.uint8)
        self.server = GateServer(self.world.hypervisor, self.segment, SLOTS)
        self.server._spin["limit_ns"] = 0
        self.spin = new_spin(adaptive=False)
        self.words = self.segment.view(np.uint32)

    def gate(self, slot: int) -> Gate:
        return new_gate(self.segment, slot)

    def post_map(self, slot: int) -> np.ndarray:
        op = np.zeros(1, abi.GNTTAB_MAP_GRANT_REF)
        op["ref"], op["dom"] = self.world[1].grant(frame=3 + slot), 1
        op["flags"], op["host_addr"] = abi.GNTMAP_HOST_MAP, 4096 * (slot + 1)
        args = (abi.HYPERVISOR_GRANT_TABLE_OP, abi.GNTTABOP_MAP_GRANT_REF, op.ctypes.data)
        made = call(self.gate(slot), *args, op.nbytes, self.spin)
        assert made == PENDING
        return op

    def take(self, slot: int, op: np.ndarray) -> int:
        return int(collect(self.gate(slot), op.ctypes.data, op.nbytes))

    def state(self, slot: int) -> int:
        return int(load_acquire(self.words, header_of(slot) + STATE))


def test_a_posted_map_is_made_and_answered_in_place() -> None:
    gates = Gates()
    op = gates.post_map(2)
    assert gates.server.serve() is False
    assert gates.take(2, op) == 0
    assert (op["status"][0], op["dev_bus_addr"][0]) == (abi.GNTST_OKAY, 5 * 4096)
    assert gates.world.domain(1).mapped == 1


def test_every_slot_is_served_once() -> None:
    gates = Gates()
    ops = {slot: gates.post_map(slot) for slot in (3, 0, 1)}
    assert gates.server.serve() is False
    assert [gates.state(slot) for slot in range(SLOTS)] == [ANSWERED, ANSWERED, IDLE, ANSWERED]
    assert [gates.take(slot, op) for slot, op in ops.items()] == [0, 0, 0]
    assert gates.world.counted(1)["hypercalls"] == gates.world.counted(1)["map_ops"] == 3


def test_the_search_goes_round_so_that_no_slot_starves() -> None:
    gates = Gates()
    for slot in (0, 2):
        gates.post_map(slot)
    found = [int(find_posted(gates.words, SLOTS, first)) for first in range(SLOTS)]
    assert found == [0, 2, 2, 0]
    assert find_posted(np.zeros_like(gates.words), SLOTS, 0) == NOBODY


@pytest.mark.parametrize("nbytes", [PAYLOAD_MAX + 1, 2**32 - 1, 0, 31])
def test_a_length_that_cannot_be_is_an_error_of_its_call_only(nbytes: int) -> None:
    gates = Gates()
    op = gates.post_map(1)
    store_release(gates.words, header_of(1) + NBYTES, nbytes)
    good = gates.post_map(2)
    assert gates.server.serve() is False
    assert gates.take(1, op) == -errno.EINVAL
    assert gates.take(2, good) == 0
    assert gates.world.counted(1)["map_ops"] == 1


def test_a_kick_for_a_call_already_made_does_nothing() -> None:
    gates = Gates()
    gates.post_map(1)
    gates.server.make_call(1, False)
    gates.server.make_call(1, False)
    assert gates.world.counted(1)["map_ops"] == 1
    assert gates.state(1) == ANSWERED


def test_it_does_not_fall_asleep_over_a_posted_call() -> None:
    gates = Gates()
    gates.post_map(0)
    assert gates.server.fall_asleep() is False
    assert load_acquire(gates.words, ASLEEP) == 0
    assert gates.state(0) == POSTED


def test_asleep_it_says_so() -> None:
    gates = Gates()
    assert gates.server.fall_asleep() is True
    assert load_acquire(gates.words, ASLEEP) == 1
    gates.server.wake_up()
    assert load_acquire(gates.words, ASLEEP) == 0
