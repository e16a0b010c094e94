"""blkfront: I/Os become requests and requests become I/Os, whatever the backend answers."""

import numpy as np
import pytest

from common.abi import GRANT_ENTRY_V1, GTF_PERMIT_ACCESS, GTF_READONLY
from common.atomics import load_acquire, store_release
from common.effects import BROKEN, DONE, WAIT, WAKE
from common.faults import PeerFault
from common.not_done import NOT_DONE
from common.ring import REQ, RSP
from frontend import blkfront_info
from frontend.blkfront import end_every_access
from frontend.blkfront_info import BROKEN_REASONS, NO_ROOM
from tests.pair import EOPNOTSUPP, ERROR, MODES, OKAY, READ, WRITE, Pair

POOLED = ["persistent", "backend-without-persistent"]


def to_rest(pair: Pair) -> None:
    """The guest goes on until there is nothing to do before the backend has done something."""
    while (effect := pair.front_until()) == WAKE:
        pass
    assert effect in (WAIT, DONE)


def submit_all(pair: Pair) -> int:
    """Put on the ring what there is room for, and publish it; how many requests."""
    first = int(pair.front.half["prod_pvt"][0])
    to_rest(pair)
    assert load_acquire(pair.front.words, REQ) == pair.front.half["prod_pvt"][0]
    return (int(pair.front.half["prod_pvt"][0]) - first) & 0xFFFFFFFF


def take_all(pair: Pair) -> int:
    """Take what the backend has answered; how many responses."""
    first = int(pair.front.half["cons"][0])
    to_rest(pair)
    return (int(pair.front.half["cons"][0]) - first) & 0xFFFFFFFF


def out(pair: Pair, count: int = 1, operation: int = READ) -> list[int]:
    """`count` one-page requests on the ring, which the real backend has not seen; their ids."""
    for io in range(count):
        pair.queue(io, operation, 8 * io, 8)
    first = int(pair.front.half["prod_pvt"][0])
    assert submit_all(pair) == count
    return [int(pair.slots[(first + at) % 32]["id"]) for at in range(count)]


def entries(pair: Pair) -> np.ndarray:
    return pair.grant_frames.view(GRANT_ENTRY_V1)


# --- I/Os into requests -----------------------------------------------------------------------


def test_a_request_says_what_the_io_asked() -> None:
    pair = Pair()
    pair.front.front["handle"] = 51712
    pair.queue(3, WRITE, 77, 20)
    assert submit_all(pair) == 1
    slot = pair.slots[0]
    assert (slot["operation"], slot["nr_segments"], slot["handle"]) == (WRITE, 3, 51712)
    assert slot["sector_number"] == 77
    assert slot["seg"][:3].tolist() == [(8, 0, 7), (9, 0, 7), (10, 0, 3)]


@pytest.mark.parametrize(
    ("nr_sectors", "segments"),
    [(1, [1]), (8, [1]), (9, [2]), (88, [11]), (89, [11, 1]), (256, [11, 11, 10])],
)
def test_a_large_io_is_split_into_requests_of_at_most_11_segments(
    nr_sectors: int, segments: list[int]
) -> None:
    pair = Pair(frames_per_io=32)
    pair.queue(0, READ, 100, nr_sectors)
    assert submit_all(pair) == len(segments)
    slots = pair.slots[: len(segments)]
    assert slots["nr_segments"].tolist() == segments
    assert slots["sector_number"].tolist() == [100 + 88 * at for at in range(len(segments))]
    last = slots[-1]["seg"][segments[-1] - 1]
    assert last["last_sect"] == (nr_sectors - 1) % 8
    assert pair.front.ios["outstanding"][0] == len(segments)


@pytest.mark.parametrize("mode", MODES)
def test_a_large_io_is_done_once_when_its_last_request_is(mode: str) -> None:
    pair = Pair(mode, frames_per_io=64)
    data = np.random.default_rng(2).integers(0, 256, 500 * 512, np.uint8).tobytes()
    with pair.counting() as cost:
        assert pair.write(6, data) == OKAY
    assert (cost["requests"], cost["segments"]) == (6, 63)
    assert pair.read(6, 500) == data
    pair.check()


@pytest.mark.parametrize("mode", MODES)
def test_an_io_larger_than_the_ring_waits_for_room(mode: str) -> None:
    pair = Pair(mode, frames_per_io=400, nr_ios=2)
    pair.queue(0, READ, 0, 3200)
    assert submit_all(pair) == 32
    assert submit_all(pair) == 0
    assert pair.front.front["queued"][0] == 1


@pytest.mark.parametrize("mode", POOLED)
def test_an_io_larger_than_the_pool_waits_for_pages(mode: str) -> None:
    pair = Pair(mode, pool_pages=12, frames_per_io=50)
    data = np.random.default_rng(3).integers(0, 256, 50 * 4096, np.uint8).tobytes()
    pair.queue(1, READ, 0, 400)
    assert submit_all(pair) == 1  # the next 11 segments do not fit beside the first
    assert pair.front.pool.list["free"][0] == 1
    assert pair.run() == [1]
    assert pair.write(0, data) == OKAY
    assert pair.read(0, 400) == data
    assert pair.counts()["grants_issued"] <= 12
    pair.check()


def test_an_io_waits_for_grants() -> None:
    pair = Pair("non-persistent", frames_per_io=50)
    pair.front.grants.list["free"] = 15
    pair.queue(0, READ, 0, 400)
    assert submit_all(pair) == 1
    assert pair.front.grants.list["free"][0] == 4
    assert pair.run() == [0]


def test_pages_that_are_granted_already_need_no_free_gref() -> None:
    pair = Pair(pool_pages=11)
    pair.read(0, 88)
    pair.front.grants.list["free"] = 0
    pair.queue(0, READ, 0, 88)
    assert submit_all(pair) == 1


@pytest.mark.parametrize("short_of", ["slots", "pages", "grants"])
def test_a_request_that_finds_no_room_takes_nothing(short_of: str) -> None:
    pair = Pair()
    front = pair.front
    out(pair, 32 if short_of == "slots" else 1)
    if short_of == "pages":
        front.pool.list["free"] = 0
    if short_of == "grants":
        front.grants.list["free"] = 0
    before = [array.tobytes() for array in (front.shadow, front.pool.pages, front.grants.next)]
    ring = pair.ring_page.tobytes()
    pair.queue(40, WRITE, 0, 8)
    assert submit_all(pair) == 0
    after = [array.tobytes() for array in (front.shadow, front.pool.pages, front.grants.next)]
    assert (after, pair.ring_page.tobytes()) == (before, ring)
    assert front.ios["issued_sectors"][40] == 0


def test_ios_are_submitted_in_the_order_they_were_queued() -> None:
    pair = Pair(nr_ios=4)
    for turn in range(3):  # the queue goes round
        for io in (2, 0, 3):
            pair.queue(io, READ, 8 * io, 8)
        start = int(pair.front.half["prod_pvt"][0])
        submit_all(pair)
        sectors = [int(pair.slots[(start + at) % 32]["sector_number"]) for at in range(3)]
        assert sectors == [16, 0, 24], turn
        assert pair.run() == [2, 0, 3]


def test_ids_in_flight_are_all_different_and_come_back() -> None:
    pair = Pair(start=(1 << 32) - 20)
    for _ in range(5):
        assert sorted(out(pair, 32)) == list(range(32))
        pair.run()


# --- pages and grants -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "operation", "flags"),
    [
        ("persistent", READ, GTF_PERMIT_ACCESS),
        ("persistent", WRITE, GTF_PERMIT_ACCESS),
        ("backend-without-persistent", WRITE, GTF_PERMIT_ACCESS),
        ("non-persistent", READ, GTF_PERMIT_ACCESS),
        ("non-persistent", WRITE, GTF_PERMIT_ACCESS | GTF_READONLY),
    ],
)
def test_what_is_granted_and_how(mode: str, operation: int, flags: int) -> None:
    pair = Pair(mode)
    out(pair, 1, operation)
    entry = entries(pair)[8]
    frame = pair.buffer_frame if mode == "non-persistent" else 1
    assert entry.item() == (flags, 0, frame)


@pytest.mark.parametrize("mode", POOLED)
def test_the_backend_sees_only_what_is_written_and_zeros(mode: str) -> None:
    pair = Pair(mode)
    pair.buffer(0)[:] = 0x5A
    pair.queue(0, WRITE, 0, 3)
    submit_all(pair)
    assert (pair.frame(1)[: 3 * 512] == 0x5A).all()
    assert not pair.frame(1)[3 * 512 :].any()
    assert pair.counts()["bytes_copied_by_guest"] == 3 * 512


def test_a_read_is_not_copied_in() -> None:
    pair = Pair()
    pair.buffer(0)[:] = 0x5A
    pair.queue(0, READ, 0, 8)
    submit_all(pair)
    assert not pair.frame(1).any()
    assert pair.counts()["bytes_copied_by_guest"] == 0


@pytest.mark.parametrize("mode", MODES)
def test_a_short_read_leaves_the_rest_of_the_buffer_alone(mode: str) -> None:
    pair = Pair(mode)
    pair.buffer(0)[:] = 0x5A
    pair.read(0, 3)
    assert not pair.buffer(0)[: 3 * 512].any()
    assert (pair.buffer(0)[3 * 512 :] == 0x5A).all()


def test_pages_the_backend_kept_go_to_the_head_and_the_others_to_the_tail() -> None:
    pair = Pair(cap=2)
    pair.read(0, 32)  # pages 0 ... 3, of which two are kept
    pool = pair.front.pool
    assert np.flatnonzero(pool.pages["gref"]).tolist() == [0, 1]
    taken = [int(pair.front.pool.list["head"][0])]
    while len(taken) < 352:
        taken.append(int(pool.pages["next"][taken[-1]]))
    assert taken == [1, 0, *range(4, 352), 2, 3]
    assert pair.counts()["grants_ended"] == 2


def test_depth_one_uses_one_page() -> None:
    pair = Pair()
    for at in range(50):
        pair.read(8 * (at % 8), 8)
    assert (pair.counts()["grants_issued"], pair.kept) == (1, 1)


def test_after_the_backend_let_go_every_grant_can_be_ended() -> None:
    pair = Pair()
    pair.read(0, 88)
    assert end_every_access(pair.front) == 11  # stuck while they are mapped
    assert pair.disconnect() == 0
    assert not entries(pair)["flags"].any()
    assert not pair.front.pool.pages["gref"].any()
    counts = pair.counts()
    assert counts["grants_issued"] == counts["grants_ended"] == 11


# --- errors -----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("status", [-1, -2, NO_ROOM, NOT_DONE, 77, 32767, -32768])
def test_whatever_is_not_okay_is_an_error_of_the_io(mode: str, status: int) -> None:
    pair = Pair(mode)
    pair.buffer(0)[:] = 0x5A
    (ident,) = out(pair)
    pair.answer_raw((ident, READ, status))
    assert take_all(pair) == 1
    assert pair.front.ios["status"][0] == (status if status == EOPNOTSUPP else ERROR)
    assert pair.front.front["broken"][0] == 0
    assert (pair.buffer(0) == 0x5A).all()  # what a failed read left is not handed on
    assert pair.front.front["outstanding"][0] == 0


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_one_failed_request_of_a_large_io_fails_it_once(failing: int) -> None:
    pair = Pair(frames_per_io=32)
    pair.queue(5, READ, 0, 256)
    submit_all(pair)
    ids = pair.slots["id"][:3].tolist()
    for at in range(3):
        assert pair.front.front["done"][0] == 0
        pair.answer_raw((ids[at], READ, ERROR if at == failing else OKAY))
        assert take_all(pair) == 1
    assert pair.front.done[: pair.front.front["done"][0]].tolist() == [5]
    assert pair.front.ios["status"][5] == ERROR


def test_an_io_queued_again_has_forgotten_its_error() -> None:
    pair = Pair()
    assert pair.write(512, bytes(512)) == ERROR
    assert pair.write(511, bytes(512)) == OKAY


def test_a_read_past_the_end_of_the_disk_fails_and_the_next_does_not() -> None:
    pair = Pair()
    pair.queue(0, READ, 510, 8)
    pair.queue(1, READ, 504, 8)
    assert pair.run() == [0, 1]
    assert pair.front.ios["status"][:2].tolist() == [ERROR, OKAY]


# --- a lying backend --------------------------------------------------------------------------


def broken(pair: Pair, reason: int) -> None:
    """The device is broken for `reason`, stays so, and says so to whoever uses it."""
    front = pair.front
    assert pair.front_until() == BROKEN
    assert front.front["broken"][0] == reason
    done, cons = front.front.tobytes(), int(front.half["cons"][0])
    store_release(front.words, RSP, np.uint32(cons))  # a lie taken back does not mend it
    assert pair.front_until() == BROKEN
    assert (front.front.tobytes(), front.half["cons"][0]) == (done, cons)
    with pytest.raises(PeerFault, match=BROKEN_REASONS[reason]):
        pair.run()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("ident", [31, 32, 1000, 1 << 31, 1 << 32, 1 << 63, (1 << 64) - 1])
def test_an_answer_to_what_was_not_asked_breaks_the_device(mode: str, ident: int) -> None:
    pair = Pair(mode)
    assert out(pair, 2) == [0, 1]
    pair.answer_raw((ident, READ, OKAY))
    broken(pair, blkfront_info.BROKEN_ID)


@pytest.mark.parametrize("mode", MODES)
def test_a_second_answer_breaks_the_device(mode: str) -> None:
    pair = Pair(mode)
    first, _second = out(pair, 2)
    pair.answer_raw((first, READ, OKAY), (first, READ, OKAY))
    broken(pair, blkfront_info.BROKEN_ID)
    assert pair.front.done[: pair.front.front["done"][0]].tolist() == [0]  # the honest one counted


@pytest.mark.parametrize("operation", [WRITE, 2, 128, 255])
def test_an_answer_with_another_operation_breaks_the_device(operation: int) -> None:
    pair = Pair()
    (ident,) = out(pair)
    pair.buffer(0)[:] = 0x5A
    pair.answer_raw((ident, operation, OKAY))
    broken(pair, blkfront_info.BROKEN_OPERATION)
    assert (pair.buffer(0) == 0x5A).all()


@pytest.mark.parametrize("start", [0, (1 << 32) - 3])
@pytest.mark.parametrize("ahead", [3, 33, 1 << 31, (1 << 32) - 1])
def test_more_answers_than_requests_break_the_device(start: int, ahead: int) -> None:
    pair = Pair(start=start)
    out(pair, 2)
    store_release(pair.front.words, RSP, np.uint32((start + ahead) & 0xFFFFFFFF))
    broken(pair, blkfront_info.BROKEN_RING)
    assert pair.front.front["done"][0] == 0


def test_an_answer_to_nothing_breaks_the_device() -> None:
    pair = Pair()
    pair.answer_raw((0, READ, OKAY))
    broken(pair, blkfront_info.BROKEN_RING)


def test_a_page_kept_mapped_breaks_a_device_that_was_promised_it_back() -> None:
    pair = Pair("non-persistent")
    (ident,) = out(pair)
    entries(pair)["flags"][8] |= 8
    pair.answer_raw((ident, READ, OKAY))
    broken(pair, blkfront_info.BROKEN_STILL_MAPPED)
    assert pair.front.front["done"][0] == 0


def test_answers_in_any_order_are_fine() -> None:
    pair = Pair(start=(1 << 32) - 4)
    ids = out(pair, 10)
    pair.answer_raw(*((ident, READ, OKAY) for ident in reversed(ids)))
    assert take_all(pair) == 10
    assert pair.front.done[:10].tolist() == list(range(9, -1, -1))
    assert load_acquire(pair.front.words, RSP) == 6


def test_a_broken_device_keeps_the_pages_a_backend_may_still_use() -> None:
    pair = Pair()
    pair.read(0, 88)
    ids = out(pair, 1)
    pair.answer_raw((ids[0] + 1, READ, OKAY))
    broken(pair, blkfront_info.BROKEN_ID)
    assert end_every_access(pair.front) == pair.kept == 11


def test_a_device_closed_with_requests_in_flight_takes_every_grant_back() -> None:
    pair = Pair("non-persistent")
    out(pair, 3)
    pair.disconnect()
    assert not entries(pair)["flags"].any()
