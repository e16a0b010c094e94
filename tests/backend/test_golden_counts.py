"""What real Xen and Linux did, row by row, and the page their ring was left as (tests/golden).

Rows of indirect requests wait for indirect descriptors. The pages they warmed are warmed here with
44-KiB reads in flight together, so that the rows after them start from the same 66 pages.
"""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from backend.stores import RamStore
from common.abi import BLKIF_REQUEST, BLKIF_RESPONSE, SECTORS_PER_PAGE
from common.atomics import load_acquire
from common.ring import EVENT, REQ, RSP, arm
from tests.pair import MODES, OKAY, READ, WRITE, Pair

GOLDEN = Path(__file__).parents[1] / "golden"
PAGE, BIG = SECTORS_PER_PAGE, 11 * SECTORS_PER_PAGE


def one_by_one(pair: Pair, operation: int, count: int, nr_sectors: int) -> Counter[str]:
    """`count` I/Os at depth 1; what they cost."""
    with pair.counting() as cost:
        for at in range(count):
            pair.queue(0, operation, at * PAGE % (8 * PAGE), nr_sectors)
            assert pair.run() == [0]
            assert pair.front.ios["status"][0] == OKAY
    pair.check()
    return cost


def at_depth(pair: Pair, count: int, depth: int, nr_sectors: int) -> Counter[str]:
    """`count` reads, `depth` of them in flight at a time; what they cost."""
    with pair.counting() as cost:
        for start in range(0, count, depth):
            for io in range(min(depth, count - start)):
                pair.queue(io, READ, (start + io) * PAGE % (8 * PAGE), nr_sectors)
            pair.run()
    pair.check()
    return cost


def row(cost: Counter[str]) -> tuple[int, ...]:
    """grant, try-end, map (in hypercalls), unmap (in hypercalls)."""
    names = ("grants_issued", "grant_end_attempts", "map_ops", "map_hypercalls")
    return tuple(cost[name] for name in (*names, "unmap_ops", "unmap_hypercalls"))


def notified(cost: Counter[str]) -> tuple[int, int]:
    return cost["notify_to_back"], cost["notify_to_front"]


# --- the counts -------------------------------------------------------------------------------


def test_persistent_row_by_row() -> None:
    pair = Pair()
    one_by_one(pair, WRITE, 1, PAGE)
    cost = one_by_one(pair, WRITE, 64, PAGE)
    assert row(cost) == (0, 64, 0, 0, 0, 0)
    assert notified(cost) == (64, 64)
    cost = one_by_one(pair, READ, 20, BIG)
    assert row(cost) == (10, 220, 10, 1, 0, 0)
    assert notified(cost) == (20, 20)
    assert row(at_depth(pair, 6, 6, BIG)) == (55, 66, 55, 5, 0, 0)
    assert pair.kept == 66
    assert row(at_depth(pair, 4000, 32, PAGE)) == (0, 4000, 0, 0, 0, 0)
    with pair.counting() as cost:
        assert pair.disconnect() == 0
    assert row(cost) == (0, 66, 0, 0, 66, 6)
    assert cost["grants_ended"] == 66
    pair.check()


def test_without_row_by_row() -> None:
    pair = Pair("non-persistent")
    cost = one_by_one(pair, WRITE, 64, PAGE)
    assert row(cost) == (64, 64, 64, 64, 64, 64)
    assert notified(cost) == (64, 64)
    cost = one_by_one(pair, READ, 20, BIG)
    assert row(cost) == (220, 220, 220, 20, 220, 20)
    assert notified(cost) == (20, 20)
    assert row(at_depth(pair, 4000, 32, PAGE)) == (4000, 4000, 4000, 4000, 4000, 4000)
    assert pair.counts()["flushes"] == pair.counts()["requests"] == 4084
    with pair.counting() as cost:
        assert pair.disconnect() == 0
    assert row(cost) == (0, 0, 0, 0, 0, 0)


def test_a_backend_without_the_feature_maps_the_same_but_grants_the_pool_only() -> None:
    pair = Pair("backend-without-persistent")
    assert row(one_by_one(pair, WRITE, 64, PAGE)) == (1, 0, 64, 64, 64, 64)
    assert row(one_by_one(pair, READ, 20, BIG)) == (10, 0, 220, 20, 220, 20)
    assert row(at_depth(pair, 4000, 32, PAGE)) == (21, 0, 4000, 4000, 4000, 4000)


def test_draining_maps_as_much_in_fewer_hypercalls() -> None:
    pair = Pair("non-persistent", gather_max=32)
    assert row(at_depth(pair, 4000, 32, PAGE)) == (4000, 4000, 4000, 125, 4000, 125)
    assert pair.counts()["flushes"] == 125


def test_the_last_page_in_is_the_first_out() -> None:
    pair = Pair()
    at_depth(pair, 6, 6, BIG)
    with pair.counting() as cost:
        one_by_one(pair, READ, 100, PAGE)
    assert cost["grants_issued"] == 0
    assert len(set(pair.slots["seg"]["gref"][:, 0].tolist())) == 1


# --- the ring's page --------------------------------------------------------------------------


def as_golden(mode: str, gather_max: int, golden: np.ndarray) -> Pair:
    """A pair with the 32 requests that real Linux made last queued, blkfront's free lists in the
    order in which Linux's happened to be.
    """
    end = int(golden[:4].view(np.uint32)[0])
    slots = golden[64 : 64 + 32 * 112].reshape(32, 112)
    responses, requests = slots[:, :16].copy().view(BLKIF_RESPONSE), slots.view(BLKIF_REQUEST)
    order = [at % 32 for at in range(end - 32, end)]
    ids, grefs = responses["id"][order, 0], requests["seg"]["gref"][order, 0, 0]
    pair = Pair(mode, gather_max=gather_max, start=end - 32, store=RamStore(65536))
    front = pair.front
    front.front["free_id"], front.shadow["next"][ids[:-1]] = ids[0], ids[1:]
    front.grants.list["head"], front.grants.next[grefs[:-1]] = grefs[0], grefs[1:]
    for io, slot in enumerate(order):
        sector = int(requests["sector_number"][slot, 0])
        pair.queue(io, int(responses["operation"][slot, 0]), sector, PAGE)
    return pair


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("gather_max", [1, 32])
def test_the_ring_page_is_real_linuxs_byte_for_byte(mode: str, gather_max: int) -> None:
    golden = np.fromfile(GOLDEN / "ring-page.bin", np.uint8)
    pair = as_golden(mode, gather_max, golden)
    assert len(pair.run()) == 32
    arm(pair.front.words, pair.front.half, RSP)  # Linux looks again before it returns
    # Slot 13 holds, behind its one segment, those of an older request in Linux's shadow.
    stale = slice(64 + 13 * 112 + 32, 64 + 14 * 112)
    assert golden[stale].any()
    golden[stale] = 0
    assert np.flatnonzero(pair.ring_page != golden).tolist() == []


def test_the_header_reads_as_in_the_readme() -> None:
    words = np.fromfile(GOLDEN / "ring-page.bin", np.uint32)
    at = [load_acquire(words, place) for place in (REQ, REQ + EVENT, RSP, RSP + EVENT)]
    assert at == [9300, 9301, 9300, 9301]
