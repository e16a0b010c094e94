"""A disk's io_uring: set up by three system calls, and closed with the disk.

Owns: the ring's descriptor and its mapped memory, as a `StoreQueue`. There is no liburing: the
calls are made by the C library's `syscall`, and what the rings are is in linux/io_uring.h.
"""

import ctypes
import errno
import mmap
import os
from typing import Any, Final

import numpy as np

from backend.pool_gate import GATE_WORDS
from backend.queue_sleep import end_sleep
from backend.store_queue import CQE, IO_URING_REGISTER, QUEUE, SQE, StoreQueue
from common.copying import byte_view

IO_URING_SETUP: Final = 425
IORING_OFF_SQ_RING: Final = 0
IORING_OFF_SQES: Final = 0x10000000
IORING_SETUP_R_DISABLED: Final = 1 << 6
IORING_SETUP_COOP_TASKRUN: Final = 1 << 8
IORING_SETUP_TASKRUN_FLAG: Final = 1 << 9
IORING_SETUP_SINGLE_ISSUER: Final = 1 << 12
IORING_SETUP_DEFER_TASKRUN: Final = 1 << 13
IORING_FEAT_SINGLE_MMAP: Final = 1 << 0
IORING_FEAT_RW_CUR_POS: Final = 1 << 3  # came with 5.6, as did READ and WRITE
IORING_REGISTER_EVENTFD: Final = 4
MAP_POPULATE: Final = 0x8000

# From what spares most to what any kernel knows. Answers that a device's interrupt brings neither
# interrupt the thread that runs the loop nor wake it: it is told by a flag, and fetches them
# (`reap`). Such a ring is one thread's, the one that enables it (`enter`).
SETUPS: Final = (
    IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_R_DISABLED
    | IORING_SETUP_TASKRUN_FLAG,
    IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG,
    0,
)  # fmt: skip

_OFFSETS: Final = [
    ("head", "<u4"), ("tail", "<u4"), ("ring_mask", "<u4"), ("ring_entries", "<u4"),
]  # fmt: skip
PARAMS: Final = np.dtype(
    [
        ("sq_entries", "<u4"),
        ("cq_entries", "<u4"),
        ("flags", "<u4"),
        ("sq_thread", "<u4", (2,)),
        ("features", "<u4"),
        ("wq_fd", "<u4"),
        ("resv", "<u4", (3,)),
        ("sq", [*_OFFSETS, ("flags", "<u4"), ("dropped", "<u4"), ("array", "<u4"),
                ("resv", "<u4", (3,))]),
        ("cq", [*_OFFSETS, ("overflow", "<u4"), ("cqes", "<u4"), ("flags", "<u4"),
                ("resv", "<u4", (3,))]),
    ]
)  # fmt: skip

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_libc.syscall.argtypes = [ctypes.c_long] * 5
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


class IoUring:
    """`nr_slots` jobs at once for the file `fd`, which stays the caller's.

    queue: for the loop; polled_fd: an eventfd, for who sleeps (`begin_sleep`). Raises OSError where
    the host refuses it.
    """

    def __init__(self, fd: int, nr_slots: int) -> None:
        self._maps: list[tuple[int, int]] = []
        self.polled_fd, self._ring_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC), -1
        try:
            self._ring_fd, params = _set_up(nr_slots)
            self.queue = self._mapped(params[0])
            self.queue.head["file"] = fd
            self.queue.head["enabled"] = not int(params["flags"][0]) & IORING_SETUP_R_DISABLED
            told = np.array([self.polled_fd], np.int32)
            _call(IO_URING_REGISTER, self._ring_fd, IORING_REGISTER_EVENTFD, told.ctypes.data, 1)
            end_sleep(self.queue)
        except BaseException:
            self.close()
            raise

    def _mapped(self, params: Any) -> StoreQueue:
        if ~int(params["features"]) & (IORING_FEAT_RW_CUR_POS | IORING_FEAT_SINGLE_MMAP):
            raise OSError(errno.ENOSYS, "io_uring is of a kernel before 5.6")
        sq, cq = params["sq"], params["cq"]
        nr_sqes, nr_cqes = int(params["sq_entries"]), int(params["cq_entries"])
        entries = int(cq["cqes"]), int(cq["cqes"]) + nr_cqes * CQE.itemsize
        end = max(entries[1], int(sq["array"]) + 4 * nr_sqes)
        # One mapping for both rings, since 5.4.
        rings = self._map(IORING_OFF_SQ_RING, -(-end // 64) * 64)
        words = rings.view(np.uint32)
        at = int(sq["array"]) // 4
        words[at : at + nr_sqes] = np.arange(nr_sqes)  # an entry's place is its index, always
        head = np.zeros(1, QUEUE)
        head["ring_fd"], head["event_fd"] = self._ring_fd, self.polled_fd
        for name, place in (
            ("sq_head", sq["head"]), ("sq_tail", sq["tail"]), ("sq_flags", sq["flags"]),
            ("cq_head", cq["head"]), ("cq_tail", cq["tail"]), ("cq_flags", cq["flags"]),
        ):  # fmt: skip
            head[name] = int(place) // 4
        return StoreQueue(
            head,
            words,
            words,
            self._map(IORING_OFF_SQES, nr_sqes * SQE.itemsize).view(SQE),
            rings[entries[0] : entries[1]].view(CQE),
            np.zeros(GATE_WORDS, np.uint64),
        )

    def _map(self, offset: int, nbytes: int) -> np.ndarray:
        # Not Python's own mmap: that keeps a descriptor for as long as the mapping lives.
        protection, flags = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED | MAP_POPULATE
        address = _libc.mmap(None, nbytes, protection, flags, self._ring_fd, offset)
        if address in (None, ctypes.c_void_p(-1).value):
            raise OSError(ctypes.get_errno(), "cannot map io_uring's rings")
        self._maps.append((address, nbytes))
        return byte_view(address, nbytes)

    def close(self) -> None:
        """Nothing is on its way any more, and nobody uses `queue`."""
        for address, nbytes in self._maps:
            _libc.munmap(address, nbytes)
        self._maps.clear()
        for fd in (self._ring_fd, self.polled_fd):
            if fd >= 0:
                os.close(fd)


def _set_up(nr_slots: int) -> tuple[int, np.ndarray]:
    """A ring's descriptor, close-on-exec, and the parameters that the kernel has filled in."""
    for flags in SETUPS:
        params = np.zeros(1, PARAMS)
        params["flags"] = flags
        try:
            return _call(IO_URING_SETUP, nr_slots, params.ctypes.data), params
        except OSError as error:
            if error.errno != errno.EINVAL or flags == SETUPS[-1]:
                raise
    raise AssertionError("the last one is returned or raised")


def _call(number: int, *arguments: int) -> int:
    done = _libc.syscall(number, *arguments, *[0] * (4 - len(arguments)))
    if done < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return int(done)
