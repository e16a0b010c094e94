"""An order that breaks a rule of `backend/steps.py` is found, by the test that guards the rule."""

from collections.abc import Callable, Iterator
from typing import Final

import pytest

from backend.steps import (
    CHECK_EVENT,
    CLEAR,
    EMPTY,
    LOOK,
    MAPPED,
    MOVE,
    NEXT,
    PLAN,
    PUBLISH,
    READ_MASK,
    RELEASE,
    RESPOND,
    UNMAPPED,
)
from common.steps import COPY, GRANT, NONE, ON, OUTCOME_BITS
from common.steps import NEXT as DO_NEXT
from tests.backend import test_phases, test_slots, test_worker
from tests.pair import GRANT_COPY, READ, Pair

Rows = tuple[tuple[int, int, int], ...]


def a_response_wakes() -> None:
    """Nobody sleeps for ever."""
    pair = Pair()
    for _ in range(2):
        pair.queue(0, READ, 0, 8)
        assert pair.run() == [0]


ORDERS: Final[dict[str, tuple[Rows, Callable[[], None]]]] = {
    "answer before unmap": (
        ((RELEASE, GRANT, RESPOND), (PUBLISH, ON, EMPTY), (UNMAPPED, ON, CHECK_EVENT)),
        test_phases.test_a_response_goes_out_after_the_unmap,
    ),
    "no unmap": (
        ((RELEASE, GRANT, RESPOND),),
        test_phases.test_a_response_goes_out_after_the_unmap,
    ),
    "notify before publish": (
        (
            (RESPOND, ON, CHECK_EVENT),
            (CHECK_EVENT, NONE, PUBLISH),
            (READ_MASK, ON, PUBLISH),
            (READ_MASK, NONE, PUBLISH),
            (PUBLISH, ON, CLEAR),
        ),
        a_response_wakes,
    ),
    "in-flight mark dropped early": (
        ((PLAN, ON, RELEASE), (RELEASE, ON, MOVE), (MOVE, ON, RESPOND)),
        test_phases.test_a_kept_page_is_in_flight_until_it_is_released,
    ),
    "unmap before the copy": (
        ((MAPPED, ON, RELEASE), (UNMAPPED, ON, MOVE), (MOVE, ON, RESPOND)),
        lambda: test_phases.test_a_partial_write_leaves_other_sectors_alone("non-persistent"),
    ),
    "what the store has finished is answered before its unmap": (
        ((LOOK, DO_NEXT, RESPOND),),
        lambda: test_slots.test_what_is_ready_first_is_answered_first("non-persistent", 1),
    ),
    "what the store has read is not copied to the guest": (
        ((LOOK, COPY, RELEASE),),
        lambda: test_slots.test_what_is_ready_first_is_answered_first(GRANT_COPY, 1),
    ),
    "copy before the map": (
        ((PLAN, GRANT, MOVE),),
        test_worker.test_the_store_is_not_touched_before_the_map_is_done,
    ),
}


@pytest.fixture
def restored() -> Iterator[None]:
    """The table is as it was once the test is over."""
    before = NEXT.copy()
    yield
    NEXT[:] = before


@pytest.mark.parametrize("wrong", ORDERS)
def test_a_wrong_order_is_found(wrong: str, restored: None) -> None:
    rows, guard = ORDERS[wrong]
    guard()
    for step, outcome, then in rows:
        NEXT[step << OUTCOME_BITS | outcome] = then
    with pytest.raises(AssertionError):
        guard()
