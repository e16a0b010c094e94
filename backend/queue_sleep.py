"""How the thread that uses a queue sleeps until its store has answered.

Owns: the two ways, for `StoreQueue`s of both kinds. `wait_for` is of the compiled loop, and sleeps
for the store alone (`common/napping.py`); the other is the driver's, who sleeps on descriptors, of
which the queue's is one.
Rule: the kernel makes the descriptor of a ring ready between `begin_sleep` and `end_sleep` only:
all else is told by the ring itself, and costs no call. Whoever sleeps has seen `begin_sleep` say
that there is nothing yet.
"""

from typing import Final

import numpy as np

from backend.pool_gate import make_quiet
from backend.store_queue import (
    GETEVENTS_ARG,
    IO_URING_ENTER,
    IORING_ENTER_GETEVENTS,
    NO_RING,
    QUEUE,
    StoreQueue,
    has_answers,
    syscall,
)
from common.atomics import fence, store_release
from common.clock import nanosleep
from common.compiled import kernel, whole

IORING_ENTER_EXT_ARG: Final = 8
IORING_CQ_EVENTFD_DISABLED: Final = 1
WAIT_AT: Final = QUEUE.fields["wait"][1]  # type: ignore[index]
WAIT_BYTES: Final = GETEVENTS_ARG.itemsize
TIMEOUT_AT: Final = QUEUE.fields["timeout"][1]  # type: ignore[index]


@kernel
def wait_for(queue: StoreQueue, count: int, timeout_ns: int) -> None:
    """Sleep until there are so many answers, or so long (less than a second). Not at all, where the
    kernel has no such wait (before 5.11).
    """
    head = queue.head[0]
    head.timeout[0], head.timeout[1] = 0, timeout_ns
    at = queue.head.ctypes.data
    if head.ring_fd == NO_RING:
        nanosleep(at + TIMEOUT_AT)
        return
    head.wait.ts = np.uint64(at + TIMEOUT_AT)
    syscall(
        np.int64(IO_URING_ENTER), np.int64(head.ring_fd), np.int64(0), np.int64(count),
        np.int64(IORING_ENTER_GETEVENTS | IORING_ENTER_EXT_ARG), np.int64(at + WAIT_AT),
        np.int64(WAIT_BYTES),
    )  # fmt: skip


@whole
def begin_sleep(queue: StoreQueue) -> bool:
    """From now on the descriptor becomes ready; True if there is something to reap already."""
    head = queue.head[0]
    if head.ring_fd != NO_RING:
        store_release(queue.cq, head.cq_flags, np.uint32(0))
        fence()  # either we see the answer, or the kernel sees that it is to tell
    return has_answers(queue)


@whole
def end_sleep(queue: StoreQueue) -> None:
    """It becomes so no more, and is not."""
    head = queue.head[0]
    if head.ring_fd != NO_RING:
        store_release(queue.cq, head.cq_flags, np.uint32(IORING_CQ_EVENTFD_DISABLED))
        make_quiet(head.event_fd, queue.gate)
