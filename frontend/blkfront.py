"""blkfront's core: I/Os in, requests on the ring, responses back, I/Os done. Sans-I/O.

Owns: what is done with a Blkfront (`frontend/blkfront_info.py`), phase by phase. Rules
1. What the backend writes is checked against the shadow before it is believed: an id nobody asked
   for, another operation, more responses than requests: the device is broken, once, for good.
2. A page is zero or the guest's own data before the backend can see it.
3. Three ways with grants, by what was negotiated:
   PERSISTENT: pool pages, copied through; the grant stays as long as the backend keeps it mapped,
   which the guest learns by trying, at each completion, to end access (as Linux does).
   REUSE: the backend does not keep pages mapped; the pool's grants are used again all the same.
   PER_REQUEST: the caller's own pages are granted for one request, read-only for a disk write.
4. Each function is one phase; `frontend/load.py` and `frontend/block_device.py` run them.
Never knows: time, processes, sockets.

Source: Xen's `io/blkif.h`; behaviour after Linux's blkfront (2012 and 6.1, see docs/design.md).
"""

import numpy as np

from common import ring
from common.abi import (
    BLKIF_MAX_SEGMENTS_PER_REQUEST,
    BLKIF_OP_READ,
    BLKIF_OP_WRITE,
    BLKIF_RSP_EOPNOTSUPP,
    BLKIF_RSP_ERROR,
    BLKIF_RSP_OKAY,
    SECTOR_SIZE,
    SECTORS_PER_PAGE,
    XEN_PAGE_SIZE,
)
from common.atomics import load_acquire
from common.blkif import operation_of, put_request, put_segment, status_of
from common.compiled import kernel
from common.copying import copy_bytes, copy_page
from common.not_done import NOT_DONE
from common.ring import REQ, RSP
from common.u32 import u32_add
from frontend.blkfront_info import (
    BROKEN_ID,
    BROKEN_OPERATION,
    BROKEN_RING,
    BROKEN_STILL_MAPPED,
    NO_ROOM,
    PER_REQUEST,
    PERSISTENT,
    Blkfront,
)
from frontend.grants import NO_GREF, end_access, grant_access
from frontend.page_pool import (
    NO_PAGE,
    return_to_head,
    return_to_tail,
    take_page,
    ungranted_ahead,
)


@kernel
def enqueue(dev: Blkfront, io: int) -> None:
    """Queue I/O `io` (its operation, sector, nr_sectors and frame are set)."""
    front = dev.front[0]
    dev.ios[io].issued_sectors = np.uint32(0)
    dev.ios[io].outstanding = np.uint32(0)
    dev.ios[io].status = np.int16(NOT_DONE)
    last = (np.int64(front.queue_first) + np.int64(front.queued)) % len(dev.queue)
    dev.queue[last] = np.int32(io)
    front.queued += np.uint32(1)


@kernel
def submit(dev: Blkfront) -> int:
    """SUBMIT: turn the first queued I/O into as many requests as there is room for.

    Returns how many requests were written, not yet published: 0 when nothing is queued or slots,
    pages or grants have run out. What finds no room with nothing on the ring never will: NO_ROOM.
    """
    front = dev.front[0]
    written = 0
    while front.queued > 0 and written == 0:
        io = np.int64(dev.queue[front.queue_first])
        while dev.ios[io].issued_sectors < dev.ios[io].nr_sectors and _submit_one(dev, io):
            written += 1
        if dev.ios[io].issued_sectors < dev.ios[io].nr_sectors:
            if front.outstanding > 0:
                return written
            dev.ios[io].status = np.int16(NO_ROOM)
            _done(dev, io)
        front.queue_first = np.uint32((np.int64(front.queue_first) + 1) % len(dev.queue))
        front.queued -= np.uint32(1)
    return written


@kernel
def _done(dev: Blkfront, io: int) -> None:
    dev.done[dev.front[0].done] = np.int32(io)
    dev.front[0].done += np.uint32(1)


@kernel
def _submit_one(dev: Blkfront, io: int) -> bool:
    """Write the next request of `io`; False, with nothing taken, if there is no room."""
    front = dev.front[0]
    operation = np.int64(dev.ios[io].operation)
    issued = np.int64(dev.ios[io].issued_sectors)
    remaining = np.int64(dev.ios[io].nr_sectors) - issued
    pages = (remaining + SECTORS_PER_PAGE - 1) // SECTORS_PER_PAGE
    nr_segments = min(pages, np.int64(BLKIF_MAX_SEGMENTS_PER_REQUEST))
    bounce = front.grant_mode != PER_REQUEST
    if ring.free_requests(dev.half) == 0 or (bounce and dev.pool.list[0].free < nr_segments):
        return False
    if dev.grants.list[0].free < (
        ungranted_ahead(dev.pool, nr_segments) if bounce else nr_segments
    ):
        return False
    ident = np.int64(front.free_id)
    front.free_id = dev.shadow[ident].next
    shadow = dev.shadow[ident]
    shadow.io, shadow.used = np.int32(io), np.uint8(1)
    shadow.operation, shadow.nr_segments = np.uint8(operation), np.uint8(nr_segments)
    at = ring.slot(dev.half, dev.half[0].prod_pvt)
    sector = np.int64(dev.ios[io].sector) + issued
    put_request(dev.qwords, at, operation, nr_segments, np.int64(front.handle), ident, sector)
    frame = np.int64(dev.ios[io].frame) + issued // SECTORS_PER_PAGE
    for index in range(nr_segments):
        nr_sectors = min(remaining, np.int64(SECTORS_PER_PAGE))
        segment = dev.segments[ident, index]
        segment.frame, segment.nr_sectors = np.uint32(frame + index), np.uint32(nr_sectors)
        if bounce:
            _bounce_page(dev, ident, index, operation)
        else:
            gref = grant_access(
                dev.grants,
                np.int64(front.backend_domid),
                frame + index,
                operation == BLKIF_OP_WRITE,
            )
            segment.gref, segment.page = np.uint32(gref), np.int32(NO_PAGE)
            dev.counters[0].grants_issued += np.uint64(1)
        put_segment(dev.qwords, at, index, np.int64(segment.gref), 0, nr_sectors - 1)
        remaining -= nr_sectors
        issued += nr_sectors
    dev.ios[io].issued_sectors = np.uint32(issued)
    dev.ios[io].outstanding += np.uint32(1)
    front.outstanding += np.uint32(1)
    dev.half[0].prod_pvt = u32_add(dev.half[0].prod_pvt, 1)
    dev.counters[0].requests += np.uint64(1)
    dev.counters[0].segments += np.uint64(nr_segments)
    return True


@kernel
def _bounce_page(dev: Blkfront, ident: int, index: int, operation: int) -> None:
    """Give a segment a pool page, granted if it is not, holding the data if it is a write."""
    front = dev.front[0]
    segment = dev.segments[ident, index]
    page = take_page(dev.pool)
    entry = dev.pool.pages[page]
    if entry.gref == NO_GREF:
        entry.gref = np.uint32(
            grant_access(dev.grants, np.int64(front.backend_domid), np.int64(entry.frame), False)
        )
        dev.counters[0].grants_issued += np.uint64(1)
    segment.page, segment.gref = np.int32(page), entry.gref
    if operation == BLKIF_OP_WRITE:
        _copy_sectors(dev, np.int64(entry.frame), np.int64(segment.frame), segment.nr_sectors)


@kernel
def _copy_sectors(dev: Blkfront, to_frame: int, from_frame: int, nr_sectors: int) -> None:
    """Copy the first `nr_sectors` of one guest frame to another: the price of persistence."""
    ram = np.int64(dev.front[0].ram)
    dest, source = ram + to_frame * XEN_PAGE_SIZE, ram + from_frame * XEN_PAGE_SIZE
    if nr_sectors == SECTORS_PER_PAGE:
        copy_page(dest, source)
    else:
        copy_bytes(dest, source, np.int64(nr_sectors) * SECTOR_SIZE)
    dev.counters[0].bytes_copied_by_guest += np.uint64(nr_sectors) * np.uint64(SECTOR_SIZE)


@kernel
def push(dev: Blkfront) -> bool:
    """PUBLISH and CHECK_NOTIFY: True if the backend must be notified (and is so counted)."""
    ring.publish(dev.words, dev.half, REQ)
    if ring.check_notify(dev.words, dev.half, REQ):
        dev.counters[0].notify_to_back += np.uint64(1)
        return True
    return False


@kernel
def responses_waiting(dev: Blkfront) -> int:
    """Responses to take, or RING_BROKEN: no more can have come than requests are out."""
    return ring.unconsumed(dev.words, dev.half, RSP, np.int64(dev.front[0].outstanding))


@kernel
def rearm(dev: Blkfront) -> None:
    """REARM: ask to be notified of the next response; look again before sleeping."""
    ring.rearm(dev.words, dev.half, RSP)


@kernel
def consume(dev: Blkfront) -> int:
    """CONSUME: take every response there is; returns how many, or RING_BROKEN.

    Finished I/Os are appended to `done`, `front.done` of them: the caller takes them and sets it 0.
    """
    front = dev.front[0]
    if front.broken:
        return ring.RING_BROKEN
    waiting = responses_waiting(dev)
    if waiting == ring.RING_BROKEN:
        front.broken = np.uint32(BROKEN_RING)
        return ring.RING_BROKEN
    for _ in range(waiting):
        at = ring.slot(dev.half, dev.half[0].cons)
        ident = load_acquire(dev.qwords, at)
        word = load_acquire(dev.qwords, at + 1)
        if ident >= len(dev.shadow) or not dev.shadow[np.int64(ident)].used:
            front.broken = np.uint32(BROKEN_ID)
        elif operation_of(word) != dev.shadow[np.int64(ident)].operation:
            front.broken = np.uint32(BROKEN_OPERATION)
        else:
            _complete(dev, np.int64(ident), status_of(word))
        if front.broken:
            return ring.RING_BROKEN
        dev.half[0].cons = u32_add(dev.half[0].cons, 1)
    return waiting


@kernel
def _complete(dev: Blkfront, ident: int, status: int) -> None:
    """One request is answered: copy out, give its pages or grants back, maybe finish its I/O."""
    front = dev.front[0]
    shadow = dev.shadow[ident]
    read = shadow.operation == BLKIF_OP_READ and status == BLKIF_RSP_OKAY
    for index in range(shadow.nr_segments):
        segment = dev.segments[ident, index]
        if front.grant_mode == PER_REQUEST:
            dev.counters[0].grant_end_attempts += np.uint64(1)
            if not end_access(dev.grants, np.int64(segment.gref)):
                front.broken = np.uint32(BROKEN_STILL_MAPPED)
                return
            dev.counters[0].grants_ended += np.uint64(1)
            segment.gref = np.uint32(NO_GREF)
        else:
            if read:
                bounced = np.int64(dev.pool.pages[segment.page].frame)
                _copy_sectors(dev, np.int64(segment.frame), bounced, segment.nr_sectors)
            _release_page(dev, np.int64(segment.page))
            segment.page = np.int32(NO_PAGE)
    io = dev.ios[shadow.io]
    if status != BLKIF_RSP_OKAY:
        io.status = np.int16(status if status == BLKIF_RSP_EOPNOTSUPP else BLKIF_RSP_ERROR)
    io.outstanding -= np.uint32(1)
    if io.outstanding == 0 and io.issued_sectors == io.nr_sectors:
        if io.status == NOT_DONE:  # and no request of it has failed
            io.status = np.int16(BLKIF_RSP_OKAY)
        _done(dev, np.int64(shadow.io))
    shadow.used, shadow.next = np.uint8(0), front.free_id
    front.free_id = np.int32(ident)
    front.outstanding -= np.uint32(1)


@kernel
def _release_page(dev: Blkfront, page: int) -> None:
    """Back to the pool: to the head with its grant, or to the tail without."""
    if dev.front[0].grant_mode == PERSISTENT:
        dev.counters[0].grant_end_attempts += np.uint64(1)
        if end_access(dev.grants, np.int64(dev.pool.pages[page].gref)):
            dev.counters[0].grants_ended += np.uint64(1)
            dev.pool.pages[page].gref = np.uint32(NO_GREF)
            return_to_tail(dev.pool, page)
            return
    return_to_head(dev.pool, page)


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
