"""The hypervisor's side of the gate: finds posted hypercalls, makes them, answers in place.

Owns: which slot is served next, and when the hypervisor sleeps. While calls come it looks for the
next one, spinning or yielding as every waiter does (`common/spinning.py`); then it says that it is
asleep, and looks once more.
Rule: the slot's arguments are copied once, and nothing of them is believed before.
"""

import errno
import time
from typing import Final

import numpy as np

from common.abi import DOMID_0
from common.atomics import fence, load_acquire, store_release
from common.compiled import kernel
from common.hypercall_gate import (
    ANSWERED,
    ASLEEP,
    CMD,
    DOORBELL,
    IDLE,
    NBYTES,
    NUMBER,
    PAYLOAD_MAX,
    POSTED,
    RC,
    STATE,
    TAKEN,
    header_of,
    payload_of,
)
from common.spinning import (
    new_spin,
    slept,
    spin_until_changed,
)
from hypervisor.hypercalls import Hypervisor
from hypervisor.traced_calls import TracedCalls

CALLS_PER_LOOK: Final = 256  # then the sockets get a turn
NOBODY: Final = -1


@kernel
def find_posted(words: np.ndarray, nr_slots: int, first: int) -> int:
    """The next slot from `first` on, round and round, with a posted call; or NOBODY."""
    for step in range(nr_slots):
        slot = (first + step) % nr_slots
        if load_acquire(words, header_of(slot) + STATE) == POSTED:
            return slot
    return NOBODY


@kernel
def next_posted(words: np.ndarray, nr_slots: int, first: int, spin: np.ndarray) -> int:
    """The same, waiting a while for one."""
    while True:
        seen = load_acquire(words, DOORBELL)
        slot = find_posted(words, nr_slots, first)
        if slot != NOBODY or not spin_until_changed(words, DOORBELL, seen, spin):
            return slot


class GateServer:
    """Serves the `nr_slots` vCPUs of the backend `domid`, whose gate is `segment` (u8).

    threads: see common/spinning.py.
    """

    def __init__(
        self,
        hypervisor: Hypervisor,
        segment: np.ndarray,
        nr_slots: int,
        threads: int = 1,
        domid: int = DOMID_0,
        traced: TracedCalls | None = None,
    ) -> None:
        self._hypervisor, self._domid = hypervisor, domid
        self._bytes, self._words = segment, segment.view(np.uint32)
        self._nr_slots = nr_slots
        self._traced = traced
        self._spin = new_spin(adaptive=True, threads=threads)
        self._next = 0
        self._asleep_since_ns = 0

    def serve(self) -> bool:
        """Make calls while they come, a few at most; False once none has come for a while."""
        flushed = self._hypervisor.flushes
        for _ in range(CALLS_PER_LOOK):
            args = (self._words, self._nr_slots, self._next, self._spin)
            slot = int(next_posted(*args))
            if slot == NOBODY:
                return False
            # Who was found behind another's flush in one round of the slots has queued on the lock.
            waited = self._hypervisor.flushes != flushed and slot >= self._next
            flushed = flushed if slot >= self._next else self._hypervisor.flushes
            self.make_call(slot, waited)
            self._next = (slot + 1) % self._nr_slots
        return True

    def make_call(self, slot: int, waited: bool) -> None:
        """Make the call posted in `slot`, if there is one."""
        header, words = int(header_of(slot)), self._words
        if load_acquire(words, header + STATE) != POSTED:
            return
        number, cmd, nbytes = (
            int(load_acquire(words, header + field)) for field in (NUMBER, CMD, NBYTES)
        )
        traced = self._traced if self._traced is not None and self._traced.is_on() else None
        if traced is not None:
            traced.begin()
        rc = -errno.EINVAL
        if nbytes <= PAYLOAD_MAX:
            start = int(payload_of(slot))
            posted = self._bytes[start : start + nbytes]
            payload = bytearray(posted)
            rc = self._hypervisor.hypercall(self._domid, slot, number, cmd, payload, waited)
            posted[:] = payload
        store_release(words, header + RC, rc & 0xFFFFFFFF)
        store_release(words, header + STATE, ANSWERED)
        if traced is not None:
            traced.end(slot, cmd)

    def empty(self) -> None:
        """Who posts here is dead: no call of its is made any more, and each slot is free."""
        for slot in range(self._nr_slots):
            for field, value in ((STATE, IDLE), (TAKEN, 0)):
                store_release(self._words, int(header_of(slot)) + field, value)

    def fall_asleep(self) -> bool:
        """Say that whoever posts must kick; False, and awake still, if somebody just has posted."""
        store_release(self._words, ASLEEP, 1)
        fence()
        if find_posted(self._words, self._nr_slots, 0) != NOBODY:
            store_release(self._words, ASLEEP, 0)
            return False
        self._asleep_since_ns = time.monotonic_ns()
        return True

    def wake_up(self) -> None:
        """Awake: who posts need not kick."""
        slept(self._spin, time.monotonic_ns() - self._asleep_since_ns)
        store_release(self._words, ASLEEP, 0)
