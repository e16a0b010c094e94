"""A disk's two rings, by io_uring and by the pool of threads: what is put is done and answered."""

import errno
import os
import resource
import select
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from backend.file_pool import FilePool
from backend.io_uring import IoUring
from backend.queue_sleep import begin_sleep, end_sleep, wait_for
from backend.slots import DISCARD, FLUSH, READ, WRITE
from backend.store_jobs import JOB
from backend.store_queue import (
    CQE,
    QUEUE,
    SQE,
    STORE_QUEUE,
    enter,
    has_answers,
    no_queue,
    put,
    reap,
)  # fmt: skip
from common.abi import BLKIF_RSP_EOPNOTSUPP, BLKIF_RSP_ERROR, BLKIF_RSP_OKAY
from common.arena import Arena
from common.process import open_descriptors
from tests.backend.filer import KINDS, Filer, file_on, sleep_on

NR_SLOTS = 8
FILE_BYTES = 1 << 20
PAGE = 4096
KIND = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(params=["tmpfs", "disk"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A file with random bytes, on a tmpfs and on a real file system."""
    with file_on(request.param, tmp_path, FILE_BYTES) as file:
        yield file


@pytest.fixture(params=KINDS)
def filer(request: pytest.FixtureRequest, path: Path) -> Iterator[Filer]:
    """A queue for that file, by either."""
    made = Filer(request.param, path, NR_SLOTS)
    yield made
    made.close()


def test_the_layouts_are_the_kernels() -> None:
    assert (SQE.itemsize, CQE.itemsize) == (64, 16)
    assert [SQE.fields[name][1] for name in ("off", "len", "user_data", "file_index")] == [
        8, 24, 32, 44,
    ]  # fmt: skip


def test_a_queue_fits_into_a_row() -> None:
    row = STORE_QUEUE.rows(Arena(1 << 20), 1)[0]
    STORE_QUEUE.write(row, no_queue())
    assert row[0] != 0


def test_no_queue_has_no_answers() -> None:
    queue = no_queue()
    assert not has_answers(queue) and reap(queue, np.zeros(1, JOB)) == -1


def test_one_page_is_read(filer: Filer, path: Path) -> None:
    filer.move(0, READ, 5 * PAGE, [PAGE])
    assert filer.run() == {0: BLKIF_RSP_OKAY}
    assert filer.bytes_of(0) == path.read_bytes()[5 * PAGE : 6 * PAGE]


def test_several_pieces_are_read_and_written_in_their_order(filer: Filer, path: Path) -> None:
    pieces = [512, PAGE, 1024, 2560]
    before, nbytes = path.read_bytes(), sum(pieces)
    filer.move(1, READ, 1536, pieces)
    data = filer.fill(2, WRITE, 40 * PAGE + 512, pieces)
    assert filer.run() == {1: BLKIF_RSP_OKAY, 2: BLKIF_RSP_OKAY}
    assert filer.bytes_of(1) == before[1536 : 1536 + nbytes]
    at = 40 * PAGE + 512
    assert path.read_bytes() == before[:at] + data + before[at + nbytes :]


def test_eleven_segments_of_a_page(filer: Filer, path: Path) -> None:
    filer.move(7, READ, 3 * PAGE, [PAGE] * 11)
    assert filer.run() == {7: BLKIF_RSP_OKAY}
    assert filer.bytes_of(7) == path.read_bytes()[3 * PAGE : 14 * PAGE]


def test_a_flush_and_a_discard(filer: Filer, path: Path) -> None:
    size, blocks = path.stat().st_size, path.stat().st_blocks
    filer.ask(0, FLUSH)
    assert filer.run() == {0: BLKIF_RSP_OKAY}
    filer.ask(1, DISCARD, 64 * PAGE, 32 * PAGE)
    assert filer.run() == {1: BLKIF_RSP_OKAY}
    assert not any(path.read_bytes()[64 * PAGE : 96 * PAGE]) and any(path.read_bytes())
    assert path.stat().st_size == size and path.stat().st_blocks == blocks - 32 * 8


def test_a_flush_without_data_asks_for_all_of_the_file(filer: Filer) -> None:
    filer.jobs[0] = (PAGE, PAGE, FLUSH, 1)  # as a request's that had data
    put(filer.queue, filer.jobs, filer.iovecs, 0)
    entry = filer.queue.sqes[0]
    assert (entry["opcode"], entry["off"], entry["len"], entry["op_flags"]) == (3, 0, 0, 1)
    assert filer.answers() == {0: BLKIF_RSP_OKAY}


def test_all_slots_at_once_many_times(filer: Filer, path: Path) -> None:
    """More than the rings have entries: their indices go round."""
    image, random = bytearray(path.read_bytes()), np.random.default_rng(2)
    for _ in range(40):
        pages = random.permutation(FILE_BYTES // PAGE)[:NR_SLOTS].tolist()
        for slot, page in enumerate(pages):
            if slot % 2:
                image[page * PAGE : (page + 1) * PAGE] = filer.fill(
                    slot, WRITE, page * PAGE, [PAGE]
                )
            else:
                filer.move(slot, READ, page * PAGE, [PAGE])
        assert filer.run() == dict.fromkeys(range(NR_SLOTS), BLKIF_RSP_OKAY)
        for slot, page in enumerate(pages):
            assert filer.bytes_of(slot) == image[page * PAGE : (page + 1) * PAGE]
    assert path.read_bytes() == image


def test_indices_wrap_at_2_to_the_32(path: Path) -> None:
    filer = Filer("pool", path, NR_SLOTS)
    queue, start = filer.queue, 2**32 - 3
    queue.head["put"] = start
    for name in ("sq_head", "sq_tail", "cq_head", "cq_tail"):
        queue.sq[int(queue.head[name][0])] = start
    for slot in range(NR_SLOTS):
        filer.move(slot, READ, slot * PAGE, [PAGE])
    assert filer.run() == dict.fromkeys(range(NR_SLOTS), BLKIF_RSP_OKAY)
    assert int(queue.head["put"][0]) == NR_SLOTS - 3
    filer.close()


def test_a_slot_is_answered_while_another_is_on_its_way(filer: Filer) -> None:
    """Nothing waits for a whole batch."""
    for slot in range(NR_SLOTS):
        filer.move(slot, READ, slot * PAGE, [PAGE])
    filer.hand_over(range(NR_SLOTS))
    order = filer.some_answers(1)
    for _ in range(100):
        again = next(iter(order))
        filer.hand_over([again])
        order = filer.some_answers(1)
    assert filer.some_answers(NR_SLOTS - 1).keys() | {0} <= set(range(NR_SLOTS))


def test_past_the_end_is_an_error_of_its_own_request(filer: Filer, path: Path) -> None:
    os.truncate(path, 10 * PAGE + 512)
    filer.move(0, READ, 10 * PAGE, [PAGE])
    filer.move(1, READ, 9 * PAGE, [PAGE])
    filer.move(2, READ, 99 * PAGE, [PAGE, PAGE])
    assert filer.run() == {0: BLKIF_RSP_ERROR, 1: BLKIF_RSP_OKAY, 2: BLKIF_RSP_ERROR}
    head = filer.queue.head[0]
    assert head["errors"] == 2 and head["last_errno"] == 0 and head["last_kind"] == READ
    assert head["last_offset"] in (10 * PAGE, 99 * PAGE)


def test_a_full_disk_is_an_error_with_its_reason(filer: Filer, path: Path) -> None:
    """/dev/full is no file; a process's limit of its files' size is the same to a write."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES, hard))
    try:
        filer.fill(0, WRITE, FILE_BYTES, [PAGE])
        filer.fill(1, WRITE, 0, [PAGE])
        filer.fill(2, WRITE, FILE_BYTES - 512, [1024, 512])
        answers = filer.run()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert answers == {0: BLKIF_RSP_ERROR, 1: BLKIF_RSP_OKAY, 2: BLKIF_RSP_ERROR}
    head = filer.queue.head[0]
    assert head["errors"] == 2 and head["last_errno"] in (0, 27)  # EFBIG, or short


def test_an_address_that_is_not_there_is_an_error(filer: Filer) -> None:
    filer.move(0, READ, 0, [PAGE])
    filer.iovecs[0, 0]["address"] = 8
    filer.move(1, READ, 0, [PAGE])
    assert filer.run() == {0: BLKIF_RSP_ERROR, 1: BLKIF_RSP_OKAY}
    assert filer.queue.head["last_errno"] == 14  # EFAULT


@KIND
def test_what_cannot_be_handed_over_is_answered_as_an_error(kind: str, path: Path) -> None:
    filer = Filer("io_uring", path, NR_SLOTS)
    ring_fd = int(filer.queue.head["ring_fd"][0])
    filer.queue.head["ring_fd"] = 1 << 20  # no descriptor: EBADF
    for slot in range(3):
        filer.move(slot, READ, slot * PAGE, [PAGE])
        put(filer.queue, filer.jobs, filer.iovecs, slot)
    assert enter(filer.queue) == -9 and has_answers(filer.queue)
    if kind == "pool":  # a second try may find it better
        filer.queue.head["ring_fd"] = ring_fd
        assert filer.answers() == dict.fromkeys(range(3), BLKIF_RSP_OKAY)
    else:
        assert filer.some_answers(3) == dict.fromkeys(range(3), BLKIF_RSP_ERROR)
        filer.check_empty()
        filer.queue.head["ring_fd"] = ring_fd
        filer.hand_over([1])
        assert filer.some_answers(1) == {1: BLKIF_RSP_OKAY}
    filer.close()


def test_more_jobs_than_slots_are_our_bug(filer: Filer) -> None:
    filer.ask(0, FLUSH)
    with pytest.raises(AssertionError, match="more jobs than slots"):
        for _ in range(NR_SLOTS + 1):
            put(filer.queue, filer.jobs, filer.iovecs, 0)
    filer.queue.head["put"] = 0


def test_who_sleeps_on_the_descriptor_is_woken_as_long_as_there_is_something(filer: Filer) -> None:
    queue, fd = filer.queue, filer.polled_fd
    for _ in range(200):
        for slot in range(3):
            filer.move(slot, READ, slot * PAGE, [PAGE])
        filer.hand_over(range(3))
        for left in (3, 2, 1):
            while not has_answers(queue):
                assert sleep_on(queue, fd) or has_answers(queue), f"{left} are to come"
            assert len(filer.some_answers(1)) == 1
        filer.check_empty()
        assert not begin_sleep(queue)
        assert select.select([fd], [], [], 0) == ([], [], []), "there is nothing to wake up for"
        end_sleep(queue)


def test_a_sleeper_is_woken_by_an_answer(path: Path) -> None:
    """A read of what no page cache has, where the disk is a real one; else it may come too soon."""
    for kind in ("io_uring", "pool"):
        filer = Filer(kind, path, NR_SLOTS)
        assert not begin_sleep(filer.queue)
        filer.ask(0, FLUSH)
        filer.hand_over([0])
        assert select.select([filer.polled_fd], [], [], 10) == ([filer.polled_fd], [], [])
        end_sleep(filer.queue)
        assert filer.some_answers(1) == {0: BLKIF_RSP_OKAY}
        filer.close()


@KIND
def test_a_wait_ends_with_so_many_answers_or_in_time(kind: str, path: Path) -> None:
    filer = Filer(kind, path, NR_SLOTS)
    for slot in range(3):
        filer.move(slot, READ, slot * PAGE, [PAGE])
    filer.hand_over(range(3))
    if kind == "io_uring":  # the pool's threads are waited for by the clock alone
        wait_for(filer.queue, 3, 900_000_000)
        assert int(filer.queue.cq[filer.queue.head["cq_tail"][0]]) == 3, "all are in the ring"
    assert len(filer.some_answers(3)) == 3
    began_ns = time.monotonic_ns()
    wait_for(filer.queue, 1, 20_000_000)
    assert time.monotonic_ns() - began_ns >= 20_000_000
    assert int(reap(filer.queue, filer.jobs)) < 0  # which enters the kernel, if that says it waits
    assert not has_answers(filer.queue)
    filer.close()


@pytest.mark.parametrize(
    ("kind", "result", "status"),
    [
        (FLUSH, 0, BLKIF_RSP_OKAY),
        (FLUSH, -errno.EOPNOTSUPP, BLKIF_RSP_EOPNOTSUPP),
        (DISCARD, -errno.EOPNOTSUPP, BLKIF_RSP_EOPNOTSUPP),
        (DISCARD, -errno.EIO, BLKIF_RSP_ERROR),
        (READ, -errno.EOPNOTSUPP, BLKIF_RSP_ERROR),
        (READ, PAGE, BLKIF_RSP_OKAY),
        (WRITE, PAGE - 512, BLKIF_RSP_ERROR),
    ],
)
def test_what_the_other_end_says_is_the_answer(kind: int, result: int, status: int) -> None:
    queue, jobs = no_queue(), np.zeros(1, JOB)
    jobs[0] = (0, PAGE, kind, 1)
    queue.cqes["res"] = result
    queue.cq[queue.head["cq_tail"][0]] += 1
    assert int(np.uint32(reap(queue, jobs) & 0xFFFFFFFF).astype(np.int32)) == status
    assert queue.head["errors"][0] == (status != BLKIF_RSP_OKAY)
    assert queue.head["last_errno"][0] == (-result if result < 0 else 0)


@KIND
def test_a_closed_queue_leaves_nothing(kind: str, path: Path) -> None:
    before, threads = open_descriptors(), threading.active_count()
    for _ in range(5):
        filer = Filer(kind, path, NR_SLOTS)
        assert not os.get_inheritable(filer.polled_fd)
        filer.move(0, READ, 0, [PAGE])
        filer.run()
        filer.close()
        assert open_descriptors() == before
        assert threading.active_count() == threads


def test_two_descriptors_a_queue_at_most(path: Path) -> None:
    before = len(open_descriptors())
    with path.open("rb") as file:
        for kind, count in ((IoUring, 2), (FilePool, 1)):
            made = kind(file.fileno(), 32)
            assert len(open_descriptors()) == before + 1 + count
            made.close()


def test_head_is_our_own() -> None:
    assert QUEUE.itemsize % 8 == 0
