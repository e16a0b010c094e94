"""The two rings between a disk's loop and who does its jobs: io_uring's, mapped and driven here.

Owns: the layouts of both rings (as linux/io_uring.h has them), and all that the compiled loop does
with them: an entry for a job, one call for a batch, an answer at a time. Who is at the other end is
the kernel (`backend/io_uring.py`) or, where the host refuses that, threads of ours
(`backend/file_pool.py`) which serve the same rings: only `enter` knows.
Rules
1. One thread uses a queue. It puts a slot again only when its answer is reaped, and has no more
   slots than the queue was opened for: so neither ring is ever full.
2. `enter` does not wait. What it cannot hand over, however often it tries, `reap` answers ERROR.
3. Words that the other end writes are read by acquire loads, and ours written by release stores:
   an entry is there before its index is.
4. `has_answers` may be true once, and `reap` find nothing: the kernel had work of its own to do in
   the loop's thread, and has done it then. How to sleep until it is true: `backend/queue_sleep.py`.
5. A call hands over few entries. The kernel plugs what one call brings: before the last of it is
   made the device has seen nothing.
"""

import errno
from typing import Any, Final, NamedTuple

import numpy as np
from numba import types

from backend.pool_gate import GATE_WORDS, quiet, wake_pool
from backend.slots import DISCARD, FLUSH, READ, WRITE
from backend.store_jobs import IOVEC
from common.abi import BLKIF_RSP_EOPNOTSUPP, BLKIF_RSP_ERROR, BLKIF_RSP_OKAY
from common.atomics import load_acquire, store_release
from common.compiled import kernel
from common.libc import last_errno
from common.rows import Layout
from common.u32 import U32_MASK, u32_add, u32_sub

# `struct io_uring_sqe`.
SQE: Final = np.dtype(
    [
        ("opcode", "u1"),
        ("flags", "u1"),
        ("ioprio", "<u2"),
        ("fd", "<i4"),
        ("off", "<u8"),
        ("addr", "<u8"),
        ("len", "<u4"),
        ("op_flags", "<u4"),
        ("user_data", "<u8"),
        ("buf_index", "<u2"),
        ("personality", "<u2"),
        ("file_index", "<u4"),
        ("pad", "<u8", (2,)),
    ]
)

# `struct io_uring_cqe`.
CQE: Final = np.dtype([("user_data", "<u8"), ("res", "<i4"), ("flags", "<u4")])

# `struct io_uring_getevents_arg`.
GETEVENTS_ARG: Final = np.dtype(
    [("sigmask", "<u8"), ("sigmask_sz", "<u4"), ("min_wait_usec", "<u4"), ("ts", "<u8")]
)

# Ours. Places are of u32 words, in `sq` or `cq`.
QUEUE: Final = np.dtype(
    [
        ("ring_fd", "<i4"),  # NO_RING: the pool's
        ("event_fd", "<i4"),  # a ring's descriptor to sleep on, which does not block
        ("file", "<i4"),  # what an entry calls the file
        ("put", "<u4"),  # the index of the next entry; free-running, as all of them
        ("refused", "<u4"),  # entries that could not be handed over, the last that are put
        ("sq_head", "<u4"),  # places
        ("sq_tail", "<u4"),
        ("sq_flags", "<u4"),
        ("cq_head", "<u4"),
        ("cq_tail", "<u4"),
        ("cq_flags", "<u4"),
        ("enabled", "<u4"),  # the ring is its loop's thread's
        ("last_errno", "<u4"),  # of the last error; 0: fewer bytes than asked for
        ("last_kind", "<u4"),  # its job
        ("last_offset", "<u8"),
        ("errors", "<u8"),  # so far
        ("wait", GETEVENTS_ARG),
        ("timeout", "<i8", (2,)),  # its `struct __kernel_timespec`
    ]
)

NO_RING: Final = -1

IORING_OP_READV: Final = 1
IORING_OP_WRITEV: Final = 2
IORING_OP_FSYNC: Final = 3
IORING_OP_FALLOCATE: Final = 17
IORING_OP_READ: Final = 22
IORING_OP_WRITE: Final = 23
IORING_FSYNC_DATASYNC: Final = 1
PUNCH_HOLE: Final = 0x02 | 0x01  # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
IORING_SQ_CQ_OVERFLOW: Final = 2
IORING_SQ_TASKRUN: Final = 4
IORING_ENTER_GETEVENTS: Final = 1
IO_URING_ENTER: Final = 426  # the same number on every architecture
IO_URING_REGISTER: Final = 427
IORING_REGISTER_ENABLE_RINGS: Final = 12
FAILURES_MAX: Final = 16
ENTRIES_A_CALL: Final = 8
AGAIN: Final = (errno.EINTR, errno.EAGAIN, errno.EBUSY)
IOVECS_BYTES: Final = 11 * IOVEC.itemsize  # a slot's

syscall = types.ExternalFunction(
    "syscall",
    types.int64(
        types.int64, types.int64, types.int64, types.int64, types.int64, types.int64, types.int64
    ),
)


class StoreQueue(NamedTuple):
    """head: QUEUE (1,); sq, cq: u32, the rings as they are mapped; sqes: SQE and cqes: CQE, as many
    as each ring has, a power of two; gate: u64, the pool's (`backend/pool_gate.py`).
    """

    head: np.ndarray
    sq: np.ndarray
    cq: np.ndarray
    sqes: np.ndarray
    cqes: np.ndarray
    gate: np.ndarray


STORE_QUEUE: Final = Layout(
    StoreQueue, head=QUEUE, sq=np.uint32, cq=np.uint32, sqes=SQE, cqes=CQE, gate=np.uint64
)


def no_queue() -> StoreQueue:
    """For a ring whose store has none: nothing is ever put, and nothing answered."""
    words = np.zeros(4, np.uint32)
    head = np.zeros(1, QUEUE)
    head["ring_fd"], head["cq_tail"], head["sq_flags"] = NO_RING, 1, 2
    return StoreQueue(
        head, words, words, np.zeros(1, SQE), np.zeros(1, CQE), np.zeros(GATE_WORDS, np.uint64)
    )


def ends_of(queue: StoreQueue) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How many answers there were, how many of them were taken, and what is not 0 if the other end
    has more: u32 (1,) each, for who watches many.
    """
    head = queue.head[0]
    words = (queue.cq, "cq_tail"), (queue.cq, "cq_head"), (queue.sq, "sq_flags")
    answers, taken, flags = (ring[int(head[at]) :][:1] for ring, at in words)
    return answers, taken, flags


@kernel
def put(queue: StoreQueue, jobs: np.ndarray, iovecs: np.ndarray, slot: int) -> None:
    """Write the entry of `slot`'s job; `enter` hands it over.

    jobs: JOB (nr_slots,); iovecs: IOVEC (nr_slots, 11), which is read until the job is answered.
    """
    head, job = queue.head[0], jobs[slot]
    waiting = u32_sub(head.put, load_acquire(queue.sq, head.sq_head))
    assert waiting < len(queue.sqes), "more jobs than slots"
    entry = queue.sqes[np.int64(head.put) & (len(queue.sqes) - 1)]
    opcode, address, length, op_flags = IORING_OP_FSYNC, np.uint64(0), np.uint64(0), 0
    offset = job.offset
    if job.kind == DISCARD:
        opcode, address, length = IORING_OP_FALLOCATE, job.nr_bytes, np.uint64(PUNCH_HOLE)
    elif job.kind == FLUSH:
        op_flags, offset = IORING_FSYNC_DATASYNC, np.uint64(0)
    elif job.nr_iovecs == 1:
        opcode = IORING_OP_READ if job.kind == READ else IORING_OP_WRITE
        address, length = iovecs[slot, 0].address, job.nr_bytes
    else:
        opcode = IORING_OP_READV if job.kind == READ else IORING_OP_WRITEV
        address = np.uint64(iovecs.ctypes.data + np.int64(slot) * IOVECS_BYTES)
        length = np.uint64(job.nr_iovecs)
    entry.opcode, entry.flags = np.uint8(opcode), np.uint8(0)
    entry.fd, entry.off, entry.addr = head.file, offset, address
    entry.len, entry.op_flags = np.uint32(length), np.uint32(op_flags)
    entry.user_data = np.uint64(slot)
    head.put = u32_add(head.put, 1)


@kernel
def enter(queue: StoreQueue) -> np.int64:
    """Hand over all that is put; 0, or -errno if some could not be."""
    head = queue.head[0]
    head.refused = np.uint32(0)  # they are tried once more
    store_release(queue.sq, head.sq_tail, head.put)
    if head.ring_fd == NO_RING:
        wake_pool(queue.gate)
        return np.int64(0)
    if head.enabled == 0:
        _enable(queue)
    failures, error = 0, np.int64(0)
    while True:
        waiting = u32_sub(head.put, load_acquire(queue.sq, head.sq_head))
        if waiting == 0:
            return np.int64(0)
        if failures == FAILURES_MAX or error not in (0, *AGAIN):
            head.refused = waiting
            return -error
        taken = syscall(
            np.int64(IO_URING_ENTER), np.int64(head.ring_fd),
            np.int64(min(waiting, ENTRIES_A_CALL)), np.int64(0),
            np.int64(0), np.int64(0), np.int64(0),
        )  # fmt: skip
        # An entry that is bad ends the call before those behind it are taken: they go again.
        error = last_errno() if taken < 0 else np.int64(0)
        failures += taken <= 0


@kernel
def _enable(queue: StoreQueue) -> None:
    """The thread that does this is the one whose the ring is (IORING_SETUP_SINGLE_ISSUER)."""
    head = queue.head[0]
    refused = syscall(
        np.int64(IO_URING_REGISTER), np.int64(head.ring_fd),
        np.int64(IORING_REGISTER_ENABLE_RINGS), np.int64(0), np.int64(0), np.int64(0), np.int64(0),
    )  # fmt: skip
    head.enabled = np.uint32(refused == 0)


@kernel
def has_answers(queue: StoreQueue) -> bool:
    """Is there something to reap? No system call."""
    head = queue.head[0]
    if load_acquire(queue.cq, head.cq_tail) != load_acquire(queue.cq, head.cq_head):
        return True
    return head.refused > 0 or _kernel_waits(queue)


@kernel
def _kernel_waits(queue: StoreQueue) -> bool:
    """Has the kernel answers that it puts into the ring only when it is entered?"""
    flags = load_acquire(queue.sq, queue.head[0].sq_flags)
    return flags & (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW) != 0


@kernel
def reap(queue: StoreQueue, jobs: np.ndarray) -> np.int64:
    """The next answer, or -1: slot << 32 | status (BLKIF_RSP_*, 32 bits of it).

    jobs: JOB (nr_slots,). An error is counted, and the last one kept, in `head`.
    """
    head = queue.head[0]
    at = load_acquire(queue.cq, head.cq_head)
    if at == load_acquire(queue.cq, head.cq_tail) and _kernel_waits(queue):
        syscall(
            np.int64(IO_URING_ENTER), np.int64(head.ring_fd), np.int64(0), np.int64(0),
            np.int64(IORING_ENTER_GETEVENTS), np.int64(0), np.int64(0),
        )  # fmt: skip
    if at == load_acquire(queue.cq, head.cq_tail):
        if head.refused == 0:
            return np.int64(-1)
        return _taken_back(queue, jobs)
    answer = queue.cqes[np.int64(at) & (len(queue.cqes) - 1)]
    slot, done = np.int64(answer.user_data), np.int64(answer.res)
    store_release(queue.cq, head.cq_head, u32_add(at, 1))
    if head.ring_fd == NO_RING and u32_add(at, 1) == load_acquire(queue.cq, head.cq_tail):
        quiet(queue.gate, queue.cq, head.cq_head, head.cq_tail)
    job = jobs[slot]
    asked = np.int64(job.nr_bytes) if job.kind in (READ, WRITE) else np.int64(0)
    if done == asked:
        return slot << 32 | np.int64(BLKIF_RSP_OKAY)
    return _failed(head, jobs, slot, max(-done, 0))


@kernel
def _taken_back(queue: StoreQueue, jobs: np.ndarray) -> np.int64:
    """The last of what could not be handed over is answered here: the kernel has not seen it."""
    head = queue.head[0]
    head.refused -= np.uint32(1)
    head.put = u32_sub(head.put, 1)
    store_release(queue.sq, head.sq_tail, head.put)
    entry = queue.sqes[np.int64(head.put) & (len(queue.sqes) - 1)]
    return _failed(head, jobs, np.int64(entry.user_data), errno.EAGAIN)


@kernel
def _failed(head: Any, jobs: np.ndarray, slot: int, why: int) -> np.int64:
    """head: an element of it."""
    job = jobs[slot]
    head.errors += np.uint64(1)
    head.last_errno, head.last_kind, head.last_offset = np.uint32(why), job.kind, job.offset
    unable = why == errno.EOPNOTSUPP and job.kind in (FLUSH, DISCARD)
    return slot << 32 | np.int64((BLKIF_RSP_EOPNOTSUPP if unable else BLKIF_RSP_ERROR) & U32_MASK)
