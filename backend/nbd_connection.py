"""An NBD connection in its transmission phase: what its driver calls, three compiled functions.

Owns: the arrays, and the order of receiving, sending and giving up. Python is entered a batch, not
a request.
"""

import errno
import os
from collections.abc import Callable
from functools import cache
from typing import Any, Final

import numpy as np

from backend.nbd_negotiation import Export
from backend.nbd_replies import receive_all
from backend.nbd_requests import fail, give_up_late, now, send_all, take_on, wait_in_line
from backend.nbd_state import (
    BUFFER_BYTES,
    CODES,
    CONNECTION,
    CUT_OFF,
    ENTRIES,
    ENTRY,
    HELD,
    NO_ENTRY,
    NO_SLOT,
    PARTS_MAX,
    REASONS,
    SLOT,
    TRIM_MAX,
    Connection,
)
from backend.slots import KINDS
from backend.store_jobs import IOVEC, JOB, Jobs
from common.arena import Arena
from common.compiled import direct, whole
from common.nbd_wire import FLAG_SEND_FLUSH, FLAG_SEND_TRIM, REQUEST_BYTES
from common.rows import Layout

NBD_CONNECTION: Final = Layout(
    Connection,
    state=CONNECTION,
    jobs=JOB,
    iovecs=(IOVEC, 2),
    answered="u4",
    statuses="i4",
    slots=SLOT,
    waiting="u4",
    entries=ENTRY,
    free="u4",
    parts=("i8", 3),
    failures=("u8", 2),
    incoming="u1",
    outgoing="u1",
    zeros="u1",
    clock="i8",
)
_view = NBD_CONNECTION.view


@whole
def begin(rows: np.ndarray, slots: np.ndarray) -> np.int64:
    """Take on the jobs of `slots` (u32), and send as many as can be; how many are answered.

    rows: NBD_CONNECTION's, one.
    """
    c = _view(rows, 0)
    state = c.state[0]
    state.nr_answered = np.uint32(0)
    now_ns = now(c)
    for at in range(len(slots)):
        take_on(c, slots[at], now_ns)
    if state.connected != 0:
        send_all(c, now_ns)
    return np.int64(state.nr_answered)


@whole
def go_on(rows: np.ndarray) -> np.int64:
    """Receive, send, give up what is late; how many are answered."""
    c = _view(rows, 0)
    state = c.state[0]
    state.nr_answered = np.uint32(0)
    now_ns = now(c)
    if state.connected != 0:
        receive_all(c, now_ns)
        send_all(c, now_ns)
    if state.deadline_ns != 0 and now_ns >= state.deadline_ns:
        give_up_late(c, now_ns)
    return np.int64(state.nr_answered)


@whole
def lose(rows: np.ndarray) -> np.int64:
    """The connection is gone. What was on its way waits to be sent again, ahead of the rest, but
    has failed if it was sent again before; how many are answered, with those before."""
    c = _view(rows, 0)
    state = c.state[0]
    for index in range(len(c.entries)):
        c.entries[index].cookie = np.uint64(0)
        c.entries[index].slot = NO_SLOT
        c.free[index] = index
    state.nr_free = np.uint32(len(c.entries))
    for slot in range(len(c.slots)):
        kept = c.slots[slot]
        if kept.active == 0 or kept.entry == NO_ENTRY:
            continue
        kept.entry = NO_ENTRY
        if kept.sent_again != 0:
            fail(c, slot, CUT_OFF)
        else:
            kept.sent_again = np.uint32(1)
            wait_in_line(c, slot, True)
    state.connected, state.lost, state.body_left = np.uint32(0), np.int32(HELD), 0
    state.out_from, state.out_to, state.in_from, state.in_to = 0, 0, 0, 0
    return np.int64(state.nr_answered)


def no_jobs() -> Jobs:
    """Of no ring: a slot that is never asked for."""
    one = np.zeros(1, np.uint32)
    return Jobs(np.zeros(1, JOB), np.zeros((1, 1), IOVEC), one, one.astype(np.int32))


def new_connection(jobs: Jobs, before: Connection | None = None) -> Connection:
    """With no job; on from `before`, which had none left, over the same socket."""
    assert len(jobs.jobs) <= ENTRIES // 2, f"{len(jobs.jobs)} slots"
    count = len(jobs.jobs)
    if before is None:
        arena = Arena(1 << 21)
        before = Connection(
            arena.array(1, CONNECTION), *jobs, arena.array(1, SLOT), arena.array(1, np.uint32),
            arena.array(ENTRIES, ENTRY), arena.array(ENTRIES, np.uint32),
            arena.array((ENTRIES, PARTS_MAX, 2), np.int64),
            arena.array((len(KINDS), CODES), np.uint64), arena.array(BUFFER_BYTES, np.uint8),
            arena.array(BUFFER_BYTES, np.uint8), arena.array(4096, np.uint8),
            arena.array(2, np.int64),
        )  # fmt: skip
        before.free[:] = np.arange(ENTRIES)
        before.state["nr_free"] = ENTRIES
    before.entries["slot"] = NO_SLOT
    for name in ("nr_waiting", "waiting_from", "nr_active", "deadline_ns", "closing_ns"):
        before.state[name] = 0
    jobs_, iovecs, answered, statuses = jobs
    return before._replace(
        jobs=jobs_, iovecs=iovecs, answered=answered, statuses=statuses,
        slots=np.zeros(count, SLOT), waiting=np.zeros(count, np.uint32),
    )  # fmt: skip


def connect(c: Connection, fd: int, export: Export) -> None:
    """Over this socket (non-blocking) from now on, which has been agreed about."""
    state = c.state[0]
    state["fd"], state["connected"], state["structured"] = fd, 1, export.structured
    most = BUFFER_BYTES - REQUEST_BYTES
    state["max_payload"] = min(export.max_payload, most - most % export.min_block)
    state["trim_max"] = TRIM_MAX
    state["can_flush"] = bool(export.flags & FLAG_SEND_FLUSH)
    state["can_trim"] = bool(export.flags & FLAG_SEND_TRIM)


def reason_of(lost: int) -> str:
    """What `state.lost` means."""
    return os.strerror(-lost) if lost < 0 else REASONS[lost]


def text_of(code: int) -> str:
    """What a column of `failures` counts."""
    texts = {
        0: "not all of it came",
        CODES - 3: "not to be had",
        CODES - 2: "no answer in time",
        CODES - 1: "the connection was lost twice",
    }
    return texts.get(code) or (os.strerror(code) if code in errno.errorcode else f"error {code}")


@cache
def kernels() -> tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]:
    """begin, go_on and lose, compiled or loaded now."""
    rows = NBD_CONNECTION.rows(Arena(1 << 16), 1)
    return direct(begin, rows, np.zeros(1, np.uint32)), direct(go_on, rows), direct(lose, rows)
