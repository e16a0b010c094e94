"""A worker's state when its ring is connected."""

from typing import Any

import numpy as np
import pytest

from backend.blkback import Blkback, new_blkback, slots_needed
from common.abi import BLKIF_MAX_PERSISTENT_GRANTS, XEN_PAGE_SIZE, blkif_ring_size
from common.arena import Arena
from common.counters import BACKEND_COUNTERS
from common.event_channel import EventWords, event_words
from common.hypercall_gate import no_gate
from common.ring import shared_ring_init
from common.spinning import new_spin
from tests.pair import OKAY, READ, Pair, Raw


def back_on(page: np.ndarray, nr_slots: int = 704, **options: Any) -> Blkback:
    arena = Arena()
    slots, accessed, port = (arena.array(size, np.uint64) for size in (nr_slots, 4, 1))
    counters, (pending, mask) = arena.array(1, BACKEND_COUNTERS), event_words(new_page())
    return new_blkback(
        arena,
        page,
        slots,
        accessed,
        counters,
        EventWords(pending, pending, mask, port),
        new_spin(adaptive=False),
        no_gate(),
        remote_domid=3,
        nr_sectors=8,
        **options,
    )


def new_page(pages: int = 1) -> np.ndarray:
    return np.zeros(pages * XEN_PAGE_SIZE, np.uint8)


def fresh_page(pages: int = 1, start: int = 0) -> np.ndarray:
    page = new_page(pages)
    shared_ring_init(page.view(np.uint32), start)
    return page


def test_slots_are_enough_for_every_kept_page_and_a_full_ring_besides() -> None:
    assert slots_needed(32, BLKIF_MAX_PERSISTENT_GRANTS) == 352 + 352
    assert slots_needed(32, 0) == 352


@pytest.mark.parametrize("pages", [1, 2, 4, 8, 16])
def test_the_ring_has_as_many_slots_as_its_pages_hold(pages: int) -> None:
    back = back_on(fresh_page(pages), slots_needed(512, 352))
    assert back.half["nr_ents"][0] == len(back.requests) == blkif_ring_size(pages)


@pytest.mark.parametrize(("asked", "taken"), [(1, 1), (5, 5), (32, 32), (1000, 32)])
def test_no_more_is_gathered_than_the_ring_holds(asked: int, taken: int) -> None:
    assert back_on(fresh_page(), gather_max=asked).back["gather_max"][0] == taken


@pytest.mark.parametrize(("persistent", "cap"), [(True, 40), (False, 0)])
def test_the_tree_has_room_for_the_cap_and_for_nothing_if_nothing_is_kept(
    persistent: bool, cap: int
) -> None:
    back = back_on(fresh_page(), max_persistent_grants=40, persistent=persistent)
    assert (back.tree["cap"][0], len(back.nodes)) == (cap, cap)


def test_every_slot_is_free_once() -> None:
    back = back_on(fresh_page(), 10)
    assert back.back["free_slots"][0] == 10
    assert sorted(back.slots.tolist()) == list(range(10))


def test_the_page_is_taken_as_the_frontend_left_it() -> None:
    page = fresh_page()
    page[200] = 9
    before = page.tobytes()
    back_on(page)
    assert page.tobytes() == before


@pytest.mark.parametrize("start", [0, 77, (1 << 32) - 2])
def test_requests_pushed_before_the_backend_connects_are_served(start: int) -> None:
    pair = Pair(start=start)
    gref = pair.grant(pair.buffer_frame)
    assert pair.back.half["cons"][0] == pair.back.half["prod_pvt"][0] == start
    asked = [Raw([(gref, 0, 7)], id=ident) for ident in range(5)]
    assert pair.ask(*asked) == [(ident, READ, OKAY) for ident in range(5)]
