"""Serving by grant copy: the data, the hypercalls, what a bad grant costs, nothing left over."""

import random

import numpy as np
import pytest

from common import abi
from common.abi import XEN_PAGE_SIZE
from frontend.grants import end_access, grant_access
from tests.pair import EOPNOTSUPP, ERROR, GRANT_COPY, OKAY, READ, WRITE, CallbackStore, Pair, Raw

DISK_SECTORS = 512
BATCHINGS = pytest.mark.parametrize("gather_max", [1, 32])
FRAMES = 33  # granted one by one from the first buffer's on
STRANGER = 2


def copying(gather_max: int = 1, **options: object) -> tuple[Pair, list[int]]:
    """A pair that copies, with FRAMES pages granted; each sector of disk and page is its own."""
    pair = Pair(GRANT_COPY, gather_max=gather_max, **options)  # type: ignore[arg-type]
    grefs = [pair.grant(pair.buffer_frame + at) for at in range(FRAMES)]
    if pair.store.memory is not None:
        disk(pair)[:] = np.random.default_rng(1).integers(0, 256, (DISK_SECTORS, 512))
    sectors(pair)[:] = np.random.default_rng(2).integers(0, 256, (8 * FRAMES, 512))
    return pair, grefs


def disk(pair: Pair) -> np.ndarray:
    assert pair.store.memory is not None
    return pair.store.memory.reshape(-1, 512)


def sectors(pair: Pair) -> np.ndarray:
    """The granted pages, sector by sector."""
    start = pair.buffer_frame * XEN_PAGE_SIZE
    return pair.ram[start : start + FRAMES * XEN_PAGE_SIZE].reshape(-1, 512)


def nothing_is_left(pair: Pair) -> None:
    pair.check()
    counts = pair.counts()
    assert counts["map_ops"] == counts["unmap_ops"] == counts["flushes"] == counts["ipis"] == 0
    guest = pair.hypervisor.domains.find(1)
    assert guest is not None
    assert not guest.grants.active["pin"].any()


def whole(grefs: list[int]) -> list[tuple[int, int, int]]:
    return [(gref, 0, 7) for gref in grefs]


# --- data and hypercalls ----------------------------------------------------------------------


@BATCHINGS
@pytest.mark.parametrize("nr_segments", [1, 2, 11])
def test_a_read_and_a_write_are_one_hypercall_each(gather_max: int, nr_segments: int) -> None:
    pair, grefs = copying(gather_max)
    segments, length = whole(grefs[:nr_segments]), 8 * nr_segments
    assert pair.ask(Raw(segments, WRITE, 0)) == [(0, WRITE, OKAY)]
    assert (disk(pair)[:length] == sectors(pair)[:length]).all()
    assert pair.ask(Raw(segments, READ, 100)) == [(0, READ, OKAY)]
    assert (disk(pair)[100 : 100 + length] == sectors(pair)[:length]).all()
    assert pair.hypercalls == [("copy", nr_segments)] * 2
    assert pair.counts()["hypercalls"] == 2
    assert pair.counts()["copy_ops"] == pair.counts()["back_segments"] == 2 * nr_segments
    nothing_is_left(pair)


@BATCHINGS
def test_partial_segments_move_their_own_sectors_only(gather_max: int) -> None:
    pair, grefs = copying(gather_max)
    on_disk, in_pages = disk(pair).copy(), sectors(pair).copy()
    segments = [(grefs[0], 5, 7), (grefs[2], 0, 0), (grefs[0], 0, 1)]
    assert pair.ask(Raw(segments, READ, 40)) == [(0, READ, OKAY)]
    in_pages[5:8], in_pages[16], in_pages[0:2] = on_disk[40:43], on_disk[43], on_disk[44:46]
    assert (sectors(pair) == in_pages).all()
    assert pair.ask(Raw([(grefs[3], 2, 4), (grefs[3], 7, 7)], WRITE, 9)) == [(0, WRITE, OKAY)]
    on_disk[9:12], on_disk[12] = in_pages[26:29], in_pages[31]
    assert (disk(pair) == on_disk).all()
    nothing_is_left(pair)


@pytest.mark.parametrize(
    ("gather_max", "hypercalls"),
    [
        (1, [("copy", 1), ("copy", 2), ("copy", 3), ("copy", 4)]),
        (2, [("copy", 1), ("copy", 2), ("copy", 3), ("copy", 4)]),
        (32, [("copy", 6), ("copy", 4)]),
    ],
)
def test_a_mixed_batch_copies_in_for_its_writes_and_out_for_its_reads(
    gather_max: int, hypercalls: list[tuple[str, int]]
) -> None:
    pair, grefs = copying(gather_max)
    on_disk, in_pages = disk(pair).copy(), sectors(pair).copy()
    asked = [
        Raw(whole(grefs[:1]), READ, 0, 1),
        Raw(whole(grefs[1:3]), WRITE, 100, 2),
        Raw(whole(grefs[3:6]), READ, 100, 3),  # what was just written, and one page more
        Raw(whole(grefs[6:10]), WRITE, 0, 4),  # what was read before
    ]
    answers = pair.ask(asked[0], Raw(operation=9, id=7), *asked[1:])
    assert [ident for ident, _, _ in answers] == [1, 7, 2, 3, 4]
    assert [status for _, _, status in answers] == [OKAY, EOPNOTSUPP, OKAY, OKAY, OKAY]
    assert pair.hypercalls == hypercalls
    on_disk[100:116] = in_pages[8:24]
    in_pages[:8], in_pages[24:48] = on_disk[:8], on_disk[100:124]
    on_disk[:32] = in_pages[48:80]
    assert (disk(pair) == on_disk).all()
    assert (sectors(pair) == in_pages).all()
    assert pair.counts()["copy_ops"] == 10
    nothing_is_left(pair)


@BATCHINGS
def test_one_gref_may_be_named_in_every_segment_there_is(gather_max: int) -> None:
    """A copy's pin is gone before the next: more than the 128 that can be mapped at once."""
    pair, grefs = copying(gather_max)
    answers = pair.ask(*(Raw(whole(grefs[:1] * 11), WRITE, 0, ident) for ident in range(32)))
    assert answers == [(ident, WRITE, OKAY) for ident in range(32)]
    assert pair.counts()["copy_ops"] == 32 * 11
    nothing_is_left(pair)


# --- bad grants -------------------------------------------------------------------------------


def bad_gref(pair: Pair, kind: str) -> int:
    if kind == "granted to another domain":
        return int(grant_access(pair.front.grants, STRANGER, pair.buffer_frame, False))
    if kind == "read-only":
        return pair.grant(pair.buffer_frame, readonly=True)
    if kind == "behind the RAM":
        return pair.grant(len(pair.ram) // XEN_PAGE_SIZE)
    return {"never granted": 300, "reserved": 0, "no such": 512, "huge": (1 << 32) - 1}[kind]


KINDS = ["granted to another domain", "behind the RAM", "never granted", "reserved", "no such"]
REFUSED = [(kind, operation) for kind in [*KINDS, "huge"] for operation in (READ, WRITE)]


@BATCHINGS
@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize(("kind", "operation"), [*REFUSED, ("read-only", READ)])
def test_a_refused_copy_fails_its_request_only(
    kind: str, operation: int, place: int, gather_max: int
) -> None:
    pair, grefs = copying(gather_max)
    bad, on_disk = bad_gref(pair, kind), disk(pair).copy()
    segments = whole(grefs[:3])
    segments[place] = (bad, 0, 7)
    asked = [Raw(whole(grefs[4:5]), WRITE, 200, 1), Raw(segments, operation, 0, 2)]
    asked.append(Raw(whole(grefs[5:6]), READ, 200, 3))
    answers = pair.ask(*asked)
    assert answers == [(1, WRITE, OKAY), (2, operation, ERROR), (3, READ, OKAY)]
    on_disk[200:208] = sectors(pair)[32:40]
    assert (disk(pair) == on_disk).all()  # nothing of a refused write, not even its sound part
    assert (sectors(pair)[40:48] == on_disk[200:208]).all()
    counts = pair.counts()
    assert (counts["failed_ops"], counts["back_io_errors"], counts["copy_ops"]) == (1, 1, 4)
    nothing_is_left(pair)
    assert pair.ask(Raw(whole(grefs[:1]), id=9)) == [(9, READ, OKAY)]
    nothing_is_left(pair)


def test_a_read_only_grant_serves_a_write() -> None:
    pair, _ = copying()
    gref = bad_gref(pair, "read-only")
    assert pair.ask(Raw([(gref, 0, 7)], WRITE)) == [(0, WRITE, OKAY)]
    assert (disk(pair)[:8] == sectors(pair)[:8]).all()
    nothing_is_left(pair)


# --- what may not be left behind --------------------------------------------------------------


@BATCHINGS
@pytest.mark.parametrize("callbacks", [False, True])
def test_slots_never_leak_and_every_grant_can_be_ended(gather_max: int, callbacks: bool) -> None:
    store = CallbackStore(DISK_SECTORS) if callbacks else None
    pair, grefs = copying(gather_max, store=store, start=(1 << 32) - 100)
    rng, named = random.Random(gather_max), [*grefs, 0, 300]
    for _ in range(30):
        requests = [
            Raw(
                whole(rng.choices(named, k=rng.randint(1, 11))),
                rng.choice([READ, WRITE, WRITE, 3]),
                rng.choice([0, 8, 400, 500]),
            )
            for _ in range(rng.randint(1, 32))
        ]
        assert len(pair.ask(*requests)) == len(requests)
        nothing_is_left(pair)
    assert pair.counts()["failed_ops"] > 0
    assert pair.disconnect() == 0
    assert all(end_access(pair.front.grants, gref) for gref in grefs)


@pytest.mark.parametrize("callbacks", [False, True])
def test_the_accessed_words_of_live_handles_are_not_touched(callbacks: bool) -> None:
    pair, grefs = copying(32, store=CallbackStore(DISK_SECTORS) if callbacks else None)
    op = np.zeros(1, abi.GNTTAB_MAP_GRANT_REF)
    op["host_addr"], op["flags"], op["ref"], op["dom"] = 1 << 40, abi.GNTMAP_HOST_MAP, grefs[0], 1
    args, number = bytearray(op.tobytes()), abi.HYPERVISOR_GRANT_TABLE_OP
    cmd = abi.GNTTABOP_MAP_GRANT_REF
    assert pair.hypervisor.hypercall(abi.DOMID_0, 0, number, cmd, args, False) == 0
    answer = np.frombuffer(args, abi.GNTTAB_MAP_GRANT_REF)
    assert answer["status"][0] == abi.GNTST_OKAY
    handle = int(answer["handle"][0])
    pair.ask(Raw(whole(grefs[:11]), WRITE), Raw(whole(grefs[:11]), READ))
    touched = set((np.flatnonzero(pair.accessed) // 4).tolist())
    assert handle not in touched
    assert touched <= {len(pair.accessed) // 4 - 1}


# --- a store that fails -----------------------------------------------------------------------


class Scratched(CallbackStore):
    """Sector 16 cannot be read; what was read before it has been read."""

    def read(self, offset: int, into: np.ndarray) -> None:
        if offset <= 16 * 512 < offset + len(into):
            into[:] = 0xBD
            raise OSError(5, "scratched")
        super().read(offset, into)


@BATCHINGS
def test_what_a_failed_read_found_is_not_copied_to_the_guest(gather_max: int) -> None:
    pair, grefs = copying(gather_max, store=Scratched(DISK_SECTORS))
    before = sectors(pair).copy()
    answers = pair.ask(
        Raw(whole(grefs[:3]), READ, 0, 1),
        Raw(whole(grefs[3:4]), WRITE, 64, 2),
        Raw(whole(grefs[4:5]), READ, 64, 3),
    )
    assert answers == [(1, READ, ERROR), (2, WRITE, OKAY), (3, READ, OKAY)]
    before[32:40] = before[24:32]
    assert (sectors(pair) == before).all()
    assert pair.counts()["copy_ops"] == 2
    assert pair.counts()["back_io_errors"] == 1
    nothing_is_left(pair)
