"""What a guest's loop asks of the outside world, and when."""

import numpy as np
import pytest

from common import effects
from common.atomics import load_acquire, store_release
from common.event_channel import clear_pending, set_pending
from common.ring import EVENT, REQ, RSP
from common.spinning import new_spin
from common.steps import STEP
from frontend import steps
from tests.pair import OKAY, PORT, READ, Pair


def submit(pair: Pair) -> int:
    """Up to where it has nothing more to put on the ring."""
    return pair.front_until(steps.WATCH)


def queue(pair: Pair, count: int) -> None:
    for io in range(count):
        pair.queue(io, READ, 8 * io, 8)


def test_nothing_queued_is_nothing_to_do() -> None:
    pair = Pair()
    before = pair.ring_page.tobytes()
    assert [pair.front_until() for _ in range(2)] == [effects.DONE] * 2
    assert pair.ring_page.tobytes() == before


def test_the_backend_is_woken_as_soon_as_the_first_request_is_out() -> None:
    pair = Pair()
    queue(pair, 3)
    assert submit(pair) == effects.WAKE
    assert load_acquire(pair.front.words, REQ) == 1
    assert submit(pair) == effects.STOP  # it has not armed again
    assert load_acquire(pair.front.words, REQ) == 3
    assert pair.counts()["notify_to_back"] == 1


def test_a_backend_whose_event_is_pending_is_not_woken_again() -> None:
    pair = Pair()
    set_pending(*pair.back_events, PORT)
    queue(pair, 1)
    assert submit(pair) == effects.STOP
    assert pair.counts()["notify_to_back"] == 1


def test_a_masked_backend_is_not_woken_but_its_event_is_pending() -> None:
    pair = Pair()
    pair.back_events[1][:] = np.uint64(0xFFFFFFFFFFFFFFFF)
    queue(pair, 1)
    assert submit(pair) == effects.STOP
    assert clear_pending(pair.back_events[0], PORT)


def test_what_does_not_fit_stays_queued() -> None:
    pair = Pair()
    queue(pair, 40)
    assert [submit(pair) for _ in range(2)] == [effects.WAKE, effects.STOP]
    assert load_acquire(pair.front.words, REQ) == 32
    assert pair.front.front["queued"][0] == 8


def test_a_guest_that_waits_has_armed_its_event() -> None:
    pair = Pair(start=(1 << 32) - 1)
    store_release(pair.front.words, RSP + EVENT, np.uint32(5))
    queue(pair, 1)
    assert pair.front_until() == effects.WAKE
    assert pair.front_until() == effects.WAIT
    assert load_acquire(pair.front.words, RSP + EVENT) == 0


def test_a_response_already_there_needs_no_wait() -> None:
    pair = Pair()
    queue(pair, 2)
    assert [submit(pair) for _ in range(2)] == [effects.WAKE, effects.STOP]
    pair.answer_raw((0, READ, OKAY))
    armed = load_acquire(pair.front.words, RSP + EVENT)
    assert pair.front_until(steps.TAKE) == effects.STOP
    assert load_acquire(pair.front.words, RSP + EVENT) == armed


def test_a_spin_that_finds_nothing_ends_in_a_wait_with_the_event_armed() -> None:
    pair = Pair()
    pair.spin[:] = new_spin(adaptive=True)
    queue(pair, 1)
    assert pair.front_until() == effects.WAKE
    store_release(pair.front.words, RSP + EVENT, np.uint32(7))
    assert pair.front_until(steps.ARM) == effects.STOP
    assert load_acquire(pair.front.words, RSP + EVENT) == 7
    assert pair.front_until() == effects.WAIT
    armed = load_acquire(pair.front.words, RSP + EVENT)
    assert armed == pair.front.half["cons"][0] + 1


def test_a_liar_is_broken_at_the_next_look() -> None:
    pair = Pair()
    queue(pair, 1)
    assert pair.front_until() == effects.WAKE
    pair.answer_raw((9, READ, OKAY))
    assert [pair.front_until() for _ in range(3)] == [effects.BROKEN] * 3


@pytest.mark.parametrize("before", [steps.WATCH, steps.ARM, steps.LOOK_AGAIN])
def test_a_lie_seen_while_arming_is_no_wait(before: int) -> None:
    pair = Pair()
    queue(pair, 1)
    assert pair.front_until(before) == effects.WAKE
    assert pair.front_until(before) == effects.STOP
    store_release(pair.front.words, RSP, np.uint32(77))
    assert pair.front_until() == effects.BROKEN


def test_after_so_many_looks_there_is_time_for_the_outside_world() -> None:
    pair = Pair()
    queue(pair, 1)
    assert pair.front_until() == effects.WAKE
    before = pair.ring_page.tobytes()
    assert [pair.front_run(0, looks=0) for _ in range(3)] == [effects.SLICE] * 3
    assert pair.front.turn[STEP] == steps.LOOK and pair.ring_page.tobytes() == before
    looks = [pair.front_run(0, looks=1) for _ in range(2)]
    assert looks == [effects.SLICE, effects.WAIT]  # a turn in which it woke is not its last


@pytest.mark.parametrize("gather_max", [1, 32])
@pytest.mark.parametrize("start", [0, (1 << 32) - 40])
def test_more_ios_than_the_ring_holds_are_all_done(start: int, gather_max: int) -> None:
    pair = Pair(start=start, gather_max=gather_max)
    for _ in range(3):
        queue(pair, 64)
        assert sorted(pair.run()) == list(range(64))
    assert pair.counts()["requests"] == 192
    pair.check()


def test_the_effects_are_these_and_no_two_are_the_same() -> None:
    assert [getattr(effects, name) for name in effects.NAMES] == list(range(9))
