"""Jobs: what a request asks of its store, in what order, and what waits for what."""

from typing import Any

import numpy as np
import pytest

from backend import steps
from backend.at_store import JOBS_OF
from backend.blkback import begin_close
from backend.slots import BARRIER, DISCARD, FLUSH
from common import abi, effects
from common.abi import BLKIF_OP_FLUSH_DISKCACHE as DO_FLUSH
from common.abi import BLKIF_OP_WRITE_BARRIER as DO_BARRIER
from tests.backend.late import DISK_SECTORS, Late
from tests.backend.test_kinds import ALL, ask_discard, discard, late
from tests.backend.test_slots import answers, granted, one
from tests.pair import ERROR, MODES, OKAY, READ, WRITE, CallbackStore, Pair, Raw

NAMES = ("read", "write", "barrier", "flush", "discard")
BATCHINGS = pytest.mark.parametrize("gather_max", [1, 32])


def with_pages(**options: Any) -> tuple[Late, list[int]]:
    pair, grefs = granted(**options)
    pair.back.back["features"] |= ALL
    return pair, grefs


def jobs_at(pair: Late) -> list[tuple[str, int, int, int]]:
    """What the store has now: kind, offset, bytes, pieces."""
    found = []
    for slot in pair.at_store:
        job = pair.back.jobs[slot]
        pieces = pair.back.iovecs[slot, : job["nr_iovecs"]]
        assert int(pieces["nr_bytes"].sum()) == (job["nr_bytes"] if len(pieces) else 0)
        found.append((NAMES[job["kind"]], int(job["offset"]), int(job["nr_bytes"]), len(pieces)))
    return found


def step(pair: Late, status: int = OKAY) -> None:
    """The store answers the one job that it has."""
    (slot,) = pair.at_store
    if status == OKAY:
        pair.finish(slot)
    else:
        pair.refuse(slot, status)
    pair.go_on()


@pytest.mark.parametrize("has_data", [False, True])
@pytest.mark.parametrize("operation", [DO_FLUSH, DO_BARRIER])
def test_what_flushes_is_jobs_one_after_the_other(operation: int, has_data: bool) -> None:
    pair, grefs = with_pages()
    segments = [(gref, 0, 7) for gref in grefs[:2]] if has_data else []
    assert pair.ask(Raw(segments, operation, 16, 5)) == []
    seen = []
    while pair.at_store:
        assert answers(pair, 0) == []
        seen += jobs_at(pair)
        step(pair)
    flush, write = ("flush", 0, 0, 0), ("write", 16 * 512, 2 * 4096, 2)
    if not has_data:
        assert seen == [flush]
    else:
        assert seen == ([flush, write, flush] if operation == DO_BARRIER else [flush, write])
    assert answers(pair, 0) == [(5, OKAY)]
    counts = pair.back.counters[0]
    assert (counts["flush_requests"], counts["store_flushes"]) == (1, seen.count(flush))
    pair.check()


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_a_job_that_fails_is_the_last(failing: int) -> None:
    pair, grefs = with_pages()
    pair.ask(Raw([(grefs[0], 0, 7)], DO_BARRIER, 0, 5))
    for _ in range(failing):
        step(pair)
    step(pair, ERROR)
    assert pair.at_store == [] and answers(pair, 0) == [(5, ERROR)]
    assert pair.ask(one(grefs[0], READ, 0, 6)) == []  # and holds up nobody
    step(pair)
    assert answers(pair, 1) == [(6, OKAY)]
    pair.check()


@BATCHINGS
@pytest.mark.parametrize("mode", MODES)
def test_a_barrier_waits_for_all_before_it_and_all_after_it_wait(
    mode: str, gather_max: int
) -> None:
    pair, grefs = with_pages(mode=mode, gather_max=gather_max)
    before = [one(grefs[at], WRITE, at, at) for at in range(2)]
    barriers = [Raw([(grefs[at], 0, 7)], DO_BARRIER, 8 * at, at) for at in (2, 3)]
    after = [one(grefs[at], WRITE, at, at) for at in (4, 5)]
    assert pair.ask(*before, *barriers, *after) == []
    assert pair.ask(one(grefs[6], READ, 6, 6)) == []
    assert len(pair.at_store) == 2
    pair.finish(pair.slot_of(1))
    pair.go_on()
    assert len(pair.at_store) == 1
    for ident in (0, 2, 2, 2, 3, 3, 3):
        assert pair.at_store == [pair.slot_of(ident)]
        step(pair)
    assert {pair.back.requests["id"][slot] for slot in pair.at_store} == {4, 5, 6}
    pair.finish(*pair.at_store)
    pair.go_on()
    assert [ident for ident, _ in answers(pair, 0)] == [1, 0, 2, 3, 4, 5, 6]
    assert (pair.back.back["at_store"][0], pair.back.back["held"][0]) == (0, 0)
    pair.check()


def test_a_flush_waits_for_nobody() -> None:
    pair, grefs = with_pages()
    pair.ask(one(grefs[0], WRITE, 0, 0), Raw([], DO_FLUSH, 0, 1), one(grefs[1], WRITE, 1, 2))
    assert [job[0] for job in jobs_at(pair)] == ["write", "flush", "write"]


def test_all_that_is_on_the_ring_is_handed_over_together() -> None:
    """One effect for three requests, each of which is a step of its own."""
    pair, grefs = with_pages()
    pair.push_raw(*(one(grefs[at], READ, at, at) for at in range(3)))
    seen = [pair.back_until()]
    while seen[-1] != effects.WAIT:
        seen.append(pair.back_until())
    assert seen.count(effects.IO) == 1 and len(pair.at_store) == 3


@BATCHINGS
def test_a_ring_that_closes_hands_over_what_it_has_taken(gather_max: int) -> None:
    pair, grefs = with_pages(gather_max=gather_max)
    pair.push_raw(one(grefs[0], READ, 0, 0))
    while pair.back_until(steps.HAND_OVER) != effects.STOP or not pair.back.back["started"][0]:
        pass
    pair.back.turn[0] = steps.LOOK
    begin_close(pair.back)
    assert pair.go_on() == effects.WAIT and len(pair.at_store) == 1
    pair.finish(*pair.at_store)
    assert pair.go_on() == effects.DONE
    assert answers(pair, 0) == [(0, OKAY)]


@pytest.mark.parametrize("step", [steps.WATCH, steps.ARM, steps.LOOK_AGAIN])
def test_the_next_job_of_a_request_keeps_it_awake(step: int) -> None:
    pair, grefs = with_pages()
    pair.push_raw(Raw([(grefs[0], 0, 7)], DO_BARRIER, 0, 5))
    while pair.back_until(step) != effects.STOP or not pair.at_store:
        pass
    pair.finish(*pair.at_store)
    assert pair.go_on() == effects.WAIT
    assert [job[0] for job in jobs_at(pair)] == ["write"]


@pytest.mark.parametrize("mode", MODES)
def test_a_discard_is_done_and_its_neighbours_stay(mode: str) -> None:
    for store in (None, CallbackStore(DISK_SECTORS)):
        pair = Pair(mode, store=store)
        pair.back.back["features"] |= ALL
        pair.store.write(0, np.full(DISK_SECTORS * 512, 7, np.uint8))
        request = discard(3, 70)
        assert ask_discard(pair, request) == [(5, abi.BLKIF_OP_DISCARD, OKAY)]
        data = np.empty(DISK_SECTORS * 512, np.uint8)
        pair.store.read(0, data)
        assert not data[3 * 512 : 73 * 512].any()
        assert (data[: 3 * 512] == 7).all() and (data[73 * 512 :] == 7).all()
        assert pair.back.counters["store_discards"][0] == (store is not None)
        pair.check()


@pytest.mark.parametrize("operation", [DO_FLUSH, DO_BARRIER])
def test_memory_has_flushed_when_it_has_written(operation: int) -> None:
    pair = Pair()
    pair.back.back["features"] |= ALL
    gref = pair.grant(pair.buffer_frame)
    pair.frame(pair.buffer_frame)[:] = 9
    assert pair.ask(Raw([], operation, 1 << 60, 1), Raw([(gref, 0, 7)], operation, 8, 2)) == [
        (1, operation, OKAY),
        (2, operation, OKAY),
    ]
    page = np.empty(4096, np.uint8)
    pair.store.read(4096, page)
    assert (page == 9).all()


# --- sectors of 4096 bytes --------------------------------------------------------------------


@pytest.mark.parametrize("memory", [True, False])
@pytest.mark.parametrize(
    ("segments", "sector", "fits"),
    [
        ([(0, 7)], 0, True),
        ([(0, 7), (0, 7)], 8, True),
        ([(0, 7)], 1, False),
        ([(0, 3)], 0, False),
        ([(4, 7), (0, 3)], 0, False),
        ([(1, 7)], 8, False),
    ],
)
def test_what_is_not_whole_sectors_is_an_error(
    segments: list[tuple[int, int]], sector: int, fits: bool, memory: bool
) -> None:
    store = None if memory else CallbackStore(DISK_SECTORS)
    pair = Pair(store=store)
    pair.back.back["sector_mask"] = 7
    gref = pair.grant(pair.buffer_frame)
    for operation in (READ, WRITE):
        raw = Raw([(gref, first, last) for first, last in segments], operation, sector)
        assert pair.ask(raw) == [(0, operation, OKAY if fits else ERROR)]


@pytest.mark.parametrize(
    ("sector", "count", "fits"), [(8, 16, True), (4, 8, False), (8, 4, False), (8, 0, False)]
)
def test_nor_is_a_discard(sector: int, count: int, fits: bool) -> None:
    pair, _ = late()
    pair.holds = False
    pair.back.back["sector_mask"] = 7
    wanted = OKAY if fits else ERROR
    assert ask_discard(pair, discard(sector, count)) == [(5, abi.BLKIF_OP_DISCARD, wanted)]


def test_every_kind_has_its_jobs() -> None:
    assert {kind for kind, _ in JOBS_OF} == {0, 1, BARRIER, FLUSH, DISCARD}
    assert all(len(jobs) <= 3 for jobs in JOBS_OF.values())
