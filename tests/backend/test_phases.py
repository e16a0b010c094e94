"""What the backend does with a request, honest or not: answered, and nothing lost on the way."""

import random
from collections.abc import Sequence

import numpy as np
import pytest

from backend.blkback import BROKEN_RING
from common import effects
from common.abi import GRANT_ENTRY_V1, GTF_READING, GTF_WRITING, XEN_PAGE_SIZE
from common.atomics import load_acquire, store_release
from common.ring import REQ, RSP
from frontend.grants import end_access
from hypervisor.cpus import POLICIES
from tests.pair import (
    EOPNOTSUPP,
    ERROR,
    GRANT_COPY,
    MAPPING_MODES,
    MODES,
    OKAY,
    READ,
    WRITE,
    CallbackStore,
    Pair,
    Raw,
)

DISK_SECTORS = 512
GREF = 8  # of the one page that `with_page` grants
WHOLE = [(GREF, 0, 7)]
REQUESTS_HELD = 32


def with_page(mode: str = "persistent", **options: object) -> Pair:
    """A pair whose guest has granted its first buffer frame as GREF; the disk holds 0x11."""
    pair = Pair(mode, **options)  # type: ignore[arg-type]
    assert pair.grant(pair.buffer_frame) == GREF
    assert pair.store.memory is not None
    pair.store.memory[:] = 0x11
    return pair


def page(pair: Pair) -> np.ndarray:
    return pair.frame(pair.buffer_frame)


def disk(pair: Pair) -> np.ndarray:
    assert pair.store.memory is not None
    return pair.store.memory.reshape(-1, 512)


def goes_on(pair: Pair) -> None:
    """The ring still serves, the disk is as it was, and nothing is lost."""
    assert pair.ask(Raw(WHOLE, id=99)) == [(99, READ, OKAY)]
    assert (page(pair) == 0x11).all()
    assert (disk(pair) == 0x11).all()
    pair.check()


# --- bad requests -----------------------------------------------------------------------------

REFUSED: dict[str, tuple[Raw, int]] = {
    **{
        f"operation {operation}": (Raw(WHOLE, operation=operation), EOPNOTSUPP)
        for operation in (2, 3, 4, 5, 6, 7, 255)
    },
    **{
        f"{count} segments": (Raw(WHOLE, nr_segments=count), ERROR)
        for count in (0, 12, 13, 128, 255)
    },
    "first after last": (Raw([(GREF, 3, 2)]), ERROR),
    "last is 8": (Raw([(GREF, 0, 8)]), ERROR),
    "last is 255": (Raw([(GREF, 0, 255)]), ERROR),
    "first and last are 8": (Raw([(GREF, 8, 8)]), ERROR),
    "only the last segment is bad": (Raw([*WHOLE, *WHOLE, (GREF, 7, 0)]), ERROR),
    "sector is the disk's size": (Raw(WHOLE, sector=DISK_SECTORS), ERROR),
    "the last sector is past the end": (Raw(WHOLE, sector=DISK_SECTORS - 7), ERROR),
    "the second segment is past the end": (Raw(WHOLE * 2, sector=DISK_SECTORS - 8), ERROR),
    "sector 2^63": (Raw(WHOLE, sector=1 << 63), ERROR),
    "sector 2^64 - 1": (Raw(WHOLE, sector=(1 << 64) - 1), ERROR),
    "sector 2^64 - 8, so that the end is 0": (Raw(WHOLE, sector=(1 << 64) - 8), ERROR),
    "sector 2^64 / 512": (Raw(WHOLE, sector=1 << 55), ERROR),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("request_", "status"), REFUSED.values(), ids=REFUSED)
def test_a_bad_request_is_answered_and_never_tried(mode: str, request_: Raw, status: int) -> None:
    pair = with_page(mode)
    with pair.counting() as cost:
        assert pair.ask(request_._replace(id=7)) == [(7, request_.operation, status)]
    assert (cost["bad_requests"], cost["back_requests"], cost["hypercalls"]) == (1, 1, 0)
    assert (cost["back_segments"], cost["back_io_errors"]) == (0, 0)
    goes_on(pair)


@pytest.mark.parametrize("ident", [0, 31, 32, (1 << 63) + 5, (1 << 64) - 1])
def test_whatever_id_a_request_has_its_answer_has_too(ident: int) -> None:
    pair = with_page()
    answers = [(ident, READ, OKAY), (ident, 77, EOPNOTSUPP)]
    assert pair.ask(Raw(WHOLE, id=ident), Raw(operation=77, id=ident)) == answers


def test_a_request_that_ends_with_the_disk_is_good() -> None:
    pair = with_page()
    assert pair.ask(Raw(WHOLE, sector=DISK_SECTORS - 8)) == [(0, READ, OKAY)]


@pytest.mark.parametrize("gather_max", [1, 32])
def test_a_write_to_a_read_only_disk_is_an_error_and_a_read_is_not(gather_max: int) -> None:
    pair = with_page(read_only=True, gather_max=gather_max)
    page(pair)[:] = 0x22
    answers = pair.ask(Raw(WHOLE, WRITE, id=1), Raw(WHOLE, READ, id=2), Raw(WHOLE, WRITE, id=3))
    assert answers == [(1, WRITE, ERROR), (2, READ, OKAY), (3, WRITE, ERROR)]
    goes_on(pair)


@pytest.mark.parametrize("gather_max", [1, 32])
def test_bad_requests_among_good_ones_are_each_answered_in_order(gather_max: int) -> None:
    pair = with_page(gather_max=gather_max)
    bad = [request for request, _ in REFUSED.values()][:15]
    mixed = [raw for request in bad for raw in (request, Raw(WHOLE))]
    answers = pair.ask(*(raw._replace(id=at) for at, raw in enumerate(mixed)))
    assert [ident for ident, _, _ in answers] == list(range(30))
    assert [status for _, _, status in answers[1::2]] == [OKAY] * 15
    assert [status for _, _, status in answers[::2]] == [s for _, s in REFUSED.values()][:15]
    goes_on(pair)


# --- bad grants -------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("gref", [0, 7, 9, 511, 512, 1 << 31, (1 << 32) - 1])
def test_a_gref_that_grants_nothing_fails_its_request_only(mode: str, gref: int) -> None:
    pair = with_page(mode)
    with pair.counting() as cost:
        answers = pair.ask(Raw([(gref, 0, 7)], id=1), Raw(WHOLE, id=2))
    assert answers == [(1, READ, ERROR), (2, READ, OKAY)]
    assert (cost["failed_ops"], cost["back_io_errors"], cost["bad_requests"]) == (1, 1, 0)
    goes_on(pair)


@pytest.mark.parametrize(
    ("mode", "kept", "unmaps"), [("persistent", 1, 0), ("non-persistent", 0, 1)]
)
@pytest.mark.parametrize("place", [0, 1])
def test_a_bad_gref_beside_a_good_one_loses_no_mapping(
    mode: str, kept: int, unmaps: int, place: int
) -> None:
    pair = with_page(mode)
    segments = [(GREF, 0, 7), (GREF, 0, 7)]
    segments[place] = (100, 0, 7)
    page(pair)[:] = 0x33
    with pair.counting() as cost:
        assert pair.ask(Raw(segments, WRITE)) == [(0, WRITE, ERROR)]
    assert (disk(pair) == 0x11).all()  # not half of it either
    assert (cost["map_ops"], cost["unmap_ops"], pair.kept) == (1, unmaps, kept)
    pair.check()


def test_a_read_only_grant_serves_a_write_where_nothing_is_kept() -> None:
    pair = with_page("non-persistent")
    gref = pair.grant(pair.buffer_frame + 1, readonly=True)
    pair.frame(pair.buffer_frame + 1)[:] = 0x44
    answers = pair.ask(Raw([(gref, 0, 7)], WRITE, 8, 1), Raw([(gref, 0, 7)], READ, 16, 2))
    assert answers == [(1, WRITE, OKAY), (2, READ, ERROR)]
    assert (disk(pair)[8:16] == 0x44).all()
    assert (pair.frame(pair.buffer_frame + 1) == 0x44).all()
    pair.check()


def test_a_page_to_be_kept_must_be_granted_writable() -> None:
    pair = with_page("persistent")
    gref = pair.grant(pair.buffer_frame + 1, readonly=True)
    assert pair.ask(Raw([(gref, 0, 7)], WRITE)) == [(0, WRITE, ERROR)]
    goes_on(pair)


def test_a_frame_outside_of_the_guests_memory_is_refused() -> None:
    pair = with_page()
    gref = pair.grant(len(pair.ram) // XEN_PAGE_SIZE)
    assert pair.ask(Raw([(gref, 0, 7)])) == [(0, READ, ERROR)]
    goes_on(pair)


# --- one gref more than once (in 2012: BUG() in dom0) -----------------------------------------

HALVES = [(GREF, 0, 3), (GREF, 4, 7)]


@pytest.mark.parametrize("mode", MAPPING_MODES)
def test_one_gref_twice_in_a_request_is_mapped_twice(mode: str) -> None:
    pair = with_page(mode)
    disk(pair)[:4], disk(pair)[4:8] = 0x55, 0x66
    with pair.counting() as cost:
        assert pair.ask(Raw(HALVES)) == [(0, READ, OKAY)]
    assert (page(pair)[:2048] == 0x55).all() and (page(pair)[2048:] == 0x66).all()
    assert cost["map_ops"] == 2
    assert cost["unmap_ops"] == (1 if mode == "persistent" else 2)
    pair.check()


def test_a_kept_gref_twice_in_a_request_is_mapped_once_more() -> None:
    pair = with_page()
    pair.ask(Raw(WHOLE))
    with pair.counting() as cost:
        assert pair.ask(Raw(HALVES)) == [(0, READ, OKAY)]
    assert (cost["map_ops"], cost["unmap_ops"], cost["overflow_segments"]) == (1, 1, 1)
    assert pair.kept == 1
    goes_on(pair)


@pytest.mark.parametrize("warm", [False, True])
def test_one_gref_in_all_requests_in_flight_is_kept_once(warm: bool) -> None:
    pair = with_page(gather_max=32)
    if warm:
        pair.ask(Raw(WHOLE))
    with pair.counting() as cost:
        answers = pair.ask(*(Raw([*WHOLE] * 11, READ, 0, ident) for ident in range(5)))
    assert answers == [(ident, READ, OKAY) for ident in range(5)]
    assert (cost["map_ops"], cost["unmap_ops"]) == (55 - warm, 54)
    assert (cost["map_hypercalls"], cost["unmap_hypercalls"]) == (1, 1)
    assert pair.kept == 1
    goes_on(pair)


def test_one_gref_at_most_128_times_at_once_and_then_errors() -> None:
    """A pin is 8 bits and takes no more once it is half full; who asks for more hurts itself."""
    pair = with_page("non-persistent", gather_max=32)
    answers = pair.ask(*(Raw([*WHOLE] * 11, READ, 0, ident) for ident in range(32)))
    assert [status for _, _, status in answers] == [OKAY] * 11 + [ERROR] * 21
    goes_on(pair)


def test_the_ring_page_itself_may_be_named_and_only_the_guest_is_hurt() -> None:
    pair = with_page()
    gref = pair.grant(0)
    pair.push_raw(Raw([(gref, 0, 7)], id=5))
    pair.serve()  # req_prod is now what the disk holds
    assert pair.breaks == 1
    pair.check()


# --- one copy ---------------------------------------------------------------------------------


# Of a request that is mapped: its slot is the backend's from RESPOND on.
AFTER_THE_COPY = (
    "TAKE", "ARM_TAKEN", "PLAN", "MAP", "MAPPED", "MOVE", "RELEASE", "EMPTY", "UNMAP", "UNMAPPED"
)  # fmt: skip


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("operation", WRITE),
        ("nr_segments", 255),
        ("id", 1234),
        ("sector_number", (1 << 64) - 1),
        ("seg", (0, 0, 255)),
    ],
)
@pytest.mark.parametrize("after", AFTER_THE_COPY)
def test_what_a_guest_changes_after_the_copy_changes_nothing(
    field: str, value: object, after: str
) -> None:
    pair = with_page("non-persistent")
    disk(pair)[:8] = 0x77
    pair.push_raw(Raw(WHOLE, id=42))
    changed = 0
    for phase in pair.batch():
        if phase == after:
            pair.slots[0][field] = value
            changed += 1
    assert changed == 1
    assert (page(pair) == 0x77).all()
    assert (disk(pair)[8:] == 0x11).all()
    response = pair.slots[0].tobytes()[:12]
    assert response == bytes([42, *[0] * 7, READ, response[9], 0, 0])
    pair.check()


@pytest.mark.parametrize("after", ["MAP", "MAPPED"])
def test_a_grant_taken_back_after_the_map_does_not_pull_the_page_away(after: str) -> None:
    pair = with_page("non-persistent")
    pair.push_raw(Raw(WHOLE))
    for phase in pair.batch():
        if phase == after:
            assert not end_access(pair.front.grants, GREF)
            pair.front.grants.entries[2 * GREF + 1] = 0  # the ring page, it would say
    assert pair.front.grants.entries[2 * GREF + 1] == 0
    assert (page(pair) == 0x11).all()


# --- the ring ---------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [0, (1 << 32) - 5])
@pytest.mark.parametrize("ahead", [33, 1000, 1 << 31, (1 << 32) - 1])
def test_more_requests_than_the_ring_holds_break_it_once_and_for_good(
    start: int, ahead: int
) -> None:
    pair = with_page(start=start)
    pair.push_raw()
    store_release(pair.back.words, REQ, np.uint32((start + ahead) & 0xFFFFFFFF))
    pair.serve()
    assert pair.breaks == 1
    assert load_acquire(pair.back.words, RSP) == start
    store_release(pair.back.words, REQ, np.uint32(start))
    pair.push_raw(Raw(WHOLE))  # a lie taken back does not mend it
    assert pair.back_until() == effects.BROKEN
    assert pair.back.back["broken"][0] == BROKEN_RING
    assert pair.counts()["back_requests"] == 0


@pytest.mark.parametrize("start", [0, (1 << 32) - 5])
def test_a_full_ring_is_served(start: int) -> None:
    pair = with_page(start=start)
    answers = pair.ask(*(Raw(WHOLE, id=ident) for ident in range(REQUESTS_HELD)))
    assert answers == [(ident, READ, OKAY) for ident in range(REQUESTS_HELD)]


def test_a_response_carries_no_stale_bytes() -> None:
    pair = with_page()
    pair.ring_page[64:176] = 0xFF
    assert pair.ask(Raw(WHOLE, id=0x0102030405060708)) == [(0x0102030405060708, READ, OKAY)]
    assert pair.ring_page[64 + 8 : 64 + 16].tobytes() == bytes(8)


# --- data -------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_a_partial_write_leaves_other_sectors_alone(mode: str) -> None:
    pair = with_page(mode)
    page(pair).reshape(8, 512)[:] = np.arange(8)[:, None]
    assert pair.ask(Raw([(GREF, 2, 4), (GREF, 7, 7)], WRITE, 10)) == [(0, WRITE, OKAY)]
    assert disk(pair)[:, 0].tolist() == [0x11] * 10 + [2, 3, 4, 7] + [0x11] * 498
    assert (disk(pair) == disk(pair)[:, :1]).all()


@pytest.mark.parametrize("mode", MODES)
def test_a_partial_read_leaves_the_rest_of_the_page_alone(mode: str) -> None:
    pair = with_page(mode)
    page(pair)[:] = 0xEE
    disk(pair)[20:24] = np.arange(4)[:, None]
    assert pair.ask(Raw([(GREF, 5, 6), (GREF, 0, 1)], READ, 20)) == [(0, READ, OKAY)]
    assert page(pair).reshape(8, 512)[:, 0].tolist() == [2, 3, 0xEE, 0xEE, 0xEE, 0, 1, 0xEE]
    assert (page(pair).reshape(8, 512) == page(pair).reshape(8, 512)[:, :1]).all()


# --- what is mapped, and for how long ---------------------------------------------------------


def grants(pair: Pair, count: int) -> list[int]:
    return [pair.grant(pair.buffer_frame + 1 + at) for at in range(count)]


def whole(grefs: Sequence[int]) -> list[tuple[int, int, int]]:
    return [(gref, 0, 7) for gref in grefs]


@pytest.mark.parametrize(
    ("gather_max", "hypercalls"),
    [
        (1, [("map", 1), ("unmap", 1), ("map", 11), ("unmap", 11), ("map", 3), ("unmap", 3)]),
        (2, [("map", 12), ("unmap", 12), ("map", 3), ("unmap", 3)]),
        (32, [("map", 15), ("unmap", 15)]),
    ],
)
def test_a_batch_makes_one_map_and_one_unmap_hypercall(
    gather_max: int, hypercalls: list[tuple[str, int]]
) -> None:
    pair = with_page("non-persistent", gather_max=gather_max)
    grefs = whole(grants(pair, 15))
    pair.ask(Raw(grefs[:1]), Raw(grefs[1:12]), Raw(grefs[12:]))
    assert pair.hypercalls == hypercalls
    pair.check()


def test_beyond_the_cap_the_overflow_and_only_it_is_mapped_and_unmapped() -> None:
    pair = with_page(cap=4)
    grefs = whole(grants(pair, 11))
    for _ in range(3):
        assert pair.ask(Raw(grefs)) == [(0, READ, OKAY)]
        pair.check()
    assert pair.hypercalls == [("map", 11), ("unmap", 7)] + [("map", 7), ("unmap", 7)] * 2
    assert pair.counts()["overflow_segments"] == 21
    assert (pair.kept, pair.counts()["persistent_max"]) == (4, 4)


def test_a_request_may_mix_kept_pages_and_others() -> None:
    pair = with_page(cap=2)
    first, second, third = whole(grants(pair, 3))
    pair.ask(Raw([first, second]))
    disk(pair)[:24] = np.arange(24)[:, None]
    with pair.counting() as cost:
        assert pair.ask(Raw([third, second, first])) == [(0, READ, OKAY)]
    got = pair.ram[(pair.buffer_frame + 1) * XEN_PAGE_SIZE :][: 3 * XEN_PAGE_SIZE]
    assert got.reshape(24, 512)[:, 0].tolist() == [*range(16, 24), *range(8, 16), *range(8)]
    assert (cost["map_ops"], cost["unmap_ops"], cost["overflow_segments"]) == (1, 1, 1)


def test_with_a_cap_of_0_everything_overflows() -> None:
    pair = with_page(cap=0)
    pair.ask(Raw(WHOLE), Raw(WHOLE))
    assert pair.hypercalls == [("map", 1), ("unmap", 1)] * 2
    assert pair.counts()["overflow_segments"] == 2
    pair.check()


@pytest.mark.parametrize("mode", MAPPING_MODES)
@pytest.mark.parametrize("gather_max", [1, 32])
@pytest.mark.parametrize("cap", [0, 5, 352])
def test_after_disconnect_nothing_is_mapped(mode: str, gather_max: int, cap: int) -> None:
    pair = with_page(mode, gather_max=gather_max, cap=cap)
    grefs = whole(grants(pair, 33))
    pair.ask(*(Raw(grefs[at : at + 11]) for at in (0, 11, 22)))
    pair.disconnect()
    assert pair.kept == 0
    pair.check()
    assert pair.counts()["map_ops"] == pair.counts()["unmap_ops"] == 33
    assert pair.counts()["persistent_now"] == 0
    assert all(end_access(pair.front.grants, gref) for gref, _, _ in grefs)


def test_disconnect_unmaps_eleven_at_a_time() -> None:
    pair = with_page()
    grefs = whole(grants(pair, 25))
    pair.ask(Raw(grefs[:11]), Raw(grefs[11:22]), Raw(grefs[22:]))
    pair.hypercalls.clear()
    pair.disconnect()
    assert pair.hypercalls == [("unmap", 11), ("unmap", 11), ("unmap", 3)]


def test_a_response_goes_out_after_the_unmap() -> None:
    pair = with_page("non-persistent", gather_max=32)
    pair.push_raw(Raw(WHOLE), Raw(WHOLE))
    entry = pair.grant_frames.view(GRANT_ENTRY_V1)[GREF]
    seen: list[str] = []
    for phase in pair.batch():
        seen.append(phase)
        answered = int(load_acquire(pair.back.words, RSP))
        assert answered == (2 if "PUBLISH" in seen else 0)
        bits = int(entry["flags"]) & (GTF_READING | GTF_WRITING)
        assert (bits != 0) == ("MAP" in seen and not answered and "UNMAP" not in seen)
        if bits:
            assert not end_access(pair.front.grants, GREF)
    assert "PUBLISH" in seen
    assert end_access(pair.front.grants, GREF)


def test_a_kept_page_is_in_flight_until_it_is_released() -> None:
    pair = with_page()
    pair.ask(Raw(WHOLE))
    pair.push_raw(Raw(WHOLE))
    seen = {phase: int(pair.back.tree["in_flight"][0]) for phase in pair.batch()}
    assert seen == {
        **dict.fromkeys(("CLEAR", "LOOK"), 0),
        **dict.fromkeys(("TAKE", "ARM_TAKEN", "PLAN", "MOVE"), 1),
        **dict.fromkeys(("RELEASE", "RESPOND", "PUBLISH", "CHECK_EVENT"), 0),
    }


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("gather_max", [1, 3, 32])
@pytest.mark.parametrize("cap", [0, 7, 352])
def test_nothing_leaks_whatever_comes(mode: str, gather_max: int, cap: int) -> None:
    pair = with_page(mode, gather_max=gather_max, cap=cap, start=(1 << 32) - 50)
    grefs = [*grants(pair, 12), 0, 300, 1 << 20]
    rng = random.Random(gather_max * 1000 + cap)
    for _ in range(40):
        requests = [
            Raw(
                [
                    (rng.choice(grefs), rng.choice([0, 0, 0, 3]), rng.choice([7, 7, 7, 2]))
                    for _ in range(rng.randint(1, 11))
                ],
                rng.choice([READ, WRITE, 3]),
                rng.choice([0, 8, 400, 500]),
                rng.getrandbits(64),
            )
            for _ in range(rng.randint(1, REQUESTS_HELD))
        ]
        answers = pair.ask(*requests)
        assert [ident for ident, _, _ in answers] == [raw.id for raw in requests]
        pair.check()
    counts = pair.counts()
    assert min(counts["bad_requests"], counts["back_io_errors"], counts["back_segments"]) > 0
    pair.disconnect()
    assert pair.counts()["map_ops"] == pair.counts()["unmap_ops"]
    assert counts["copy_ops" if mode == GRANT_COPY else "map_ops"] > 0
    pair.check()


# --- flushes ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "flushes", "ipis"),
    [("mask", 3, 9), ("mask-2012", 3, 3), ("accessed", 3, 9), ("precise", 3, 0)],
)
def test_what_three_requests_cost_by_policy(policy: str, flushes: int, ipis: int) -> None:
    """Four CPUs, three of them idle: with mask-2012 they leave the mask at their first IPI."""
    pair = with_page("non-persistent", flush_policy=policy, dom0_cpus=4)
    with pair.counting() as cost:
        pair.ask(*[Raw(WHOLE)] * 3)
    assert (cost["flushes"], cost["ipis"], cost["flush_entries"]) == (flushes, ipis, 3)
    received = pair.host["cpus"]["ipis_received"][0, :4]
    assert received.tolist() == [0, *[ipis // 3] * 3]


@pytest.mark.parametrize("policy", POLICIES)
def test_a_page_nobody_touched_is_flushed_by_mask_only(policy: str) -> None:
    pair = with_page("non-persistent", flush_policy=policy)
    with pair.counting() as cost:
        assert pair.ask(Raw([*WHOLE, (100, 0, 7)])) == [(0, READ, ERROR)]
    assert cost["unmap_ops"] == 1
    assert cost["flushes"] == policy.startswith("mask")


def test_a_drained_ring_is_flushed_32_entries_at_a_time() -> None:
    pair = with_page("non-persistent", gather_max=32)
    grefs = whole(grants(pair, 77))
    with pair.counting() as cost:
        pair.ask(*(Raw(grefs[at : at + 11]) for at in range(0, 77, 11)))
    assert (cost["unmap_ops"], cost["unmap_hypercalls"]) == (77, 1)
    assert (cost["flushes"], cost["flush_entries"]) == (3, 77)


# --- stores without memory --------------------------------------------------------------------


class Scratched(CallbackStore):
    """Sector 16 cannot be read or written."""

    def read(self, offset: int, into: np.ndarray) -> None:
        self._fail(offset, len(into))
        super().read(offset, into)

    def write(self, offset: int, data: np.ndarray) -> None:
        self._fail(offset, len(data))
        super().write(offset, data)

    def _fail(self, offset: int, nbytes: int) -> None:
        if offset <= 16 * 512 < offset + nbytes:
            raise OSError(5, "scratched")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("gather_max", [1, 32])
def test_what_a_store_cannot_do_is_an_error_of_its_request_only(mode: str, gather_max: int) -> None:
    pair = Pair(mode, gather_max=gather_max, store=Scratched(DISK_SECTORS))
    gref = pair.grant(pair.buffer_frame)
    asked = [Raw(whole([gref]), WRITE, sector, sector) for sector in (0, 8, 16, 24)]
    pair.frame(pair.buffer_frame)[:] = 0x21
    with pair.counting() as cost:
        answers = pair.ask(*asked)
    assert [status for _, _, status in answers] == [OKAY, OKAY, ERROR, OKAY]
    assert (cost["back_io_errors"], cost["bad_requests"]) == (1, 0)
    store = pair.store
    assert isinstance(store, Scratched)
    assert store.hidden.reshape(-1, 4096)[:5, 0].tolist() == [0x21, 0x21, 0, 0x21, 0]
    pair.check()
