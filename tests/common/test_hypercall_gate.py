"""Hypercalls posted in shared memory: the caller's side, against a hypervisor in another thread."""

import threading

import numpy as np
import pytest

from common.abi import GNTTAB_MAP_GRANT_REF
from common.atomics import load_acquire, store_release
from common.hypercall_gate import (
    ANSWERED,
    ASLEEP,
    CMD,
    DOORBELL,
    IDLE,
    MADE,
    NBYTES,
    NUMBER,
    PAYLOAD_MAX,
    PENDING,
    POSTED,
    RC,
    REFUSED,
    SLOT_BYTES,
    STATE,
    TAKEN,
    Gate,
    call,
    collect,
    gate_bytes,
    header_of,
    new_gate,
    no_gate,
)
from common.spinning import new_spin


class Caller:
    """vCPU `slot` of a gate of three."""

    def __init__(self, slot: int = 1) -> None:
        self.segment = np.zeros(gate_bytes(3), np.uint8)
        self.gate: Gate = new_gate(self.segment, slot)
        self.words = self.gate.words
        self.header = int(header_of(slot))
        self.payload = 4096 + slot * SLOT_BYTES + 4096
        self.ops = np.zeros(2, GNTTAB_MAP_GRANT_REF)
        self.ops["ref"] = [7, 8]

    def call(self, nbytes: int | None = None, adaptive: bool = False) -> int:
        size = self.ops.nbytes if nbytes is None else nbytes
        args = (20, 0, self.ops.ctypes.data, size, new_spin(adaptive))
        return int(call(self.gate, *args))

    def field(self, at: int) -> int:
        return int(load_acquire(self.words, self.header + at))

    def answer(self, rc: int) -> None:
        posted = self.segment[self.payload :][: self.ops.nbytes].view(GNTTAB_MAP_GRANT_REF)
        posted["handle"] = [70, 80]
        store_release(self.words, self.header + RC, rc)
        store_release(self.words, self.header + STATE, ANSWERED)


@pytest.mark.parametrize("slot", [0, 1, 2])
def test_a_call_is_posted_in_its_own_slot_and_nowhere_else(slot: int) -> None:
    caller = Caller(slot)
    assert caller.call() == PENDING
    posted = [caller.field(at) for at in (TAKEN, STATE, NUMBER, CMD, NBYTES)]
    assert posted == [1, POSTED, 20, 0, 64]
    assert bytes(caller.segment[caller.payload :][:64]) == caller.ops.tobytes()
    assert load_acquire(caller.words, DOORBELL) == 1
    start = 4096 + slot * SLOT_BYTES
    caller.segment[start : start + SLOT_BYTES] = 0
    caller.words[DOORBELL] = 0
    assert not caller.segment.any()


def test_an_answer_fills_the_structs_and_frees_the_slot() -> None:
    caller = Caller()
    assert caller.call() == PENDING
    caller.answer(-22 & 0xFFFFFFFF)
    assert collect(caller.gate, caller.ops.ctypes.data, caller.ops.nbytes) == -22
    assert caller.ops["handle"].tolist() == [70, 80]
    assert (caller.field(TAKEN), caller.field(STATE)) == (0, IDLE)


def test_a_taken_slot_is_not_waited_for_and_not_touched() -> None:
    caller = Caller()
    assert caller.call() == PENDING
    before = caller.segment.copy()
    caller.ops["ref"] = 9
    assert caller.call(adaptive=True) == REFUSED
    assert (caller.segment == before).all()


def test_what_does_not_fit_is_refused() -> None:
    caller = Caller()
    assert caller.call(nbytes=PAYLOAD_MAX + 1) == REFUSED
    assert not caller.segment.any()


def test_who_has_no_gate_is_refused() -> None:
    ops = np.zeros(1, GNTTAB_MAP_GRANT_REF)
    args = (20, 0, ops.ctypes.data, ops.nbytes, new_spin(True))
    assert call(no_gate(), *args) == REFUSED


def test_a_sleeping_hypervisor_is_not_waited_for() -> None:
    caller = Caller()
    store_release(caller.words, ASLEEP, 1)
    assert caller.call(adaptive=True) == PENDING


def test_a_hypervisor_that_is_awake_answers_while_the_caller_spins() -> None:
    caller = Caller()

    def hypervisor() -> None:
        while caller.field(STATE) != POSTED:
            pass
        caller.answer(0)

    other = threading.Thread(target=hypervisor, daemon=True)
    other.start()
    made = caller.call(adaptive=True)
    other.join(60)
    if made == PENDING:  # this thread's spin ran out before the other one ran
        collect(caller.gate, caller.ops.ctypes.data, caller.ops.nbytes)
    assert made in (MADE, PENDING)
    assert caller.ops["handle"].tolist() == [70, 80]
    assert caller.field(TAKEN) == 0
