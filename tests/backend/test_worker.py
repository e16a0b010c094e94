"""The worker's loop: which effect when, and that no wake-up is lost or sent for nothing."""

import numpy as np
import pytest

from backend import steps, worker
from backend.doors import called_for
from common.abi import GNTST_OKAY, GNTTABOP_MAP_GRANT_REF
from common.atomics import load_acquire, store_release
from common.effects import HYPERCALL, NAMES, STOP
from common.event_channel import clear_pending, set_pending
from common.ring import EVENT, REQ, RSP, unconsumed
from tests.pair import PORT, CallbackStore, Pair, Raw


def work(pair: Pair, looks: int = 100) -> str:
    """One call of the loop; its effect by name, a hypercall (by its name) or store call done."""
    effect = int(worker.work(pair.rings, 0, looks, 0))
    pair.do(effect)
    return pair.hypercalls[-1][0].upper() if effect == HYPERCALL else NAMES[effect]


def effects(pair: Pair) -> list[str]:
    """All effects until the worker sleeps."""
    seen = [work(pair)]
    while seen[-1] not in ("WAIT", "BROKEN"):
        seen.append(work(pair))
    return seen


def granted(pair: Pair, nr_segments: int = 1) -> Raw:
    gref = pair.grant(pair.buffer_frame)
    return Raw([(gref, 0, 7)] * nr_segments)


@pytest.mark.parametrize(
    ("mode", "callbacks", "first", "second"),
    [
        ("persistent", False, ["MAP", "WAKE", "WAIT"], ["WAKE", "WAIT"]),
        ("persistent", True, ["MAP", "IO", "WAKE", "WAIT"], ["IO", "WAKE", "WAIT"]),
        ("non-persistent", False, *[["MAP", "UNMAP", "WAKE", "WAIT"]] * 2),
        ("non-persistent", True, *[["MAP", "IO", "UNMAP", "WAKE", "WAIT"]] * 2),
    ],
)
def test_a_request_asks_for_no_more_than_it_needs(
    mode: str, callbacks: bool, first: list[str], second: list[str]
) -> None:
    pair = Pair(mode, store=CallbackStore(512) if callbacks else None)
    request = granted(pair)
    for expected in (first, second):
        pair.push_raw(request)
        assert effects(pair) == expected
        clear_pending(pair.front_events[0], PORT)
        store_release(pair.front.words, RSP + EVENT, load_acquire(pair.back.words, RSP) + 1)
    pair.check()


def test_a_bad_request_needs_nothing_but_its_answer() -> None:
    pair = Pair()
    pair.push_raw(Raw(operation=9))
    assert effects(pair) == ["WAKE", "WAIT"]


def test_a_refused_map_is_not_unmapped() -> None:
    pair = Pair("non-persistent")
    pair.push_raw(Raw([(99, 0, 7)]))
    assert effects(pair) == ["MAP", "WAKE", "WAIT"]
    pair.check()


def test_an_empty_ring_is_a_wait_with_the_event_armed() -> None:
    pair = Pair(start=(1 << 32) - 1)
    store_release(pair.back.words, REQ + EVENT, np.uint32(12345))
    assert work(pair) == "WAIT"
    assert load_acquire(pair.back.words, REQ + EVENT) == 0  # cons + 1, as u32
    assert pair.back.half["cons"][0] == (1 << 32) - 1


def test_the_frontend_is_woken_only_if_it_has_armed() -> None:
    pair = Pair()
    request = granted(pair)
    pair.push_raw(*[request] * 3)
    assert effects(pair) == ["MAP", "WAKE", "WAIT"]  # rsp_event is 1: the first response only
    pair.push_raw(request)
    assert effects(pair) == ["WAIT"]
    assert pair.counts()["notify_to_front"] == 1


def test_a_frontend_whose_event_is_pending_is_not_woken_again() -> None:
    pair = Pair()
    set_pending(*pair.front_events, PORT)
    pair.push_raw(Raw(operation=9))
    assert effects(pair) == ["WAIT"]
    assert pair.counts()["notify_to_front"] == 1


def test_a_slice_ends_after_so_many_looks_and_goes_on_where_it_was() -> None:
    pair = Pair()
    request = granted(pair)
    pair.push_raw(request)
    effects(pair)
    pair.push_raw(*[request] * 10)
    assert [work(pair, 4) for _ in range(6)] == ["SLICE"] * 5 + ["WAIT"], "two in each"
    assert pair.counts()["back_requests"] == 11


def test_a_slice_of_large_requests_has_fewer() -> None:
    pair = Pair()
    request = Raw([(pair.grant(pair.buffer_frame + at), 0, 7) for at in range(11)])
    pair.push_raw(request)
    effects(pair)
    pair.push_raw(*[request] * 4)
    assert [work(pair, 4) for _ in range(5)] == ["SLICE"] * 4 + ["WAIT"], "one in each"


@pytest.mark.parametrize("gather_max", [1, 32])
def test_a_slice_may_end_after_any_look(gather_max: int) -> None:
    pair = Pair("non-persistent", gather_max=gather_max, store=CallbackStore(512))
    request = granted(pair, 11)
    pair.push_raw(*[request] * 3)
    seen: list[str] = []
    while not seen or seen[-1] != "WAIT":
        seen.append(work(pair, 1))
    one = ["MAP", "IO", "UNMAP"]
    calls = 3 if gather_max == 1 else 1
    wanted = ["MAP"] * calls + ["IO"] + ["UNMAP"] * calls
    assert [effect for effect in seen if effect in one] == wanted
    assert load_acquire(pair.back.words, RSP) == 3
    pair.check()


def test_a_broken_ring_is_said_each_time_and_nothing_is_done() -> None:
    pair = Pair()
    store_release(pair.back.words, REQ, np.uint32(33))
    before = pair.ring_page.tobytes()
    assert [work(pair) for _ in range(3)] == ["BROKEN"] * 3
    assert pair.ring_page.tobytes() == before


def test_an_overrun_seen_after_arming_breaks_the_ring_too() -> None:
    pair = Pair()
    assert pair.back_until(steps.LOOK_AGAIN) == STOP
    store_release(pair.back.words, REQ, np.uint32(0xFFFFFFFF))
    assert work(pair) == "BROKEN"
    assert pair.back.back["broken"][0]


def test_a_request_that_comes_while_it_spins_needs_no_event() -> None:
    pair = Pair()
    pair.spin["adaptive"] = True
    pair.push_raw(Raw(operation=9))
    armed = load_acquire(pair.back.words, REQ + EVENT)
    assert work(pair, 1) == "WAKE"
    assert load_acquire(pair.back.words, REQ + EVENT) == armed
    assert work(pair) == "WAIT"  # the spin ran out
    assert load_acquire(pair.back.words, REQ + EVENT) == 2


def test_an_unmap_that_the_hypervisor_refuses_is_a_bug_of_ours() -> None:
    pair = Pair("non-persistent")
    pair.push_raw(granted(pair))
    assert [work(pair) for _ in range(2)] == ["MAP", "UNMAP"]
    assert pair.back.unmap_ops["status"][0] == GNTST_OKAY
    pair.back.unmap_ops["status"][0] = -4
    with pytest.raises(AssertionError):
        work(pair)


def test_the_store_is_not_touched_before_the_map_is_done() -> None:
    pair = Pair()
    assert pair.store.memory is not None
    pair.frame(pair.buffer_frame)[:] = 1
    pair.push_raw(granted(pair)._replace(operation=1))
    assert worker.work(pair.rings, 0, 100, 0) == HYPERCALL
    assert called_for(pair.back)[0] == GNTTABOP_MAP_GRANT_REF
    assert not pair.store.memory.any()
    assert unconsumed(pair.back.words, pair.back.half, REQ, 32) == 0
