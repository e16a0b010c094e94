"""What a guest's loop asks of the outside world, and when."""

import numpy as np
import pytest
from frontend.effects import finish_queued, idle, submit_queued

from common.atomics import load_acquire, store_release
from common.event_channel import clear_pending, set_pending
from common.ring import EVENT, REQ, RSP
from common.spinning import new_spin
from frontend import effects
from tests.pair import OKAY, PORT, READ, Pair


def submit(pair: Pair) -> int:
    return int(submit_queued(pair.front, *pair.driver.event_args))


def finish(pair: Pair) -> int:
    return int(finish_queued(pair.front, *pair.driver.event_args, pair.driver.spin))


def queue(pair: Pair, count: int) -> None:
    for io in range(count):
        pair.queue(io, READ, 8 * io, 8)


def test_nothing_queued_is_nothing_to_do() -> None:
    pair = Pair()
    before = pair.ring_page.tobytes()
    assert submit(pair) == effects.SLICE
    assert finish(pair) == effects.DONE
    assert pair.ring_page.tobytes() == before


def test_the_backend_is_woken_as_soon_as_the_first_request_is_out() -> None:
    pair = Pair()
    queue(pair, 3)
    assert submit(pair) == effects.WAKE
    assert load_acquire(pair.front.words, REQ) == 1
    assert submit(pair) == effects.SLICE  # it has not armed again
    assert load_acquire(pair.front.words, REQ) == 3
    assert pair.counts()["notify_to_back"] == 1


def test_a_backend_whose_event_is_pending_is_not_woken_again() -> None:
    pair = Pair()
    set_pending(*pair.back_events, PORT)
    queue(pair, 1)
    assert submit(pair) == effects.SLICE
    assert pair.counts()["notify_to_back"] == 1


def test_a_masked_backend_is_not_woken_but_its_event_is_pending() -> None:
    pair = Pair()
    pair.back_events[1][:] = np.uint64(0xFFFFFFFFFFFFFFFF)
    queue(pair, 1)
    assert submit(pair) == effects.SLICE
    assert clear_pending(pair.back_events[0], PORT)


def test_what_does_not_fit_stays_queued() -> None:
    pair = Pair()
    queue(pair, 40)
    submit(pair)
    assert submit(pair) == effects.SLICE
    assert load_acquire(pair.front.words, REQ) == 32
    assert pair.front.front["queued"][0] == 8


def test_a_guest_that_waits_has_armed_its_event() -> None:
    pair = Pair(start=(1 << 32) - 1)
    store_release(pair.front.words, RSP + EVENT, np.uint32(5))
    queue(pair, 1)
    assert finish(pair) == effects.WAKE
    assert finish(pair) == effects.WAIT
    assert load_acquire(pair.front.words, RSP + EVENT) == 0


def test_a_response_already_there_needs_no_wait() -> None:
    pair = Pair()
    queue(pair, 2)
    submit(pair)
    pair.answer_raw((0, READ, OKAY))
    armed = load_acquire(pair.front.words, RSP + EVENT)
    assert idle(pair.front, pair.spin) == effects.SLICE
    assert load_acquire(pair.front.words, RSP + EVENT) == armed


def test_a_spin_that_finds_nothing_ends_in_a_wait_with_the_event_armed() -> None:
    pair = Pair()
    spin = new_spin(adaptive=True)
    assert idle(pair.front, spin) == effects.WAIT
    armed = load_acquire(pair.front.words, RSP + EVENT)
    assert armed == pair.front.half["cons"][0] + 1


def test_a_liar_is_broken_at_the_next_look() -> None:
    pair = Pair()
    queue(pair, 1)
    assert finish(pair) == effects.WAKE
    pair.answer_raw((9, READ, OKAY))
    assert [finish(pair) for _ in range(3)] == [effects.BROKEN] * 3


def test_a_lie_seen_while_arming_is_no_wait() -> None:
    pair = Pair()
    queue(pair, 1)
    submit(pair)
    store_release(pair.front.words, RSP, np.uint32(77))
    assert idle(pair.front, pair.spin) == effects.SLICE


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
    names = ("SLICE", "WAKE", "WAIT", "BROKEN", "DONE")
    assert len({getattr(effects, name) for name in names}) == len(names)
