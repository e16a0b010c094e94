"""What a request asks for: parsed once, as Xen's io/blkif.h lays it out, and refused until a store
has it.
"""

from typing import Any

import numpy as np
import pytest

from backend import blkback
from backend.slots import BARRIER, DISCARD, FLUSH, KINDS
from backend.slots import READ as KIND_READ
from backend.slots import WRITE as KIND_WRITE
from common import abi
from common.ring import REQ
from machine.back import own_frames
from tests.backend.late import DISK_SECTORS, Late
from tests.pair import EOPNOTSUPP, ERROR, GRANT_COPY, MODES, OKAY, READ, WRITE, Pair, Raw

ALL = sum(1 << kind for kind in (BARRIER, FLUSH, DISCARD))
OPERATIONS = {
    KIND_READ: READ,
    KIND_WRITE: WRITE,
    BARRIER: abi.BLKIF_OP_WRITE_BARRIER,
    FLUSH: abi.BLKIF_OP_FLUSH_DISKCACHE,
    DISCARD: abi.BLKIF_OP_DISCARD,
}
OPTIONAL = [BARRIER, FLUSH, DISCARD]


def late(features: int = ALL, **options: Any) -> tuple[Late, int]:
    """A pair that serves these kinds, and a gref."""
    pair = Late(**options)
    pair.back.back["features"] |= features
    return pair, pair.grant(pair.buffer_frame)


def discard(sector: int, nr_sectors: int, flag: int = 0) -> np.ndarray:
    request = np.zeros(1, abi.BLKIF_REQUEST_DISCARD)
    request["operation"], request["flag"], request["id"] = abi.BLKIF_OP_DISCARD, flag, 5
    request["sector_number"], request["nr_sectors"] = sector, nr_sectors
    return request


def ask_discard(pair: Pair, request: np.ndarray) -> list[tuple[int, int, int]]:
    """`Pair.ask` of a discard."""
    at = int(pair.front.words[REQ]) % 32
    raw = Raw()
    pair.push_raw(raw)
    pair.slots[at : at + 1].view(np.uint8)[:] = request.view(np.uint8)
    first = int(pair.back.words[2])
    pair.serve()
    count = int(pair.back.words[2]) - first
    return [pair.responses[(first + each) % 32].item() for each in range(count)]


@pytest.mark.parametrize("kind", OPERATIONS)
def test_each_operation_is_a_kind(kind: int) -> None:
    pair, gref = late()
    if kind == DISCARD:
        request = discard(8, 4)
        request["id"] = 77
        assert ask_discard(pair, request) == []
    else:
        assert pair.ask(Raw([(gref, 1, 3)], OPERATIONS[kind], 8, 77)) == []
    row = pair.back.requests[pair.at_store[0]]
    assert KINDS[row["kind"]] == KINDS[kind]
    assert (row["id"], row["sector"], row["operation"]) == (77, 8, OPERATIONS[kind])
    if kind != DISCARD:
        assert (row["nr_segments"], row["nr_sectors"]) == (1, 3)


@pytest.mark.parametrize("kind", OPTIONAL)
def test_a_kind_that_the_store_has_not_is_eopnotsupp(kind: int) -> None:
    """Also if its form is bad, and if the disk is read-only."""
    for read_only in (False, True):
        pair, gref = late(ALL & ~(1 << kind), read_only=read_only)
        operation = OPERATIONS[kind]
        for raw in (Raw([(gref, 0, 7)], operation), Raw([(gref, 7, 0)], operation, 1 << 63)):
            assert pair.ask(raw) == [(0, operation, EOPNOTSUPP)]
        assert pair.counts()["bad_requests"] == 2


@pytest.mark.parametrize("kind", [KIND_WRITE, *OPTIONAL])
def test_on_a_read_only_disk_all_but_reads_are_errors(kind: int) -> None:
    pair, gref = late(read_only=True)
    operation = OPERATIONS[kind]
    assert pair.ask(Raw([(gref, 0, 7)], operation)) == [(0, operation, ERROR)]
    assert pair.at_store == []


@pytest.mark.parametrize("kind", [BARRIER, FLUSH])
@pytest.mark.parametrize("sector", [0, DISK_SECTORS, (1 << 64) - 1])
def test_a_flush_or_barrier_of_no_segments_may_name_any_sector(kind: int, sector: int) -> None:
    """Linux's blkfront sends them with what happens to be there."""
    pair, _ = late()
    assert pair.ask(Raw([], OPERATIONS[kind], sector)) == []
    assert pair.back.requests["nr_sectors"][pair.at_store[0]] == 0


@pytest.mark.parametrize("kind", [BARRIER, FLUSH])
def test_with_segments_they_are_checked_as_a_write_is(kind: int) -> None:
    pair, gref = late()
    operation = OPERATIONS[kind]
    for raw in (
        Raw([(gref, 0, 7)], operation, DISK_SECTORS - 7),
        Raw([(gref, 0, 8)], operation),
        Raw([(gref, 3, 2)], operation),
        Raw([(gref, 0, 7)], operation, nr_segments=12),
    ):
        assert pair.ask(raw) == [(0, operation, ERROR)]
    assert pair.counts()["bad_requests"] == 4


@pytest.mark.parametrize("flag", [0, 1, 255])
def test_a_discard_names_sectors_and_no_segments(flag: int) -> None:
    """The flag is where `nr_segments` is; secure is ignored, as `discard-secure` is not offered."""
    pair, _ = late()
    assert ask_discard(pair, discard(3, DISK_SECTORS - 3, flag)) == []
    row = pair.back.requests[pair.at_store[0]]
    assert (row["id"], row["sector"], row["nr_sectors"]) == (5, 3, DISK_SECTORS - 3)
    assert row["nr_segments"] == 0


@pytest.mark.parametrize(
    ("sector", "nr_sectors"),
    [
        (0, DISK_SECTORS + 1),
        (DISK_SECTORS, 1),
        (1, DISK_SECTORS),
        (1, (1 << 64) - 1),
        ((1 << 64) - 1, 1),
        ((1 << 64) - 8, 8),
        (1 << 63, 1 << 63),
    ],
)
def test_a_discard_past_the_end_is_an_error(sector: int, nr_sectors: int) -> None:
    pair, _ = late()
    answer = (5, abi.BLKIF_OP_DISCARD, ERROR)
    assert ask_discard(pair, discard(sector, nr_sectors)) == [answer]
    assert pair.at_store == []


# --- a null store -----------------------------------------------------------------------------


def on_nothing(mode: str, gather_max: int) -> Pair:
    pair = Pair(mode, gather_max=gather_max)
    pair.back.back["store_door"], pair.back.back["store"] = blkback.NOTHING, 1
    return pair


@pytest.mark.parametrize("gather_max", [1, 32])
@pytest.mark.parametrize("mode", MODES)
def test_a_null_store_is_okay_and_moves_nothing_but_all_else_happens(
    mode: str, gather_max: int
) -> None:
    null, ram = on_nothing(mode, gather_max), Pair(mode, gather_max=gather_max)
    for pair in (null, ram):
        grefs = [pair.grant(pair.buffer_frame + at) for at in range(22)]
        segments = [[(gref, 0, 7) for gref in grefs[at : at + 11]] for at in (0, 11)]
        asked = [Raw(segments[0], WRITE, 0, 1), Raw(segments[1], READ, 0, 2), Raw(operation=9)]
        statuses = [status for _, _, status in pair.ask(*asked, Raw([(300, 0, 7)]))]
        assert statuses == [OKAY, OKAY, EOPNOTSUPP, ERROR]
        pair.check()
        pair.disconnect()
    costs = [pair.counts() for pair in (null, ram)]
    assert costs[0] == costs[1]
    assert null.hypercalls == ram.hypercalls


@pytest.mark.parametrize("mode", sorted({*MODES} - {GRANT_COPY}))
def test_what_is_read_of_a_null_store_is_what_the_page_held(mode: str) -> None:
    pair = on_nothing(mode, 1)
    pair.frame(pair.buffer_frame)[:] = 0x66
    pair.ask(Raw([(pair.grant(pair.buffer_frame), 0, 7)]))
    assert (pair.frame(pair.buffer_frame) == 0x66).all()


def test_what_is_copied_of_a_null_store_is_no_other_guests() -> None:
    """dom0's own pages are copied out, whatever they hold: nothing, to begin with."""
    ram = np.full(5 * abi.XEN_PAGE_SIZE, 0x77, np.uint8)
    own_frames(2, ram, 1)
    assert ram.reshape(5, -1).any(axis=1).tolist() == [True, False, False, True, True]
    pair = on_nothing(GRANT_COPY, 1)
    pair.frame(pair.buffer_frame)[:] = 0x66
    pair.ask(Raw([(pair.grant(pair.buffer_frame), 0, 7)]))
    assert not pair.frame(pair.buffer_frame).any()
