"""Where the host refuses io_uring: a few threads that serve the very same rings.

Owns: the rings' memory, the threads, and what they do for an entry: one preadv, pwritev, fdatasync
or fallocate. They are compiled and hold no GIL; who has nothing to do sleeps
(`backend/pool_gate.py`).
"""

import errno
import logging
import os
import threading
from typing import Final

import numpy as np
from numba import types

from backend.pool_gate import (
    CLOSING,
    EVENT_FD,
    GATE_WORDS,
    ONE,
    close_gate,
    lock,
    signal_answer,
    unlock,
    wait_for_bell,
)  # fmt: skip
from backend.store_queue import (
    CQE,
    IORING_OP_FALLOCATE,
    IORING_OP_FSYNC,
    IORING_OP_READ,
    IORING_OP_READV,
    IORING_OP_WRITE,
    NO_RING,
    QUEUE,
    SQE,
    StoreQueue,
)  # fmt: skip
from common.atomics import load_acquire, store_release
from common.compiled import kernel, whole
from common.libc import last_errno
from common.u32 import u32_add

log = logging.getLogger(__name__)

NR_THREADS: Final = 4
JOIN_S: Final = 5.0
# Places of u32 words: as far from each other as cache lines are.
SQ_HEAD, SQ_TAIL, SQ_FLAGS, CQ_HEAD, CQ_TAIL = range(0, 80, 16)

_io = types.intp(types.intc, types.uintp, types.uintp, types.int64)
_pread, _pwrite = types.ExternalFunction("pread", _io), types.ExternalFunction("pwrite", _io)
_iov = types.intp(types.intc, types.uintp, types.intc, types.int64)
_preadv, _pwritev = types.ExternalFunction("preadv", _iov), types.ExternalFunction("pwritev", _iov)
_fdatasync = types.ExternalFunction("fdatasync", types.intc(types.intc))
_fallocate = types.ExternalFunction(
    "fallocate", types.intc(types.intc, types.intc, types.int64, types.int64)
)


class FilePool:
    """`nr_slots` jobs at once for the file `fd`, which stays the caller's; as `IoUring`.

    Raises OSError or RuntimeError where descriptor or threads cannot be had.
    """

    def __init__(self, fd: int, nr_slots: int) -> None:
        nr_sqes = 1 << (nr_slots - 1).bit_length()
        head, words = np.zeros(1, QUEUE), np.zeros(80, np.uint32)
        head["ring_fd"], head["file"] = NO_RING, fd
        head["sq_head"], head["sq_tail"], head["sq_flags"] = SQ_HEAD, SQ_TAIL, SQ_FLAGS
        head["cq_head"], head["cq_tail"] = CQ_HEAD, CQ_TAIL
        self.polled_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        gate = np.zeros(GATE_WORDS, np.uint64)
        gate[EVENT_FD], gate[ONE] = self.polled_fd, 1
        entries, answers = np.zeros(nr_sqes, SQE), np.zeros(2 * nr_sqes, CQE)
        self.queue = StoreQueue(head, words, words, entries, answers, gate)
        self._threads: list[threading.Thread] = []
        try:
            for _ in range(min(NR_THREADS, nr_slots)):
                thread = threading.Thread(target=serve_pool, args=(self.queue,), daemon=True)
                thread.start()
                self._threads.append(thread)
        except RuntimeError:
            self.close()
            raise

    def close(self) -> None:
        """Nothing is on its way any more, and nobody uses `queue`. A thread that is stuck in the
        host's file system all the same is left there, with what it uses.
        """
        close_gate(self.queue.gate)
        for thread in self._threads:
            thread.join(JOIN_S)
            if thread.is_alive():
                log.warning("a thread does not come back from a disk's file")
                return
        os.close(self.polled_fd)


@whole
def serve_pool(queue: StoreQueue) -> None:
    """A thread: entry after entry, until the gate closes."""
    head = queue.head[0]
    entries, answers = queue.sqes, queue.cqes
    lock(queue.gate)
    while True:
        if load_acquire(queue.gate, CLOSING):
            break
        at = load_acquire(queue.sq, head.sq_head)
        if at == load_acquire(queue.sq, head.sq_tail):
            wait_for_bell(queue.gate)
            continue
        entry = entries[np.int64(at) & (len(entries) - 1)]
        opcode, address, length = np.int64(entry.opcode), entry.addr, entry.len
        offset, user_data = np.int64(entry.off), entry.user_data
        store_release(queue.sq, head.sq_head, u32_add(at, 1))  # from now on it may be overwritten
        unlock(queue.gate)
        done = _do(head.file, opcode, address, length, offset)
        lock(queue.gate)
        tail = load_acquire(queue.cq, head.cq_tail)
        answer = answers[np.int64(tail) & (len(answers) - 1)]
        answer.user_data, answer.res = user_data, np.int32(done)
        signal_answer(queue.gate)
        store_release(queue.cq, head.cq_tail, u32_add(tail, 1))
    unlock(queue.gate)


@kernel
def _do(fd: int, opcode: int, address: int, length: int, offset: int) -> np.int64:
    """What io_uring would do for an entry; bytes, 0 or -errno."""
    while True:
        if opcode == IORING_OP_FSYNC:
            done = np.int64(_fdatasync(np.int32(fd)))
        elif opcode == IORING_OP_FALLOCATE:
            done = np.int64(_fallocate(np.int32(fd), np.int32(length), offset, np.int64(address)))
        elif opcode == IORING_OP_READ:
            done = np.int64(_pread(np.int32(fd), address, np.uint64(length), offset))
        elif opcode == IORING_OP_WRITE:
            done = np.int64(_pwrite(np.int32(fd), address, np.uint64(length), offset))
        elif opcode == IORING_OP_READV:
            done = np.int64(_preadv(np.int32(fd), address, np.int32(length), offset))
        else:
            done = np.int64(_pwritev(np.int32(fd), address, np.int32(length), offset))
        if done >= 0:
            return done
        error = last_errno()
        if error != errno.EINTR:
            return -error
