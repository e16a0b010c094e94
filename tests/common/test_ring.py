"""The shared ring: both halves, across the wrap of its indices, in every order of their phases."""

from collections import deque
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common import blkif, ring
from common.abi import XEN_PAGE_SIZE
from common.arena import Arena
from common.ring import EVENT, REQ, RING_BROKEN, RSP
from common.u32 import u32_add
from tests.common.test_abi import GOLDEN_SLOTS

GOLDEN_RING = Path(__file__).parents[1] / "golden/ring-page.bin"
STALE_GREFS = (174, 205, 206, 182, 185, 184, 203, 183, 177, 196)

NO_DEADLINE = settings(deadline=None)  # the first example compiles
U32 = st.integers(0, 2**32 - 1)
STARTS = st.sampled_from([0, 1, 2**31 - 3, 2**32 - 64, 2**32 - 5, 2**32 - 1]) | U32
SIZES = [32, 64, 128, 256, 512]


class Shared:
    """A ring's page, as words and as qwords."""

    def __init__(self, start: int = 0, pages: int = 1) -> None:
        self.qwords = np.zeros(512 * pages, np.uint64)
        self.words = self.qwords.view(np.uint32)
        ring.shared_ring_init(self.words, start)


def new_half(nr_ents: int, start: int = 0) -> np.ndarray:
    return ring.new_half(Arena(XEN_PAGE_SIZE), nr_ents, start)


def attach_half(words: np.ndarray, nr_ents: int, own: int) -> np.ndarray:
    return ring.attach_half(Arena(XEN_PAGE_SIZE), words, nr_ents, own)


def produce(half: np.ndarray, count: int) -> None:
    half["prod_pvt"][0] = u32_add(int(half["prod_pvt"][0]), count)


def consume(half: np.ndarray, count: int) -> None:
    half["cons"][0] = u32_add(int(half["cons"][0]), count)


# --- the page ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "header"),
    [
        (0, (0, 1, 0, 1)),
        (9300, (9300, 9301, 9300, 9301)),
        (2**32 - 5, (2**32 - 5, 2**32 - 4, 2**32 - 5, 2**32 - 4)),
        (2**32 - 1, (2**32 - 1, 0, 2**32 - 1, 0)),
    ],
)
def test_a_new_ring_has_its_producers_at_the_start_events_one_ahead_and_nothing_else(
    start: int, header: tuple[int, ...]
) -> None:
    words = np.full(1024, 0xFFFFFFFF, np.uint32)
    ring.shared_ring_init(words, start)
    assert words.tobytes() == np.array(header, "<u4").tobytes() + bytes(4096 - 16)


@pytest.mark.parametrize("start", [0, 2**32 - 5])
def test_the_private_indices_begin_at_the_start(start: int) -> None:
    half = new_half(64, start)
    assert half.shape == (1,)
    assert half[0].item() == (start, start, start, start, 64)


@pytest.mark.parametrize("size", SIZES)
@NO_DEADLINE
@given(index=STARTS)
def test_a_slot_lies_at_its_index_modulo_the_ring(size: int, index: int) -> None:
    half = new_half(size)
    assert ring.slot(half, index) * 8 == 64 + 112 * (index % size)


def test_two_ends_write_the_golden_page_byte_for_byte() -> None:
    """The last 32 of 9,300 requests, over what an older one of 11 segments left in slot 13."""
    golden = GOLDEN_RING.read_bytes()
    start = 9300 - 32
    shared = Shared(start)
    front, back = new_half(32, start), new_half(32, start)
    for index, gref in enumerate(STALE_GREFS, start=1):
        blkif.put_segment(shared.qwords, ring.slot(front, 13), index, gref, 0, 7)
    for index in range(start, 9300):
        id_, operation, sector, gref = GOLDEN_SLOTS[index % 32]
        at = ring.slot(front, index)
        blkif.put_request(shared.qwords, at, operation, 1, 51712, id_, sector)
        blkif.put_segment(shared.qwords, at, 0, gref, 0, 7)
    produce(front, 32)
    ring.publish(shared.words, front, REQ)
    assert ring.unconsumed(shared.words, back, REQ, 32) == 32
    consume(back, 32)
    for index in range(start, 9300):
        id_, operation, _, _ = GOLDEN_SLOTS[index % 32]
        blkif.put_response(shared.qwords, ring.slot(back, index), id_, operation, 0)
    produce(back, 32)
    ring.publish(shared.words, back, RSP)
    assert ring.unconsumed(shared.words, front, RSP, 32) == 32
    consume(front, 32)
    ring.arm(shared.words, back, REQ)
    ring.arm(shared.words, front, RSP)
    assert shared.words.tobytes() == golden


def test_an_end_that_attaches_to_the_golden_page_finds_no_work_and_arms_what_is_armed() -> None:
    words = np.frombuffer(bytearray(GOLDEN_RING.read_bytes()), np.uint32)
    back, front = attach_half(words, 32, RSP), attach_half(words, 32, REQ)
    assert back[0].item() == front[0].item() == (9300, 9300, 9300, 9300, 32)
    assert ring.unconsumed(words, back, REQ, 32) == 0
    assert ring.unconsumed(words, front, RSP, 0) == 0
    ring.arm(words, back, REQ)
    ring.arm(words, front, RSP)
    assert words.tobytes() == GOLDEN_RING.read_bytes()


# --- one half ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("own", "other"), [(REQ, RSP), (RSP, REQ)])
@pytest.mark.parametrize("start", [0, 2**32 - 5, 2**32 - 1])
def test_what_is_produced_is_seen_only_when_it_is_published(
    own: int, other: int, start: int
) -> None:
    shared = Shared(start)
    producer, consumer = new_half(32, start), new_half(32, start)
    produce(producer, 7)
    assert ring.unconsumed(shared.words, consumer, own, 32) == 0
    before = shared.words.copy()
    ring.publish(shared.words, producer, own)
    assert ring.unconsumed(shared.words, consumer, own, 32) == 7
    changed = np.flatnonzero(shared.words != before)
    assert changed.tolist() == [own]
    assert shared.words[own] == (start + 7) % 2**32
    assert ring.unconsumed(shared.words, producer, other, 0) == 0


@pytest.mark.parametrize("start", [0, 2**32 - 5])
def test_the_front_may_fill_as_many_slots_as_have_no_answer_yet(start: int) -> None:
    front = new_half(32, start)
    assert ring.free_requests(front) == 32
    produce(front, 30)
    assert ring.free_requests(front) == 2
    produce(front, 2)
    assert ring.free_requests(front) == 0
    consume(front, 9)
    assert ring.free_requests(front) == 9


@NO_DEADLINE
@given(STARTS, st.integers(0, 512), U32)
def test_a_peer_further_ahead_than_the_limit_has_broken_the_ring(
    start: int, limit: int, ahead: int
) -> None:
    shared = Shared(start)
    half = new_half(512, start)
    shared.words[REQ] = (start + ahead) % 2**32
    expected = ahead if ahead <= limit else RING_BROKEN
    assert ring.unconsumed(shared.words, half, REQ, limit) == expected


@pytest.mark.parametrize("start", [0, 3, 2**32 - 32, 2**32 - 1])
@pytest.mark.parametrize("peer", [REQ, RSP])
def test_a_full_ring_is_honest_and_one_entry_more_or_one_step_back_is_not(
    start: int, peer: int
) -> None:
    shared = Shared(start)
    half = new_half(32, start)
    for ahead, found in ((32, 32), (33, RING_BROKEN), (-1, RING_BROKEN)):
        shared.words[peer] = (start + ahead) % 2**32
        assert ring.unconsumed(shared.words, half, peer, 32) == found


def test_an_answer_to_nothing_has_broken_the_ring() -> None:
    shared = Shared()
    front = new_half(32)
    shared.words[RSP] = 1
    assert ring.unconsumed(shared.words, front, RSP, 0) == RING_BROKEN


@pytest.mark.parametrize("start", [0, 2**32 - 5])
def test_a_backend_that_takes_over_does_what_was_asked_before_it_came(start: int) -> None:
    shared = Shared(start)
    front = new_half(32, start)
    produce(front, 9)
    ring.publish(shared.words, front, REQ)
    shared.words[RSP] = (start + 4) % 2**32
    back = attach_half(shared.words, 32, RSP)
    taken = (start + 4) % 2**32
    assert back[0].item() == (taken, taken, taken, taken, 32)
    assert ring.unconsumed(shared.words, back, REQ, 32) == 5


# --- notifications ----------------------------------------------------------------------------


@NO_DEADLINE
@given(STARTS, st.integers(0, 512), st.integers(-600, 600) | U32, st.sampled_from([REQ, RSP]))
def test_a_notification_is_due_by_the_rule_of_ring_h(
    old: int, pushed: int, event: int, own: int
) -> None:
    """`(RING_IDX)(new - event) < (RING_IDX)(new - old)`."""
    shared = Shared(old)
    half = new_half(512, old)
    shared.words[own + EVENT] = armed = (old + event) % 2**32
    produce(half, pushed)
    ring.publish(shared.words, half, own)
    new = (old + pushed) % 2**32
    due = (new - armed) % 2**32 < (new - old) % 2**32
    assert ring.check_notify(shared.words, half, own) == due
    assert not ring.check_notify(shared.words, half, own)


@pytest.mark.parametrize("start", [0, 2**32 - 5, 2**32 - 1])
@pytest.mark.parametrize(("own", "other"), [(REQ, RSP), (RSP, REQ)])
def test_only_the_first_push_after_arming_notifies(start: int, own: int, other: int) -> None:
    shared = Shared(start)
    producer, consumer = new_half(32, start), new_half(32, start)
    told = []
    for pushed in (1, 1, 3):
        produce(producer, pushed)
        ring.publish(shared.words, producer, own)
        told.append(ring.check_notify(shared.words, producer, own))
    consume(consumer, 5)
    ring.arm(shared.words, consumer, own)
    assert shared.words[own + EVENT] == (start + 6) % 2**32
    assert shared.words[other + EVENT] == (start + 1) % 2**32
    produce(producer, 2)
    ring.publish(shared.words, producer, own)
    told.append(ring.check_notify(shared.words, producer, own))
    assert told == [True, False, False, True]


def test_an_event_passed_by_any_push_since_the_last_check_notifies() -> None:
    shared = Shared()
    half = new_half(32)
    for _ in range(3):
        produce(half, 1)
        ring.publish(shared.words, half, REQ)
    assert ring.check_notify(shared.words, half, REQ)


def test_what_is_produced_and_not_published_notifies_nobody() -> None:
    shared = Shared()
    half = new_half(32)
    produce(half, 1)
    assert not ring.check_notify(shared.words, half, REQ)
    ring.publish(shared.words, half, REQ)
    assert ring.check_notify(shared.words, half, REQ)


# --- both halves ------------------------------------------------------------------------------


@NO_DEADLINE
@given(STARTS, st.lists(st.tuples(st.sampled_from("fb"), st.integers(0, 32)), max_size=60))
def test_honest_traffic_arrives_once_in_order_and_never_breaks_the_ring(
    start: int, turns: list[tuple[str, int]]
) -> None:
    shared = Shared(start)
    front, back = new_half(32, start), new_half(32, start)
    asked: deque[int] = deque()
    owed: deque[int] = deque()
    answered: deque[int] = deque()
    next_id = 0
    for who, most in turns:
        if who == "f":
            found = ring.unconsumed(shared.words, front, RSP, len(asked) + len(owed + answered))
            assert found == len(answered)
            for _ in range(min(found, most)):
                at = ring.slot(front, int(front["cons"][0]))
                assert shared.qwords[at] == answered.popleft()
                consume(front, 1)
            free = ring.free_requests(front)
            assert free == 32 - len(asked) - len(owed) - len(answered)
            for _ in range(min(free, most)):
                at = ring.slot(front, int(front["prod_pvt"][0]))
                blkif.put_request(shared.qwords, at, 0, 0, 0, next_id, 0)
                asked.append(next_id)
                next_id += 1
                produce(front, 1)
            ring.publish(shared.words, front, REQ)
        else:
            assert ring.unconsumed(shared.words, back, REQ, 32) == len(asked)
            for _ in range(min(len(asked), most)):
                at = ring.slot(back, int(back["cons"][0]))
                assert shared.qwords[at + blkif.ID] == asked[0]
                owed.append(asked.popleft())
                consume(back, 1)
            for _ in range(min(len(owed), most // 2)):
                at = ring.slot(back, int(back["prod_pvt"][0]))
                blkif.put_response(shared.qwords, at, owed[0], 0, 0)
                answered.append(owed.popleft())
                produce(back, 1)
            ring.publish(shared.words, back, RSP)


class Pair:
    """A producer and a consumer, each taking one phase at a time."""

    def __init__(self, start: int, own: int, entries: int, *, rechecks: bool = True) -> None:
        self.own, self.left, self.rechecks = own, entries, rechecks
        self.shared = Shared(start)
        self.producer, self.consumer = new_half(32, start), new_half(32, start)
        self.producing, self.consuming = "PRODUCE", "CONSUME"
        self.pending = False
        self.consumed = 0

    def step_producer(self) -> bool:
        """One phase; False when all is pushed."""
        words, half = self.shared.words, self.producer
        if self.producing == "PRODUCE":
            if self.left == 0:
                return False
            self.left -= 1
            produce(half, 1)
            self.producing = "PUBLISH"
        elif self.producing == "PUBLISH":
            ring.publish(words, half, self.own)
            self.producing = "CHECK_NOTIFY"
        else:
            if ring.check_notify(words, half, self.own):
                self.pending = True
            self.producing = "PRODUCE"
        return True

    def step_consumer(self) -> bool:
        """One phase; False while it sleeps and nobody has woken it."""
        words, half = self.shared.words, self.consumer
        if self.consuming == "SLEEP":
            if not self.pending:
                return False
            self.pending = False
            self.consuming = "CONSUME"
        elif self.consuming == "ARM":
            ring.arm(words, half, self.own)
            self.consuming = "RECHECK" if self.rechecks else "SLEEP"
        else:
            found = ring.unconsumed(words, half, self.own, 32)
            assert found != RING_BROKEN
            consume(half, found)
            self.consumed += found
            idle = {"CONSUME": "ARM", "RECHECK": "SLEEP"}[self.consuming]
            self.consuming = "CONSUME" if found else idle
        return True

    def come_to_rest(self) -> None:
        """Let both go on until neither can."""
        while self.step_producer() or self.step_consumer():
            pass


@NO_DEADLINE
@given(
    STARTS, st.sampled_from([REQ, RSP]), st.integers(0, 12), st.lists(st.booleans(), max_size=80)
)
def test_no_order_of_phases_leaves_work_with_a_sleeping_consumer(
    start: int, own: int, entries: int, order: list[bool]
) -> None:
    pair = Pair(start, own, entries)
    for producer_first in order:
        if producer_first:
            pair.step_producer()
        else:
            pair.step_consumer()
    pair.come_to_rest()
    assert pair.consuming == "SLEEP"
    assert pair.consumed == entries


def lost_wakeups(start: int, *, rechecks: bool) -> tuple[int, int]:
    """How many of all orders of two pushes and eight phases of the consumer strand an entry."""
    pushes, looks = 6, 8
    stranded = orders = 0
    for turns in combinations(range(pushes + looks), pushes):
        pair = Pair(start, REQ, 2, rechecks=rechecks)
        for turn in range(pushes + looks):
            if turn in turns:
                pair.step_producer()
            else:
                pair.step_consumer()
        pair.come_to_rest()
        stranded += pair.consumed < 2
        orders += 1
    return stranded, orders


@pytest.mark.parametrize("start", [0, 2**32 - 1])
def test_not_one_of_all_3003_orders_of_two_pushes_loses_a_wakeup(start: int) -> None:
    assert lost_wakeups(start, rechecks=True) == (0, 3003)


def test_without_the_second_look_some_orders_would_lose_one() -> None:
    stranded, orders = lost_wakeups(2**32 - 1, rechecks=False)
    assert orders == 3003
    assert stranded > 0
