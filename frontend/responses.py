"""blkfront's phases from a response on the ring to its I/O. Sans-I/O.

Owns: what is done with a Blkfront (`frontend/blkfront_info.py`) in each phase of the way back, each
with at most one access to what the peer may change. Which follows which is `frontend/steps.py`'s.
Rule: what the backend writes is checked against the shadow before it is believed: an id that nobody
asked for, another operation, more responses than requests: the device is broken, once, for good.
"""

import numpy as np

from common import ring
from common.abi import (
    BLKIF_OP_DISCARD,
    BLKIF_OP_READ,
    BLKIF_OP_WRITE,
    BLKIF_RSP_EOPNOTSUPP,
    BLKIF_RSP_ERROR,
    BLKIF_RSP_OKAY,
)
from common.atomics import load_acquire
from common.blkif import operation_of, status_of
from common.compiled import part
from common.not_done import NOT_DONE
from common.ring import RSP
from common.spinning import spins
from common.steps import (
    AGAIN,
    ARM,
    COPY,
    END,
    LOOKS_LEFT,
    NEXT,
    NONE,
    ON,
    TAKEN,
)
from common.u32 import u32_add
from frontend.blkfront import finish_io
from frontend.blkfront_info import (
    BROKEN_ID,
    BROKEN_OPERATION,
    BROKEN_RING,
    BROKEN_STILL_MAPPED,
    NOT_SENT,
    PER_REQUEST,
    PERSISTENT,
    Blkfront,
)
from frontend.bouncing import copy_sectors
from frontend.grants import (
    END_ACCESS_TRIES,
    NO_GREF,
    is_mapped,
    look_at_entry,
    swap_entry,
)
from frontend.page_pool import (
    NO_PAGE,
    return_to_head,
    return_to_tail,
)


@part
def look(dev: Blkfront) -> int:
    """LOOK: how many responses are there? No more can have come than requests are out.

    END if the device is broken; AGAIN if the driver has something else to look at first.
    """
    front = dev.front[0]
    if front.broken:
        return END
    dev.turn[LOOKS_LEFT] -= 1
    if dev.turn[LOOKS_LEFT] < 0:
        return AGAIN
    waiting = ring.unconsumed(dev.words, dev.half, RSP, np.int64(front.outstanding))
    if waiting == ring.RING_BROKEN:
        front.broken = np.uint32(BROKEN_RING)
        return END
    front.responses = np.uint32(waiting)
    return ON if waiting > 0 else NONE


@part
def take(dev: Blkfront) -> int:
    """TAKE: copy a response, and check it against the shadow; NONE if the device is broken."""
    front = dev.front[0]
    at = ring.slot(dev.half, dev.half[0].cons)
    ident = load_acquire(dev.qwords, at)
    word = load_acquire(dev.qwords, at + 1)
    if ident >= len(dev.shadow) or not dev.shadow[np.int64(ident)].used:
        front.broken = np.uint32(BROKEN_ID)
        return NONE
    if operation_of(word) != dev.shadow[np.int64(ident)].operation:
        front.broken = np.uint32(BROKEN_OPERATION)
        return NONE
    front.ident, front.at = np.uint32(ident), np.uint32(0)
    front.status = np.int32(status_of(word))
    return _needed(dev) if dev.shadow[np.int64(ident)].nr_segments > 0 else ON


@part
def _needed(dev: Blkfront) -> int:
    """What a segment of the answered request needs before its page is given back; ON: nothing."""
    front = dev.front[0]
    if front.grant_mode == PER_REQUEST:
        return END
    read = dev.shadow[np.int64(front.ident)].operation == BLKIF_OP_READ
    if read and front.status == BLKIF_RSP_OKAY:
        return COPY
    return END if front.grant_mode == PERSISTENT else ON


@part
def finish(dev: Blkfront) -> int:
    """FINISH: what the next of the answered request's segments needs; after the last, the rest."""
    front = dev.front[0]
    shadow = dev.shadow[np.int64(front.ident)]
    while front.at < shadow.nr_segments:
        needed = _needed(dev)
        if needed != ON:
            return needed
        _keep_page(dev)
    _complete(dev)
    dev.half[0].cons = u32_add(dev.half[0].cons, 1)
    dev.turn[TAKEN] += 1
    front.responses -= np.uint32(1)
    if front.responses > 0:
        return NEXT
    return ON if spins(dev.spin) else ARM


@part
def _complete(dev: Blkfront) -> None:
    """A request is answered and its pages are given back: maybe its I/O is done."""
    front = dev.front[0]
    shadow, status = dev.shadow[np.int64(front.ident)], np.int64(front.status)
    io = dev.ios[shadow.io]
    if status != BLKIF_RSP_OKAY:
        unknown = status == BLKIF_RSP_EOPNOTSUPP
        if not (unknown and _flush_is_unknown(dev, np.int64(shadow.operation))):
            io.status = np.int16(BLKIF_RSP_EOPNOTSUPP if unknown else BLKIF_RSP_ERROR)
    io.outstanding -= np.uint32(1)
    if io.outstanding == 0 and io.issued_sectors == io.nr_sectors:
        if io.status == NOT_DONE:  # and no request of it has failed
            io.status = np.int16(BLKIF_RSP_OKAY)
        finish_io(dev, np.int64(shadow.io))
    shadow.used, shadow.next = np.uint8(0), front.free_id
    front.free_id = np.int32(front.ident)
    front.outstanding -= np.uint32(1)
    dev.grants.list[0].in_flight -= np.uint32(1)


@part
def _flush_is_unknown(dev: Blkfront, operation: int) -> bool:
    """The backend does not know this operation after all: it is asked for it no more. Was it a
    flush? Then it counts as done, as in Linux."""
    front = dev.front[0]
    if operation <= BLKIF_OP_WRITE:
        return False
    if operation == BLKIF_OP_DISCARD:
        front.discards = np.uint32(0)
        return False
    front.flushes_as = np.uint32(NOT_SENT)
    front.unflushed += np.uint32(1)
    return True


@part
def copy_out(dev: Blkfront) -> int:
    """COPY_OUT: what was read, out of the pool page."""
    front = dev.front[0]
    segment = dev.segments[np.int64(front.ident), front.at]
    bounced = np.int64(dev.pool.pages[segment.page].frame)
    copy_sectors(dev, np.int64(segment.frame), bounced, segment.nr_sectors)
    if front.grant_mode == PERSISTENT:
        return END
    _keep_page(dev)
    return ON


@part
def _keep_page(dev: Blkfront) -> None:
    """The segment's page goes back to the head of the pool, with its grant."""
    segment = dev.segments[np.int64(dev.front[0].ident), dev.front[0].at]
    return_to_head(dev.pool, np.int64(segment.page))
    segment.page = np.int32(NO_PAGE)
    dev.front[0].at += np.uint32(1)


@part
def end_look(dev: Blkfront) -> int:
    """END_LOOK: is the segment's page still mapped? NONE if the device is broken by that."""
    front = dev.front[0]
    segment = dev.segments[np.int64(front.ident), front.at]
    entry = look_at_entry(dev.grants, np.int64(segment.gref))
    dev.counters[0].grant_end_attempts += np.uint64(front.tries == 0)
    if not is_mapped(entry) and front.tries < END_ACCESS_TRIES:
        front.entry = np.uint32(entry)
        return END
    front.tries = np.uint32(0)
    if front.grant_mode == PER_REQUEST:
        front.broken = np.uint32(BROKEN_STILL_MAPPED)
        return NONE
    _keep_page(dev)
    return ON


@part
def end_swap(dev: Blkfront) -> int:
    """END_SWAP: take the grant back, if it is as it was seen; AGAIN if it is not."""
    front = dev.front[0]
    segment = dev.segments[np.int64(front.ident), front.at]
    if not swap_entry(dev.grants, np.int64(segment.gref), np.int64(front.entry)):
        front.tries += np.uint32(1)
        return AGAIN
    front.tries = np.uint32(0)
    dev.counters[0].grants_ended += np.uint64(1)
    if segment.page != NO_PAGE:
        dev.pool.pages[segment.page].gref = np.uint32(NO_GREF)
        return_to_tail(dev.pool, np.int64(segment.page))
        segment.page = np.int32(NO_PAGE)
    segment.gref = np.uint32(NO_GREF)
    front.at += np.uint32(1)
    return ON
