"""An I/O that the guest's pages or grant entries can never hold fails, and holds nothing up."""

import errno

import numpy as np
import pytest

from common.abi import XEN_PAGE_SIZE
from common.arena import Arena
from common.effects import DONE, STOP, WAIT, WAKE
from common.not_done import NOT_DONE
from frontend import steps
from frontend.blkfront_info import NO_ROOM
from frontend.block_device import BlockDevice
from frontend.disk import Disk
from frontend.load import LoadPlan, new_load
from tests.frontend.whole import check_whole
from tests.pair import OKAY, READ, WRITE, Pair

# mode, what there is too little of
SHORT = [
    ("persistent", "pages"),
    ("persistent", "grants"),
    ("backend-without-persistent", "pages"),
    ("backend-without-persistent", "grants"),
    ("non-persistent", "grants"),
]
ROOM = 5  # segments


def short(mode: str, of: str) -> tuple[Pair, list[int]]:
    """A pair with room for ROOM segments, and what else is granted: stuck for good, say."""
    pair = Pair(mode, pool_pages=ROOM if of == "pages" else 352, nr_ios=8, frames_per_io=32)
    others = [pair.grant(0) for _ in range(504 - ROOM)] if of == "grants" else []
    return pair, others


@pytest.mark.parametrize(("mode", "of"), SHORT)
def test_what_never_fits_fails_and_what_fits_is_done(mode: str, of: str) -> None:
    pair, others = short(mode, of)
    sizes = [8 * (ROOM + 1), 8 * ROOM, 88, 200, 8]
    for io, nr_sectors in enumerate(sizes):
        pair.queue(io, (READ, WRITE)[io % 2], 0, nr_sectors)
    assert sorted(pair.run()) == list(range(5))
    statuses = pair.front.ios["status"][:5].tolist()
    assert statuses == [NO_ROOM, OKAY, NO_ROOM, NO_ROOM, OKAY]
    check_whole(pair.front, *others)
    pair.check()


@pytest.mark.parametrize(("mode", "of"), SHORT)
def test_the_ring_sees_nothing_of_it(mode: str, of: str) -> None:
    pair, _ = short(mode, of)
    before = pair.ring_page.tobytes()
    pair.queue(3, WRITE, 0, 88)
    assert pair.front_until() == DONE
    assert pair.take_done() == [3]
    assert pair.ring_page.tobytes() == before


def test_what_does_not_fit_beside_others_waits_for_them() -> None:
    pair, _ = short("non-persistent", "grants")
    pair.queue(0, READ, 0, 8)
    pair.queue(1, READ, 0, 8 * ROOM)
    assert [pair.front_until() for _ in range(2)] == [WAKE, WAIT]
    assert pair.counts()["requests"] == 1
    assert pair.front.ios["status"][1] == NOT_DONE
    assert pair.run() == [0, 1]
    assert pair.front.ios["status"][:2].tolist() == [OKAY, OKAY]


def test_the_rest_of_a_large_io_may_find_no_room_any_more() -> None:
    pair = Pair("non-persistent", frames_per_io=32)
    others = [pair.grant(0) for _ in range(504 - 21)]
    pair.queue(0, READ, 0, 200)
    assert [pair.front_until() for _ in range(2)] == [WAKE, WAIT]
    assert pair.counts()["requests"] == 1  # of three: 10 entries are left
    others += [pair.grant(0) for _ in range(10)]
    pair.answer_raw((0, READ, OKAY))
    assert pair.front_until(steps.TURN) == STOP
    others.append(pair.grant(0))
    assert pair.front.front["done"][0] == 0
    assert pair.front_until() == DONE  # 10 again, and nothing in flight to wait for
    assert pair.counts()["requests"] == 1
    check_whole(pair.front, *others)
    assert pair.take_done() == [0]
    assert pair.front.ios["status"][0] == NO_ROOM
    assert pair.front.front["queued"][0] == 0


@pytest.mark.parametrize(("mode", "of"), SHORT)
@pytest.mark.parametrize("iodepth", [1, 4])
def test_a_load_of_such_ios_ends_and_counts_them(mode: str, of: str, iodepth: int) -> None:
    pair, others = short(mode, of)
    plan = LoadPlan("randrw", 6 * 4096, iodepth, 50, 50, None, 1, True)
    versions = np.zeros(pair.store.nr_sectors, np.uint32)
    job = new_load(Arena(), plan, pair.front, versions, pair.latency, 1, 0)
    pair.driver.run_one(0, job, lambda: None)
    counts = pair.counts()
    assert (counts["ios"], counts["io_errors"], counts["requests"]) == (50, 50, 0)
    assert counts["verify_errors"] == 0
    assert not job.busy.any()
    check_whole(pair.front, *others)


def test_a_block_device_says_why() -> None:
    pair, _ = short("persistent", "pages")
    first = pair.buffer_frame
    buffers = pair.ram[first * XEN_PAGE_SIZE :]
    said = Disk(pair.store.nr_sectors, 512, True, read_only=False)
    disk = BlockDevice(pair.driver, 0, said, buffers, first, lambda *_: None, lambda: None)
    with pytest.raises(OSError, match="sector 8: this guest has too few free pages or grant") as no:
        disk.read(4096, 11 * 4096)
    assert no.value.errno == errno.EIO
    assert disk.read(0, ROOM * 4096) == bytes(ROOM * 4096)
