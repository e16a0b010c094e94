"""What a traced run leaves behind: which phase of which ring began when, in memory that is shared.

Owns: the layout of the logs, and how an entry is written. Each has one writer. Who traces says
until when and how much may be written: what is off is 0, and a log that is full is written no more
until somebody gives it room, so nothing in it changes while it is read.
Never knows: which phases are worth an entry; that is each driver's.

A guest's log lies behind its STATS, in its own segment `stats`: it may hold anything. dom0's and
the hypervisor's are in the machine's segment `trace`.
"""

import time
from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np

from common.compiled import kernel
from common.machine_memory import RINGS_MAX, STATS, whole_pages

BACK_ENTRIES: Final = 4096  # of a vCPU's log
FRONT_ENTRIES: Final = 8192
CALL_ENTRIES: Final = 2048

HEAD: Final = np.dtype(
    [
        ("until_ns", "<u8"),  # of CLOCK_MONOTONIC; written by who traces
        ("limit", "<u8"),  # as many may have been written; by who traces
        ("written", "<u8"),  # ever; the place of an entry is its number modulo the log's size
        ("pad", "<u8", (5,)),
    ]
)

UNTIL, LIMIT, WRITTEN = range(3)  # words of a head

# A phase begins. index: which request of the ring it is about, free-running; ident: that request's
# id. Which of the two, and of the rest, is known depends on the phase: 0 where it is not.
STEP_ENTRY: Final = np.dtype(
    [
        ("at_ns", "<u8"),
        ("sector", "<u8"),
        ("index", "<u4"),
        ("ident", "<u4"),
        ("ring", "<u4"),  # the writer's number
        ("step", "u1"),
        ("operation", "u1"),
        ("nr_segments", "u1"),
        ("pad", "u1"),
    ]
)

# A hypercall by the gate: whom its flush interrupted is a set of CPUs.
CALL_ENTRY: Final = np.dtype(
    [
        ("at_ns", "<u8"),
        ("end_ns", "<u8"),
        ("vcpu", "<u4"),
        ("cmd", "<u4"),
        ("flushes", "<u4"),
        ("ipis", "<u4"),
        ("interrupted", "<u8", (4,)),
    ]
)

FRONT_LOG: Final = np.dtype([("head", HEAD), ("entries", STEP_ENTRY, (FRONT_ENTRIES,))])
BACK_LOG: Final = np.dtype([("head", HEAD), ("entries", STEP_ENTRY, (BACK_ENTRIES,))])
CALL_LOG: Final = np.dtype([("head", HEAD), ("entries", CALL_ENTRY, (CALL_ENTRIES,))])
RING_NAME: Final = np.dtype([("domid", "<u4"), ("device", "<u4")])  # of dom0's ring numbers

FRONT_LOG_AT: Final = whole_pages(STATS.itemsize)
STATS_BYTES: Final = FRONT_LOG_AT + FRONT_LOG.itemsize  # the segment `stats`


class Log(NamedTuple):
    """head: HEAD (1,); entries: STEP_ENTRY or CALL_ENTRY: views."""

    head: np.ndarray
    entries: np.ndarray

    def asks(self) -> Callable[[], bool]:
        """Is anything to be written now? To be asked often: while it is off, one load."""
        words = self.head.view(np.uint64).data

        def is_on() -> bool:
            until_ns = words[UNTIL]
            if not until_ns:
                return False
            return bool(words[WRITTEN] < words[LIMIT]) and time.monotonic_ns() < until_ns

        return is_on


class TraceLogs(NamedTuple):
    """Of the segment `trace`. rings: RING_NAME, by dom0's number of a ring; backs: by vCPU."""

    rings: np.ndarray
    calls: Log
    backs: list[Log]


def trace_bytes(nr_cpus: int) -> int:
    """The size of the segment `trace`."""
    return RINGS_MAX * RING_NAME.itemsize + CALL_LOG.itemsize + nr_cpus * BACK_LOG.itemsize


def trace_logs(segment: np.ndarray, nr_cpus: int) -> TraceLogs:
    """The logs of a segment `trace` (u8)."""
    calls_at = RINGS_MAX * RING_NAME.itemsize
    backs_at = calls_at + CALL_LOG.itemsize
    starts = [backs_at + cpu * BACK_LOG.itemsize for cpu in range(nr_cpus)]
    return TraceLogs(
        segment[:calls_at].view(RING_NAME),
        _log(segment, calls_at, CALL_LOG),
        [_log(segment, start, BACK_LOG) for start in starts],
    )


def front_log(stats: np.ndarray) -> Log:
    """A guest's log, in its segment `stats` (u8)."""
    return _log(stats, FRONT_LOG_AT, FRONT_LOG)


def _log(segment: np.ndarray, start: int, dtype: np.dtype) -> Log:
    record = segment[start : start + dtype.itemsize].view(dtype)
    return Log(record["head"], record["entries"][0])


@kernel
def write_step(
    head: np.ndarray,
    entries: np.ndarray,
    at_ns: int,
    ring: int,
    step: int,
    index: int,
    ident: int,
    sector: int,
    operation: int,
    nr_segments: int,
) -> None:
    """One entry, if it is to be written yet."""
    if np.uint64(at_ns) >= head[0].until_ns or head[0].written >= head[0].limit:
        return
    entry = entries[np.int64(head[0].written % np.uint64(len(entries)))]
    entry.at_ns, entry.sector = np.uint64(at_ns), np.uint64(sector)
    entry.index, entry.ident = np.uint32(index), np.uint32(ident)
    entry.ring, entry.step = np.uint32(ring), np.uint8(step)
    entry.operation, entry.nr_segments = np.uint8(operation), np.uint8(nr_segments)
    head[0].written += np.uint64(1)
