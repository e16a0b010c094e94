"""blkfront's phases from an I/O to its requests on the ring. Sans-I/O.

Owns: what is done with a Blkfront (`frontend/blkfront_info.py`) in each phase, each with at most
one access to what the peer may change. Which follows which is `frontend/steps.py`'s; the way back
is in `frontend/responses.py`.
Three ways with grants, by what was negotiated:
    PERSISTENT   pool pages, copied through; a grant stays as long as the backend keeps it mapped,
                 which the guest learns by trying, at each completion, to end access, as Linux does
    REUSE        the backend does not keep pages mapped; the pool's grants are used again even so
    PER_REQUEST  the caller's own pages are granted for one request, read-only for a disk write
Never knows: time, processes, sockets.

Source: Xen's `io/blkif.h`; behaviour after Linux's blkfront (2012 and 6.1, see docs/design.md).
"""

import numpy as np

from common import notifying, ring
from common.abi import (
    BLKIF_MAX_SEGMENTS_PER_REQUEST,
    BLKIF_OP_DISCARD,
    BLKIF_OP_WRITE,
    BLKIF_RSP_EOPNOTSUPP,
    BLKIF_RSP_OKAY,
    SECTORS_PER_PAGE,
)
from common.blkif import put_discard, put_request, put_segment
from common.compiled import kernel, part
from common.not_done import NOT_DONE
from common.ring import REQ
from common.steps import (
    AGAIN,
    COPY,
    END,
    EVENT,
    GRANT,
    NONE,
    ON,
    TAKEN,
    WOKE,
    WRITTEN,
)
from common.u32 import u32_add
from frontend.blkfront_info import (
    NO_ROOM,
    NOT_SENT,
    PER_REQUEST,
    Blkfront,
)
from frontend.bouncing import copy_sectors
from frontend.grants import (
    NO_GREF,
    end_access,
    grant_access,
)
from frontend.page_pool import NO_PAGE, take_page
from frontend.room import LATER, ROOM, room_for

# --- the caller's side ------------------------------------------------------------------------


@kernel
def enqueue(dev: Blkfront, io: int) -> None:
    """Queue I/O `io` (its operation, sector, nr_sectors and frame are set)."""
    front = dev.front[0]
    dev.ios[io].issued_sectors = np.uint64(0)
    dev.ios[io].outstanding = np.uint32(0)
    dev.ios[io].status = np.int16(NOT_DONE)
    last = (np.int64(front.queue_first) + np.int64(front.queued)) % len(dev.queue)
    dev.queue[last] = np.int32(io)
    front.queued += np.uint32(1)


@part
def rest(dev: Blkfront) -> int:
    """Nothing can be put on the ring now: AGAIN if this turn has done anything, else NONE."""
    turn = dev.turn
    return AGAIN if turn[TAKEN] + turn[EVENT] + turn[WOKE] > 0 else NONE


@part
def new_turn(dev: Blkfront) -> None:
    """Forget what the last turn has done."""
    dev.turn[TAKEN], dev.turn[WRITTEN] = 0, 0
    dev.turn[EVENT], dev.turn[WOKE] = 0, 0


@kernel
def finish_io(dev: Blkfront, io: int) -> None:
    """I/O `io` is done, whichever way: its caller will find it."""
    dev.done[dev.front[0].done] = np.int32(io)
    dev.front[0].done += np.uint32(1)


@part
def _dequeue(dev: Blkfront) -> None:
    front = dev.front[0]
    front.queue_first = np.uint32((np.int64(front.queue_first) + 1) % len(dev.queue))
    front.queued -= np.uint32(1)


# --- I/Os into requests -----------------------------------------------------------------------


@part
def submit(dev: Blkfront) -> int:
    """SUBMIT: begin the next request of the first queued I/O, if there is room for it. A flush that
    comes `again` waits for all before it.

    What never will find room is done, with NO_ROOM; so is what the backend does not know: a flush
    as if it had been one, as in Linux, a discard with EOPNOTSUPP.
    """
    front = dev.front[0]
    io = np.int64(dev.queue[front.queue_first])
    operation, nr_segments = np.int64(dev.ios[io].operation), np.int64(0)
    if operation <= BLKIF_OP_WRITE:
        nr_segments = _segments_left(dev, io)
    elif operation == BLKIF_OP_DISCARD:
        if not front.discards:
            return _end_unsent(dev, io, BLKIF_RSP_EOPNOTSUPP)
    else:
        operation = np.int64(front.flushes_as)
        if operation == NOT_SENT:
            front.unflushed += np.uint32(1)
            return _end_unsent(dev, io, BLKIF_RSP_OKAY)
    waits = operation > BLKIF_OP_WRITE and dev.ios[io].again != 0 and front.outstanding > 0
    room = LATER if waits else room_for(dev, nr_segments)
    if room != ROOM:
        if dev.turn[WRITTEN] > 0:
            return END
        if room == LATER:
            return rest(dev)
        return _end_unsent(dev, io, NO_ROOM)
    ident = np.int64(front.free_id)
    shadow = dev.shadow[ident]
    front.free_id, front.ident, front.at = shadow.next, np.uint32(ident), np.uint32(0)
    shadow.io, shadow.used = np.int32(io), np.uint8(1)
    shadow.operation = np.uint8(operation)
    shadow.nr_segments = np.uint8(nr_segments)
    return prepare(dev)


@part
def _end_unsent(dev: Blkfront, io: int, status: int) -> int:
    """The first queued I/O is done, and nothing of it goes to the backend."""
    dev.ios[io].status, dev.ios[io].again = np.int16(status), np.uint16(0)
    finish_io(dev, io)
    _dequeue(dev)
    return AGAIN


@part
def _segments_left(dev: Blkfront, io: int) -> np.int64:
    """Of the next request of `io`."""
    remaining = np.int64(dev.ios[io].nr_sectors) - np.int64(dev.ios[io].issued_sectors)
    pages = (remaining + SECTORS_PER_PAGE - 1) // SECTORS_PER_PAGE
    return min(pages, np.int64(BLKIF_MAX_SEGMENTS_PER_REQUEST))


@part
def prepare(dev: Blkfront) -> int:
    """PREPARE: give the request's segments their pages, up to the first that needs an access."""
    front = dev.front[0]
    ident = np.int64(front.ident)
    io = dev.ios[dev.shadow[ident].io]
    while front.at < dev.shadow[ident].nr_segments:
        segment = dev.segments[ident, front.at]
        first = np.int64(io.issued_sectors) + np.int64(front.at) * SECTORS_PER_PAGE
        left = np.int64(io.nr_sectors) - first
        segment.frame = np.uint32(np.int64(io.frame) + first // SECTORS_PER_PAGE)
        segment.nr_sectors = np.uint32(min(left, np.int64(SECTORS_PER_PAGE)))
        if front.grant_mode == PER_REQUEST:
            segment.page = np.int32(NO_PAGE)
            return GRANT
        page = take_page(dev.pool)
        segment.page, segment.gref = np.int32(page), dev.pool.pages[page].gref
        if segment.gref == NO_GREF:
            return GRANT
        if io.operation == BLKIF_OP_WRITE:
            return COPY
        front.at += np.uint32(1)
    return ON


@part
def grant(dev: Blkfront) -> int:
    """GRANT_ACCESS: let the backend map the segment's page."""
    front = dev.front[0]
    segment = dev.segments[np.int64(front.ident), front.at]
    write = dev.shadow[np.int64(front.ident)].operation == BLKIF_OP_WRITE
    per_request = front.grant_mode == PER_REQUEST
    frame = np.int64(segment.frame)
    if not per_request:
        frame = np.int64(dev.pool.pages[segment.page].frame)
    domid, readonly = np.int64(front.backend_domid), per_request and write
    segment.gref = np.uint32(grant_access(dev.grants, domid, frame, readonly))
    dev.counters[0].grants_issued += np.uint64(1)
    if not per_request:
        dev.pool.pages[segment.page].gref = segment.gref
        if write:
            return COPY
    front.at += np.uint32(1)
    return ON


@part
def copy_in(dev: Blkfront) -> int:
    """COPY_IN: what is to be written, into the pool page."""
    front = dev.front[0]
    segment = dev.segments[np.int64(front.ident), front.at]
    bounced = np.int64(dev.pool.pages[segment.page].frame)
    copy_sectors(dev, bounced, np.int64(segment.frame), segment.nr_sectors)
    front.at += np.uint32(1)
    return ON


@part
def put(dev: Blkfront) -> int:
    """PUT: write the request into its slot; AGAIN if its I/O takes another one."""
    front = dev.front[0]
    ident = np.int64(front.ident)
    shadow = dev.shadow[ident]
    io, nr_segments = dev.ios[shadow.io], np.int64(shadow.nr_segments)
    at = ring.slot(dev.half, dev.half[0].prod_pvt)
    operation, handle = np.int64(shadow.operation), np.int64(front.handle)
    sector = np.int64(io.sector) + np.int64(io.issued_sectors)
    put_request(dev.qwords, at, operation, nr_segments, handle, ident, sector)
    shadow.issued = dev.half[0].prod_pvt
    sectors = np.int64(0)
    for index in range(nr_segments):
        segment = dev.segments[ident, index]
        last_sect = np.int64(segment.nr_sectors) - 1
        put_segment(dev.qwords, at, index, np.int64(segment.gref), 0, last_sect)
        sectors += last_sect + 1
    if operation > BLKIF_OP_WRITE:
        sectors = _put_special(dev, at, operation, np.int64(shadow.io))
    dev.half[0].prod_pvt = u32_add(dev.half[0].prod_pvt, 1)
    io.issued_sectors += np.uint64(sectors)
    io.outstanding += np.uint32(1)
    front.outstanding += np.uint32(1)
    dev.grants.list[0].in_flight += np.uint32(1)
    dev.counters[0].requests += np.uint64(1)
    dev.counters[0].segments += np.uint64(nr_segments)
    dev.turn[WRITTEN] += 1
    if io.issued_sectors < io.nr_sectors:
        return AGAIN
    _dequeue(dev)
    return ON


@part
def _put_special(dev: Blkfront, at: int, operation: int, index: int) -> np.int64:
    """What a flush or a discard has besides or in place of segments; the sectors it is of."""
    io = dev.ios[index]
    io.again = np.uint16(0)
    if operation != BLKIF_OP_DISCARD:
        dev.counters[0].flush_requests += np.uint64(1)
        return np.int64(0)
    put_discard(dev.qwords, at, np.int64(io.nr_sectors), np.int64(io.secure))
    dev.counters[0].discard_requests += np.uint64(1)
    return np.int64(io.nr_sectors)


@part
def publish(dev: Blkfront) -> int:
    """PUBLISH: let the backend see what has been put; a turn begins."""
    new_turn(dev)
    ring.publish(dev.words, dev.half, REQ)
    return ON


@part
def check_event(dev: Blkfront) -> int:
    """CHECK_EVENT: see `common/notifying.py`."""
    outcome = notifying.check_event(dev, REQ)
    dev.counters[0].notify_to_back += np.uint64(outcome == ON)
    return outcome


def end_every_access(dev: Blkfront) -> int:
    """After the backend has disconnected: end access to the pool's pages, and to those of requests
    that were never answered.

    Returns how many grants could not be ended, still mapped: called again, it tries those again.
    """
    holders = list(dev.pool.pages)
    if dev.front["grant_mode"][0] == PER_REQUEST:
        for ident in np.flatnonzero(dev.shadow["used"]):
            holders += list(dev.segments[ident, : dev.shadow["nr_segments"][ident]])
    stuck = 0
    for holder in holders:
        if holder["gref"] == NO_GREF:
            continue
        dev.counters["grant_end_attempts"] += np.uint64(1)
        if end_access(dev.grants, int(holder["gref"])):
            dev.counters["grants_ended"] += np.uint64(1)
            holder["gref"] = NO_GREF
        else:
            stuck += 1
    return stuck
