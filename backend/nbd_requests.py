"""An NBD connection's requests, compiled: what a job is on its way to the server, and its answer.

Owns: who waits, who is sent, who is too late (`backend/nbd_state.py` is what is kept). What the
server answers is `backend/nbd_replies.py`'s.
Rules
1. A slot's job is one *request* at a time: at most `max_payload` bytes of it, then the next.
2. A request has an *entry*, and its cookie says which and, by a number that is used once, whose. An
   entry outlives its slot: a job that is given up is answered, its entry has no slot from then on,
   and what the server still says of it is read and dropped.
3. What is sent has been copied before: a slot's pages are looked at only while its job is not
   answered.
4. After `lost` nothing is sent or received; the driver makes another connection.
"""

import numpy as np

from backend.nbd_state import (
    CROWDED,
    ENTRY_BITS,
    HELD,
    INCOMPLETE,
    NO_ENTRY,
    NO_SLOT,
    OTHER,
    SILENT,
    TIMED_OUT,
    Connection,
)
from backend.slots import DISCARD, FLUSH, READ, WRITE
from common.abi import BLKIF_RSP_ERROR, BLKIF_RSP_OKAY
from common.clock import monotonic_ns
from common.compiled import kernel
from common.copying import copy_bytes
from common.nbd_wire import (
    CMD_FLUSH,
    CMD_READ,
    CMD_TRIM,
    CMD_WRITE,
    REQUEST_BYTES,
    put_request,
)
from common.stream_socket import AGAIN, INTERRUPTED, send_some


@kernel
def answer(c: Connection, slot: int, status: int) -> None:
    """The job of `slot` is over."""
    state = c.state[0]
    c.answered[state.nr_answered] = slot
    c.statuses[state.nr_answered] = status
    state.nr_answered += np.uint32(1)
    c.slots[slot].active = np.uint32(0)
    c.slots[slot].entry = NO_ENTRY
    state.nr_active -= np.uint32(1)
    if state.nr_active == 0:
        state.deadline_ns = 0


@kernel
def fail(c: Connection, slot: int, code: int) -> None:
    """The same, as an error."""
    c.failures[c.jobs[slot].kind, min(code, OTHER) if code < TIMED_OUT else code] += np.uint64(1)
    c.state[0].nr_failed += np.uint32(1)
    answer(c, slot, BLKIF_RSP_ERROR)


@kernel
def wait_in_line(c: Connection, slot: int, ahead: bool) -> None:
    """It is sent when it is its turn: after all others, or ahead of them."""
    state, size = c.state[0], np.uint32(len(c.waiting))
    at = state.waiting_from + (size - np.uint32(1) if ahead else state.nr_waiting)
    c.waiting[at % size] = slot
    if ahead:
        state.waiting_from = np.uint32(at % size)
    state.nr_waiting += np.uint32(1)


@kernel
def take_on(c: Connection, slot: int, now_ns: int) -> None:
    """A new job."""
    state, job, kept = c.state[0], c.jobs[slot], c.slots[slot]
    due_ns = now_ns + state.timeout_ns
    if state.closing_ns != 0:
        due_ns = min(due_ns, state.closing_ns)
    kept.due_ns, kept.at, kept.entry = due_ns, 0, NO_ENTRY
    kept.active, kept.sent_again = np.uint32(1), np.uint32(0)
    state.nr_active += np.uint32(1)
    if state.deadline_ns == 0 or due_ns < state.deadline_ns:
        state.deadline_ns = due_ns
    if (job.kind == FLUSH and state.can_flush == 0) or (
        job.kind == DISCARD and state.can_trim == 0
    ):
        fail(c, slot, OTHER)
    elif job.nr_bytes == 0 and job.kind != FLUSH:
        answer(c, slot, BLKIF_RSP_OKAY)
    else:
        wait_in_line(c, slot, False)


@kernel
def finish(c: Connection, index: int) -> None:
    """The server has said all there is of an entry, which is free from now on."""
    state, entry = c.state[0], c.entries[index]
    slot = entry.slot
    entry.cookie = np.uint64(0)
    c.free[state.nr_free] = index
    state.nr_free += np.uint32(1)
    if slot == NO_SLOT:
        return
    kept = c.slots[slot]
    kept.entry = NO_ENTRY
    if entry.error != 0:
        fail(c, slot, min(entry.error, np.uint32(OTHER)))
    elif entry.kind == READ and entry.got != entry.nr_bytes:
        fail(c, slot, INCOMPLETE)
    else:
        kept.at += entry.nr_bytes
        if kept.at >= np.int64(c.jobs[slot].nr_bytes):
            answer(c, slot, BLKIF_RSP_OKAY)
        else:
            wait_in_line(c, slot, False)


@kernel
def move(c: Connection, slot: int, at: int, address: int, nr_bytes: int, gathers: bool) -> None:
    """Copy between `address` and the pages of a job, from its byte `at` on; gathers: to address."""
    index = 0
    skipped, left, here = np.int64(at), np.int64(nr_bytes), np.int64(address)
    while left > 0:
        part_bytes = np.int64(c.iovecs[slot, index].nr_bytes)
        page = np.int64(c.iovecs[slot, index].address) + skipped
        index += 1
        if skipped >= part_bytes:
            skipped -= part_bytes
            continue
        size = np.int64(min(left, part_bytes - skipped))
        if gathers:
            copy_bytes(here, page, size)
        else:
            copy_bytes(page, here, size)
        here += size
        left -= size
        skipped = np.int64(0)


@kernel
def _put(c: Connection, slot: int, now_ns: int) -> bool:
    """Put the next request of a slot's job into `outgoing`; False if there is no room."""
    state, job, kept = c.state[0], c.jobs[slot], c.slots[slot]
    most = state.trim_max if job.kind == DISCARD else state.max_payload
    size = min(np.int64(job.nr_bytes) - kept.at, most) if job.kind != FLUSH else 0
    brings = size if job.kind == WRITE else 0
    if state.out_to + REQUEST_BYTES + brings > len(c.outgoing):
        return False
    if state.nr_free == 0:
        state.lost = CROWDED
        return False
    state.nr_free -= np.uint32(1)
    index = c.free[state.nr_free]
    state.serial += np.uint64(1)
    entry = c.entries[index]
    entry.cookie = state.serial << np.uint64(ENTRY_BITS) | np.uint64(index)
    entry.offset = np.int64(job.offset) + kept.at if job.kind != FLUSH else 0
    entry.nr_bytes, entry.got, entry.sent_ns = size, 0, now_ns
    entry.slot, entry.kind = np.int32(slot), job.kind
    entry.error, entry.nr_parts = np.uint32(0), np.uint32(0)
    kept.entry = np.int32(index)
    command = CMD_READ
    if job.kind == WRITE:
        command = CMD_WRITE
    elif job.kind == FLUSH:
        command = CMD_FLUSH
    elif job.kind == DISCARD:
        command = CMD_TRIM
    put_request(c.outgoing, state.out_to, command, entry.cookie, entry.offset, size)
    state.out_to += REQUEST_BYTES
    if brings > 0:
        move(c, slot, kept.at, np.int64(c.outgoing.ctypes.data) + state.out_to, brings, True)
        state.out_to += brings
    return True


@kernel
def send_all(c: Connection, now_ns: int) -> None:
    """Send who waits, as far as the socket takes it: many requests a system call."""
    state, size = c.state[0], np.uint32(len(c.waiting))
    while state.lost == HELD:
        while state.nr_waiting > 0 and _put(c, c.waiting[state.waiting_from], now_ns):
            state.waiting_from = np.uint32((state.waiting_from + np.uint32(1)) % size)
            state.nr_waiting -= np.uint32(1)
        to_send = state.out_to - state.out_from
        if to_send == 0 or state.lost != HELD:
            break
        sent = send_some(state.fd, np.int64(c.outgoing.ctypes.data) + state.out_from, to_send)
        if sent < 0:
            if sent not in (AGAIN, INTERRUPTED):
                state.lost = np.int32(sent)
            break
        state.out_from += sent
        if state.out_from < state.out_to:
            break
        state.out_from, state.out_to = 0, 0


@kernel
def give_up_late(c: Connection, now_ns: int) -> None:
    """Answer the jobs that are due. A server that has said nothing at all since one was sent is
    lost."""
    state, size = c.state[0], np.uint32(len(c.waiting))
    earliest_ns = 0
    for slot in range(len(c.slots)):
        kept = c.slots[slot]
        if kept.active == 0:
            continue
        if kept.due_ns > now_ns:
            if earliest_ns == 0 or kept.due_ns < earliest_ns:
                earliest_ns = kept.due_ns
            continue
        if kept.entry != NO_ENTRY:
            entry = c.entries[kept.entry]
            entry.slot = NO_SLOT
            silent = state.received_ns <= entry.sent_ns
            if silent and now_ns - entry.sent_ns >= state.timeout_ns and state.lost == HELD:
                state.lost = SILENT
        fail(c, slot, TIMED_OUT)
    state.deadline_ns = earliest_ns
    for _ in range(state.nr_waiting):
        slot = c.waiting[state.waiting_from]
        state.waiting_from = np.uint32((state.waiting_from + np.uint32(1)) % size)
        state.nr_waiting -= np.uint32(1)
        if c.slots[slot].active != 0:
            wait_in_line(c, slot, False)


@kernel
def now(c: Connection) -> np.int64:
    """CLOCK_MONOTONIC, ns."""
    return np.int64(monotonic_ns(c.clock))
