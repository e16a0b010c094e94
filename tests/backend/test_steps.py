"""The worker's table: runs take every row of it, and nothing that is not in it."""

import itertools
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import numpy as np
import pytest

from backend.blkback import begin_close
from backend.io_uring import IoUring
from backend.steps import LOOK, LOOK_AGAIN, NEXT, PHASES, PLAN, WATCH
from backend.worker import work
from common import effects
from common.atomics import store_release
from common.event_channel import clear_pending, set_pending
from common.hypercall_gate import gate_bytes, new_gate
from common.ring import EVENT, REQ, RSP
from common.steps import ANY_STEP, NO_STEP, ON, OUTCOME_BITS, OUTCOMES, STEP, STEP_BITS
from common.u32 import u32_add
from hypervisor.gate_server import GateServer
from tests.backend.late import DISK_SECTORS, Late
from tests.pair import LOOKS_MAX, MODES, PORT, READ, WRITE, CallbackStore, Pair, Raw

Row = tuple[str, int, str]  # a step, the effect after it, the next step

ROWS = {
    (PHASES[place >> OUTCOME_BITS].name, int(entry) >> STEP_BITS, PHASES[entry & NO_STEP].name)
    for place, entry in enumerate(NEXT)
    if entry != NO_STEP
}


def name_at(pair: Pair) -> str:
    return PHASES[int(pair.back.turn[STEP])].name


class Taken:
    """A pair, and the rows that it has taken; `before` acts before the phase of that name, once."""

    def __init__(self, pair: Pair, gate_limit_ns: int = 0) -> None:
        self.pair, self.rows = pair, set[Row]()
        self.before: dict[str, Callable[[], None]] = {}
        self._limit_ns = gate_limit_ns

    def go_on(self, looks: int = LOOKS_MAX) -> int:
        """Phase by phase until it sleeps, or cannot; the effect."""
        while True:
            step = name_at(self.pair)
            self.before.pop(step, lambda: None)()
            self.pair.spin["limit_ns"] = 0 if step == "WATCH" else self._limit_ns
            effect = int(work(self.pair.rings, 0, looks, ANY_STEP))
            self.rows.add((step, 0 if effect == effects.STOP else effect, name_at(self.pair)))
            self.pair.do(effect)
            if effect in (effects.WAIT, effects.BROKEN, effects.DONE, effects.SLICE):
                return effect

    def serve(self, *requests: Raw, arms: bool = True) -> None:
        """Until all are answered and it sleeps; `arms`: the guest asks for its next event."""
        self.pair.push_raw(*requests)
        if arms:
            rsp = int(self.pair.back.words[RSP])
            store_release(self.pair.front.words, RSP + EVENT, u32_add(rsp, 1))
        assert self.go_on() == effects.WAIT
        clear_pending(self.pair.back_events[0], PORT)
        clear_pending(self.pair.front_events[0], PORT)


@contextmanager
def open_gate(pair: Pair) -> Iterator[None]:
    """The hypervisor takes what is posted, in a thread, until the block ends."""
    segment, ends = np.zeros(gate_bytes(1), np.uint8), threading.Event()
    server = GateServer(pair.hypervisor, segment, 1)
    pair.back = pair.back._replace(gate=new_gate(segment, 0))

    def serve() -> None:
        while not ends.is_set():
            server.make_call(0, False)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        ends.set()
        thread.join()


def rows_of(mode: str, spins: bool, gate: bool, callbacks: bool) -> set[Row]:
    """What a life of a worker takes."""
    pair = (Late if callbacks else Pair)(mode, gather_max=2, cap=1)
    if isinstance(pair, Late):
        pair.holds = False
    grefs = [pair.grant(pair.buffer_frame + at) for at in range(12)]
    one = [Raw([(grefs[at], 0, 7)], operation) for at, operation in ((0, READ), (0, WRITE))]
    many = Raw([(gref, 0, 7) for gref in grefs[1:]], READ)
    if spins:
        pair.spin_on(0)
    with open_gate(pair) if gate else nullcontext():
        taken = Taken(pair, 10**10 if gate else 0)
        assert taken.go_on(looks=0) == effects.SLICE
        for request in (*one, many):
            taken.serve(request)
        taken.serve(*one, one[0], arms=False)
        taken.serve(one[0], Raw(operation=9))
        set_pending(*pair.front_events, PORT)
        taken.serve(Raw(operation=9))
        pair.front_events[1][0] |= np.uint64(1 << PORT)  # masked
        taken.serve(one[0])

        def cut() -> None:
            pair.back.back["call_max"] = 4

        for operation in (READ, WRITE):
            for step in ("MAP", "UNMAP", "COPY_IN", "COPY_OUT"):
                taken.before[step] = cut
            taken.serve(many._replace(operation=operation))
        for step in ("WATCH", "LOOK_AGAIN"):
            taken.before[step] = lambda: pair.push_raw(one[0])
            taken.serve()
            assert step not in taken.before
        if isinstance(pair, Late):
            pair.holds = True
            taken.serve(one[0])
        store_release(pair.back.words, REQ, u32_add(int(pair.back.words[RSP]), 33))
        assert taken.go_on() == effects.BROKEN
        begin_close(pair.back)
        if isinstance(pair, Late):
            assert taken.go_on() == effects.WAIT
            pair.finish(*pair.at_store)
        assert taken.go_on() == effects.DONE
    pair.check()
    return taken.rows


def rows_of_a_queue() -> set[Row]:
    """What is taken where the loop itself hands over to the store."""
    file = os.memfd_create("disk")
    os.truncate(file, DISK_SECTORS * 512)
    queue = IoUring(file, 32)
    pair = Pair(store=CallbackStore(DISK_SECTORS), queue=queue.queue)
    taken = Taken(pair, 0)
    gref = pair.grant(pair.buffer_frame)
    taken.serve(Raw([(gref, 0, 7)], WRITE))
    while pair.back.back["at_store"][0]:
        taken.go_on()
    assert os.pread(file, 4096, 0) == pair.frame(pair.buffer_frame).tobytes()
    queue.close()
    os.close(file)
    return taken.rows


@pytest.fixture(scope="module")
def rows() -> set[Row]:
    """Of all kinds of lives."""
    waits = ((False, False), (True, False), (True, True))
    kinds = itertools.product(MODES, waits, (False, True))
    lives = [rows_of(mode, *waits, callbacks) for mode, waits, callbacks in kinds]
    return rows_of_a_queue().union(*lives)


def test_each_phase_has_a_row_for_each_outcome() -> None:
    """So that a row taken is an outcome seen."""
    assert len(ROWS) == sum(len(phase.next) for phase in PHASES)
    assert all(outcome in range(len(OUTCOMES)) for phase in PHASES for outcome in phase.next)


def test_runs_take_every_row_of_the_table_and_no_other(rows: set[Row]) -> None:
    assert rows == ROWS


def test_each_phase_names_one_access_at_most() -> None:
    for phase in PHASES:
        assert (
            len([word for word in ("load", "store", "copy", "fetch") if word in phase.access]) < 2
        )


@pytest.mark.parametrize("stops", [0, ANY_STEP])
@pytest.mark.parametrize(("step", "outcome"), [(LOOK, ON), (PLAN, 4), (WATCH, ON), (LOOK_AGAIN, 2)])
def test_an_outcome_that_is_not_in_the_table_is_an_assertion(
    step: int, outcome: int, stops: int
) -> None:
    pair = Pair("non-persistent")
    table = NEXT.copy()
    assert table[step << OUTCOME_BITS | outcome] != NO_STEP
    table[step << OUTCOME_BITS | outcome] = NO_STEP
    pair.back = pair.back._replace(next=table)
    pair.push_raw(Raw([(pair.grant(pair.buffer_frame), 0, 7)]))
    with pytest.raises(AssertionError, match="no such step"):
        for _ in range(100):
            pair.do(int(work(pair.rings, 0, LOOKS_MAX, stops)))
