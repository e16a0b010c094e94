"""After any history, a lying backend's too, no gref, page or id is lost and none is there twice."""

from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.abi import GRANT_ENTRY_V1, GTF_READING
from common.arena import Arena
from common.atomics import load_acquire
from common.effects import BROKEN, WAIT, WAKE
from common.ring import REQ
from common.steps import STEP
from frontend import blkfront_info, steps
from frontend.blkfront import end_every_access
from frontend.grants import end_access, grant_access, new_grants
from frontend.page_pool import new_pool, return_to_head, return_to_tail, take_page
from tests.frontend.whole import check_whole, free_grefs
from tests.pair import GRANT_COPY, MODES, OKAY, READ, WRITE, Pair

NR_IOS = 8
BETWEEN = (steps.TURN, steps.CLEAR, steps.LOOK)  # where a driver may queue, or take what is done
FRONTEND_MODES = sorted(set(MODES) - {GRANT_COPY})  # to a frontend that is non-persistent


class Move(NamedTuple):
    """What happens next; `at` and `number` choose among what there is."""

    what: str
    at: int
    number: int


moves = st.builds(
    Move,
    st.sampled_from(["queue", "go_on", "map", "unmap", "answer", "lie", "to_rest", "close"])
    | st.sampled_from(["queue", "go_on", "answer", "to_rest"]),
    st.integers(0, 31),
    st.integers(0, 40),
)


class Backend:
    """Answers what, when and how it likes, and has mapped what it likes."""

    def __init__(self, mode: str, pool_pages: int) -> None:
        self.pair = Pair(mode, pool_pages=pool_pages, nr_ios=NR_IOS, frames_per_io=25)
        self.idle = set(range(NR_IOS))
        self.asked: list[tuple[int, int]] = []  # id, operation
        self._seen = 0

    def do(self, move: Move) -> None:
        getattr(self, f"_{move.what}")(move.at, move.number)

    def _queue(self, at: int, number: int) -> None:
        if self.idle and self.pair.front.turn[STEP] in BETWEEN:
            io = sorted(self.idle)[at % len(self.idle)]
            self.idle.remove(io)
            self.pair.queue(io, (READ, WRITE)[number % 2], 0, 1 + 5 * number)

    def _go_on(self, at: int, _number: int) -> None:
        """So many phases."""
        for _ in range(1 + at):
            self.pair.front_step()
            check_whole(self.pair.front)
            self._look()

    def _to_rest(self, _at: int, _number: int) -> None:
        while self.pair.front_until() == WAKE:
            pass
        self._look()

    def _look(self) -> None:
        front = self.pair.front
        if front.turn[STEP] in BETWEEN:
            self.idle |= set(self.pair.take_done())
        while self._seen != load_acquire(front.words, REQ):
            slot = self.pair.slots[self._seen % 32]
            self.asked.append((int(slot["id"]), int(slot["operation"])))
            self._seen += 1

    def _map(self, at: int, _number: int) -> None:
        entries = self.pair.grant_frames.view(GRANT_ENTRY_V1)
        granted = np.flatnonzero(entries["flags"])
        entries["flags"][granted[at % 11 :: 3]] |= GTF_READING

    def _unmap(self, at: int, _number: int) -> None:
        entries = self.pair.grant_frames.view(GRANT_ENTRY_V1)
        entries["flags"][at % 2 :: 2] &= ~GTF_READING & 0xFFFF

    def _answer(self, at: int, number: int) -> None:
        if self.asked:
            ident, operation = self.asked.pop(at % len(self.asked))
            self.pair.answer_raw((ident, operation, OKAY if number % 3 else -number))

    def _lie(self, at: int, number: int) -> None:
        self.pair.answer_raw((at, number, OKAY))

    def _close(self, _at: int, number: int) -> None:
        front = self.pair.front
        if number % 4 == 0 and front.front["broken"][0] and front.turn[STEP] == steps.LOOK:
            end_every_access(front)


@settings(max_examples=300, deadline=None, database=None)
@given(
    st.sampled_from(FRONTEND_MODES), st.sampled_from([11, 24, 352]), st.lists(moves, max_size=60)
)
def test_every_gref_page_and_id_is_free_or_held_once(
    mode: str, pool_pages: int, history: list[Move]
) -> None:
    backend = Backend(mode, pool_pages)
    front = backend.pair.front
    for move in history:
        backend.do(move)
        check_whole(front)
    backend.do(Move("to_rest", 0, 0))
    stuck = end_every_access(front)
    check_whole(front)
    for at in (0, 1):
        backend._unmap(at, 0)
    assert end_every_access(front) == 0  # what was stuck, and nothing a second time
    check_whole(front)
    assert len(free_grefs(front.grants)) == 504
    ended = int(front.counters["grants_ended"][0])
    assert ended == front.counters["grants_issued"][0] and stuck <= ended


def test_a_backend_that_keeps_two_of_a_requests_pages_gets_each_gref_back_once() -> None:
    """One access ends, the next cannot: the device breaks with half a request given back."""
    pair = Pair("non-persistent")
    for io in (0, 1):
        pair.queue(io, READ, 0, 32)
    assert [pair.front_until() for _ in range(2)] == [WAKE, WAIT]
    assert pair.counts()["requests"] == 2
    entries = pair.grant_frames.view(GRANT_ENTRY_V1)
    entries["flags"][[9, 14]] |= GTF_READING
    pair.answer_raw((0, READ, OKAY))
    assert pair.front_until() == BROKEN
    assert pair.front.front["broken"][0] == blkfront_info.BROKEN_STILL_MAPPED
    check_whole(pair.front)
    assert end_every_access(pair.front) == 2
    check_whole(pair.front)
    entries["flags"] &= ~GTF_READING & 0xFFFF
    assert end_every_access(pair.front) == 0
    assert len(free_grefs(pair.front.grants)) == 504
    given = {int(grant_access(pair.front.grants, 0, 1, False)) for _ in range(504)}
    assert given == set(range(8, 512))


@pytest.mark.parametrize("gref", [0, 7, 8, 9, 511])
def test_access_that_has_not_been_given_cannot_be_ended(gref: int) -> None:
    grants = new_grants(Arena(), np.zeros(4096, np.uint8))
    given = int(grant_access(grants, 0, 1, False))
    assert end_access(grants, given)
    with pytest.raises(AssertionError):
        end_access(grants, gref)
    assert len(free_grefs(grants)) == 504


@pytest.mark.parametrize("give_back", [return_to_head, return_to_tail])
def test_a_page_cannot_be_given_back_twice(give_back: object) -> None:
    pool = new_pool(Arena(), 1, 3)
    for page in (int(take_page(pool)), 0, 2):
        if page == 0 and pool.list["free"][0] == 2:
            give_back(pool, page)  # type: ignore[operator]
            continue
        with pytest.raises(AssertionError):
            give_back(pool, page)  # type: ignore[operator]
