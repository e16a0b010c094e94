"""Requests at a store that takes its time: several at once, answered as they are ready."""

import random
from collections.abc import Sequence

import numpy as np
import pytest

from backend import steps
from backend.at_store import answer
from backend.blkback import BROKEN_RING, begin_close
from backend.persistent_grants import find
from backend.slots import AFTER, IO, STATES
from common import abi, effects
from common.abi import XEN_PAGE_SIZE
from common.atomics import load_acquire, store_release
from common.event_channel import clear_pending
from common.ring import REQ, RSP
from common.u32 import u32_add, u32_sub
from frontend.grants import end_access
from tests.backend.late import Late
from tests.pair import (
    ERROR,
    GRANT_COPY,
    MODES,
    OKAY,
    PATIENCE_NS,
    PORT,
    READ,
    WRITE,
    CallbackStore,
    Raw,
)

BATCHINGS = pytest.mark.parametrize("gather_max", [1, 32])
START = (1 << 32) - 5
PAGES = 12
RING = abi.BLKIF_RING_SIZE


def granted(mode: str = "persistent", **options: object) -> tuple[Late, list[int]]:
    """A pair with PAGES pages granted; each page and each of the disk's has its own bytes."""
    pair = Late(mode, **options)
    grefs = [pair.grant(pair.buffer_frame + at) for at in range(PAGES)]
    for at in range(PAGES):
        page(pair, at)[:] = 0x80 + at
        disk(pair, at)[:] = 1 + at
    return pair, grefs


def page(pair: Late, at: int) -> np.ndarray:
    return pair.frame(pair.buffer_frame + at)


def disk(pair: Late, at: int) -> np.ndarray:
    """The disk's page `at`."""
    assert isinstance(pair.store, CallbackStore)
    return pair.store.hidden[at * XEN_PAGE_SIZE :][:XEN_PAGE_SIZE]


def one(gref: int, operation: int, at: int, ident: int) -> Raw:
    """A request for one page, the disk's page `at`."""
    return Raw([(gref, 0, 7)], operation, at * abi.SECTORS_PER_PAGE, ident)


def answers(pair: Late, first: int) -> list[tuple[int, int]]:
    """The (id, status) of what has been answered since `rsp_prod` was `first`."""
    count = int(u32_sub(load_acquire(pair.back.words, RSP), first))
    at = [(first + each) % RING for each in range(count)]
    return [(int(pair.responses["id"][slot]), int(pair.responses["status"][slot])) for slot in at]


# --- in flight together, answered as they are ready -------------------------------------------


@BATCHINGS
@pytest.mark.parametrize("mode", MODES)
def test_what_is_ready_first_is_answered_first(mode: str, gather_max: int) -> None:
    pair, grefs = granted(mode, gather_max=gather_max, start=START)
    for at in range(4):  # each in a call of its own: the ring goes on while the store has some
        assert pair.ask(one(grefs[at], (READ, WRITE)[at % 2], at, at)) == []
        assert len(pair.at_store) == at + 1
    order = [2, 3, 0, 1]
    for at in order:
        slot = pair.slot_of(at)
        pair.finish(slot)
        assert pair.go_on() == effects.WAIT
        assert pair.back.requests["state"][slot] != IO
    assert answers(pair, START) == [(at, OKAY) for at in order]
    for at in range(4):
        assert (page(pair, at) == (1 + at, 0x80 + at)[at % 2]).all()
        assert (disk(pair, at) == (1 + at, 0x80 + at)[at % 2]).all()
    pair.check()
    assert pair.disconnect() == 0


@pytest.mark.parametrize(
    ("mode", "gather_max", "calls"),
    [
        ("non-persistent", 1, [("map", 1)] * 3 + [("unmap", 1)] * 3),
        ("non-persistent", 32, [("map", 3), ("unmap", 3)]),
        ("persistent", 1, [("map", 1)] * 3),
        ("persistent", 32, [("map", 3)]),
        (GRANT_COPY, 1, [("copy", 1)] * 3),
        (GRANT_COPY, 32, [("copy", 3)]),
    ],
)
def test_batching_is_how_many_a_step_takes_together(
    mode: str, gather_max: int, calls: list[tuple[str, int]]
) -> None:
    pair, grefs = granted(mode, gather_max=gather_max)
    assert pair.ask(*(one(grefs[at], READ, at, at) for at in range(3))) == []
    assert len(pair.at_store) == 3
    pair.finish(*reversed(pair.at_store))
    pair.go_on()
    assert answers(pair, 0) == [(at, OKAY) for at in (2, 1, 0)]
    assert pair.hypercalls == calls
    pair.check()


@BATCHINGS
@pytest.mark.parametrize("mode", MODES)
def test_new_requests_come_and_go_while_an_old_one_is_at_the_store(
    mode: str, gather_max: int
) -> None:
    pair, grefs = granted(mode, gather_max=gather_max, start=START)
    pair.ask(one(grefs[0], READ, 0, 1000))
    old = pair.slot_of(1000)
    for at in range(100):
        pair.ask(*(one(grefs[1 + at % 11], READ, 1 + at % 11, at),) * 3)
        pair.finish(*(slot for slot in pair.at_store if slot != old))
        first = int(load_acquire(pair.back.words, RSP))
        assert pair.go_on() == effects.WAIT
        assert answers(pair, first) == [(at, OKAY)] * 3
    assert not (page(pair, 0) == 1).any()
    pair.finish(old)
    pair.go_on()
    assert (page(pair, 0) == 1).all()
    pair.check()


@BATCHINGS
def test_what_has_failed_is_answered_without_waiting_for_the_store(gather_max: int) -> None:
    pair, grefs = granted("non-persistent", gather_max=gather_max)
    bad = [Raw([(grefs[0], 3, 2)], id=1), one(300, READ, 0, 2), Raw(operation=9, id=3)]
    got = pair.ask(bad[0], one(grefs[0], READ, 0, 7), *bad[1:], one(grefs[1], WRITE, 1, 8))
    assert [ident for ident, _, _ in got] == [1, 2, 3]
    pair.finish(*pair.at_store)
    pair.go_on()
    assert answers(pair, 3) == [(7, OKAY), (8, OKAY)]
    pair.check()


def test_what_is_finished_is_answered_before_new_requests_are_taken() -> None:
    pair, grefs = granted()
    pair.ask(*(one(grefs[at], READ, at, at) for at in range(3)))
    pair.finish(*pair.at_store)
    pair.push_raw(one(grefs[3], READ, 3, 3))
    while pair.back_until(steps.TAKE) != effects.STOP:
        pass
    assert answers(pair, 0) == [(0, OKAY), (1, OKAY), (2, OKAY)]


@BATCHINGS
@pytest.mark.parametrize("warm", [False, True])
def test_a_gref_that_is_named_again_meanwhile_is_mapped_a_second_time(
    warm: bool, gather_max: int
) -> None:
    pair, grefs = granted(gather_max=gather_max)
    if warm:
        pair.holds = False
        pair.ask(one(grefs[0], READ, 5, 0))
        pair.holds = True
    with pair.counting() as cost:
        for ident in range(3):
            pair.ask(Raw([(grefs[0], ident, ident)], READ, 8 * ident, ident))
    assert (cost["map_ops"], cost["overflow_segments"]) == (3 - warm, 2)
    for ident in (1, 0, 2):
        pair.finish(pair.slot_of(ident))
        pair.go_on()
    assert page(pair, 0).reshape(8, 512)[:3, 0].tolist() == [1, 2, 3]
    assert (pair.kept, pair.counts()["unmap_ops"]) == (1, 2)
    pair.check()


@BATCHINGS
@pytest.mark.parametrize("mode", MODES)
def test_a_page_is_the_stores_until_it_has_finished(mode: str, gather_max: int) -> None:
    """Mapped or marked, whoever else is answered meanwhile."""
    pair, grefs = granted(mode, gather_max=gather_max)
    pair.ask(one(grefs[0], READ, 0, 0), one(grefs[1], READ, 1, 1))
    pair.finish(pair.slot_of(1))
    pair.go_on()
    node = int(find(pair.back.tree, pair.back.nodes, grefs[0]))
    if mode == "persistent":
        assert pair.back.nodes["in_flight"][node]
    elif mode != GRANT_COPY:
        assert not end_access(pair.front.grants, grefs[0])
        assert pair.counts()["grants_mapped"] == 1
    pair.finish(pair.slot_of(0))
    pair.go_on()
    assert (page(pair, 0) == 1).all()
    pair.check()
    assert mode == "persistent" or end_access(pair.front.grants, grefs[0])


@BATCHINGS
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("cap", [0, 5, 352])
def test_whatever_the_order_every_answer_is_right_and_nothing_leaks(
    mode: str, cap: int, gather_max: int
) -> None:
    pair, grefs = granted(mode, gather_max=gather_max, cap=cap, start=START)
    rng, named = random.Random(cap + gather_max), [*grefs, 0, 300]
    asked: dict[int, tuple[int, bool]] = {}  # by id: how many segments, and are all sound?
    seen, ident = START, 0
    for _ in range(150):
        room = RING - len(asked)
        for _ in range(rng.randint(0, min(room, 6))):
            ident += 1
            use = rng.choices(named, [8] * PAGES + [1] * 2, k=rng.choice([1, 1, 2, 11]))
            pair.push_raw(Raw([(gref, 0, 7) for gref in use], rng.choice([READ, WRITE]), 0, ident))
            asked[ident] = len(use), {0, 300}.isdisjoint(use)
        pair.go_on()
        pair.finish(*rng.sample(pair.at_store, rng.randint(0, len(pair.at_store))))
        pair.go_on()
        got = answers(pair, seen)
        seen = int(u32_add(seen, len(got)))
        for answered, status in got:
            assert status == (OKAY if asked.pop(answered)[1] else ERROR)
        assert int(pair.back.back["vacant"][0]) == RING - len(pair.at_store) == RING - len(asked)
    pair.finish(*pair.at_store)
    pair.go_on()
    pair.check()
    assert pair.counts()["persistent_max"] <= cap
    assert pair.disconnect() == 0
    pair.check()


# --- waiting ----------------------------------------------------------------------------------


def test_the_store_is_answered_for_without_an_event_of_the_guest() -> None:
    pair, grefs = granted()
    pair.ask(one(grefs[0], READ, 0, 0))
    assert not pair.back_events[0].any()
    pair.finish(*pair.at_store)
    assert pair.go_on() == effects.WAIT
    assert answers(pair, 0) == [(0, OKAY)]
    assert clear_pending(pair.front_events[0], PORT)


@pytest.mark.parametrize("step", [steps.WATCH, steps.ARM, steps.LOOK_AGAIN])
@pytest.mark.parametrize("spins", [False, True])
def test_what_is_finished_while_it_falls_asleep_keeps_it_awake(step: int, spins: bool) -> None:
    pair, grefs = granted()
    pair.spin["adaptive"] = spins
    pair.push_raw(one(grefs[0], READ, 0, 0))
    while pair.back_until(step) != effects.STOP or not pair.at_store:
        pass
    pair.finish(*pair.at_store)
    assert pair.back_until(steps.TAKE) in (effects.WAKE, effects.STOP)
    assert answers(pair, 0) == [(0, OKAY)]


def test_nobody_spins_on_the_ring_while_the_store_has_something() -> None:
    """Only the driver, which the loop returns to, hears of the store."""
    pair, grefs = granted()
    pair.spin_on(PATIENCE_NS)  # it would for ever
    pair.push_raw(one(grefs[0], READ, 0, 0))
    assert pair.go_on() == effects.WAIT
    assert len(pair.at_store) == 1


# --- a guest that floods ----------------------------------------------------------------------


@BATCHINGS
@pytest.mark.parametrize("start", [0, START])
@pytest.mark.parametrize("at_store", [1, 7, 31, 32])
@pytest.mark.parametrize("seen_at", ["LOOK", "LOOK_AGAIN"])
def test_more_requests_than_there_are_slots_break_the_ring(
    seen_at: str, at_store: int, start: int, gather_max: int
) -> None:
    """All that is not answered counts, taken or not."""
    pair, grefs = granted(gather_max=gather_max, start=start)
    pair.ask(*(one(grefs[0], READ, 0, ident) for ident in range(at_store)))
    assert len(pair.at_store) == at_store
    if seen_at == "LOOK_AGAIN":
        assert pair.back_until(steps.LOOK_AGAIN) == effects.STOP
    store_release(pair.back.words, REQ, u32_add(start, RING + 1))
    assert pair.go_on() == effects.BROKEN
    assert pair.back.back["broken"][0] == BROKEN_RING
    assert pair.counts()["back_requests"] == at_store


@BATCHINGS
@pytest.mark.parametrize("at_store", [1, 31, 32])
def test_as_many_as_there_are_slots_are_served(at_store: int, gather_max: int) -> None:
    pair, grefs = granted(gather_max=gather_max, start=START)
    asked = [one(grefs[at % PAGES], READ, 0, at) for at in range(RING)]
    pair.ask(*asked[:at_store])
    pair.ask(*asked[at_store:])
    assert len(pair.at_store) == RING
    pair.finish(*pair.at_store[::-1])
    pair.go_on()
    assert answers(pair, START) == [(at, OKAY) for at in reversed(range(RING))]
    pair.check()


# --- closing ----------------------------------------------------------------------------------


@BATCHINGS
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("broken", [False, True])
def test_closing_waits_for_what_is_at_the_store(mode: str, gather_max: int, broken: bool) -> None:
    pair, grefs = granted(mode, gather_max=gather_max, cap=2)
    pair.ask(*(one(grefs[at], READ, at, at) for at in range(4)))
    if broken:
        store_release(pair.back.words, REQ, np.uint32(1000))
        assert pair.go_on() == effects.BROKEN
    else:
        pair.push_raw(one(grefs[5], READ, 5, 5))  # is not taken any more
    begin_close(pair.back)
    mapped = pair.counts()["grants_mapped"]
    for at in (1, 3, 0, 2):
        assert pair.go_on() == effects.WAIT
        assert pair.kept == (2 if mode == "persistent" else 0)
        pair.finish(pair.slot_of(at))
    assert mapped == (0 if mode == GRANT_COPY else 4)
    assert pair.go_on() == effects.DONE
    assert answers(pair, 0) == [(at, OKAY) for at in (1, 3, 0, 2)]
    assert all((page(pair, at) == 1 + at).all() for at in range(4))
    assert pair.kept == pair.counts()["grants_mapped"] == 0
    pair.check()


# --- states -----------------------------------------------------------------------------------


def states_of(pair: Late) -> list[int]:
    states: list[int] = pair.back.requests["state"].tolist()
    return states


def steps_taken(pair: Late, requests: Sequence[Raw]) -> set[tuple[int, int]]:
    """All changes of a slot's state, phase by phase, until `requests` are answered."""
    seen, before = set[tuple[int, int]](), states_of(pair)
    pair.push_raw(*requests)
    while True:
        step, now = pair.back_step(), states_of(pair)
        seen |= {(old, new) for old, new in zip(before, now, strict=True) if old != new}
        before = now
        if step == "LOOK_AGAIN":  # it has nothing more to do
            if not pair.at_store:
                return seen
            pair.finish(pair.at_store[-1])


def test_a_slot_goes_its_way_and_no_other() -> None:
    """And is, state by state, where the table says it may be; all of that is seen."""
    seen = set[tuple[int, int]]()
    for mode in MODES:
        for gather_max in (1, 3, 32):
            pair, grefs = granted(mode, gather_max=gather_max, cap=1)
            good = [one(gref, READ, at, at) for at, gref in enumerate(grefs)]
            half = [Raw([(grefs[at], 0, 7), (300, 0, 7)], WRITE) for at in range(2)]
            asked = [*good, Raw(operation=9), one(300, READ, 0, 50), *half, *good[:3]]
            seen |= steps_taken(pair, asked)
            pair.check()
    allowed = {(old, new) for old, then in AFTER.items() for new in then}
    assert {(STATES[a], STATES[b]) for a, b in seen} == {(STATES[a], STATES[b]) for a, b in allowed}


def test_what_is_not_at_the_store_cannot_be_finished() -> None:
    pair, grefs = granted()
    with pytest.raises(AssertionError, match="not at the store"):
        answer(pair.back, 0, OKAY)
    pair.ask(one(grefs[0], READ, 0, 0))
    slot = pair.at_store[0]
    pair.finish(slot)
    with pytest.raises(AssertionError, match="not at the store"):
        answer(pair.back, slot, OKAY)
