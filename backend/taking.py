"""blkback's phases that take requests off the ring. Sans-I/O, compiled.

Owns: LOOK and TAKE (`backend/steps.py`): a request is copied once, parsed into a slot, checked, and
its grefs looked up in the tree of kept pages.
Rule: everything in a request is the guest's to choose. What is wrong with it is its answer.
"""

import numpy as np

from backend.at_store import collect, pick_up
from backend.blkback import BROKEN_RING, Blkback
from backend.grant_copy import use_own_pages
from backend.persistent_grants import get
from backend.slots import (
    BAD,
    BARRIER,
    DISCARD,
    FLUSH,
    KEPT,
    MISSING,
    READ,
    TAKEN,
    WRITE,
)
from common import ring
from common.abi import (
    BLKIF_MAX_SEGMENTS_PER_REQUEST,
    BLKIF_OP_DISCARD,
    BLKIF_OP_FLUSH_DISKCACHE,
    BLKIF_OP_READ,
    BLKIF_OP_WRITE,
    BLKIF_OP_WRITE_BARRIER,
    BLKIF_RSP_EOPNOTSUPP,
    BLKIF_RSP_ERROR,
    GNTMAP_HOST_MAP,
    GNTMAP_READONLY,
    SECTORS_PER_PAGE,
    XEN_PAGE_SIZE,
)
from common.blkif import (
    ID,
    NR_SECTORS,
    SECTOR,
    SEGMENTS,
    copy_request,
    first_sect_of,
    gref_of,
    last_sect_of,
    nr_segments_of,
    operation_of,
)
from common.compiled import part
from common.not_done import GNTST_UNFILLED, NOT_DONE
from common.ring import REQ, RING_BROKEN
from common.spinning import spins
from common.steps import (
    AGAIN,
    ARM,
    END,
    GRANT,
    LOOKS_LEFT,
    NONE,
    ON,
    SECTORS,
    WOKE,
)
from common.steps import SEGMENTS as SEGMENTS_TAKEN
from common.steps import TAKEN as REQUESTS_TAKEN
from common.u32 import u32_add


@part
def look(dev: Blkback) -> int:
    """LOOK: what is finished at the store is the next group: see `pick_up`. Else how many requests
    are there? GRANT if no more are to be taken; END if the frontend claims more than the ring
    holds; AGAIN if the driver has something else to look at first.
    """
    back = dev.back[0]
    dev.turn[REQUESTS_TAKEN], dev.turn[SECTORS], dev.turn[SEGMENTS_TAKEN] = 0, 0, 0
    dev.turn[WOKE] = 0
    back.gathered, back.map_ops, back.unmap_ops = np.uint32(0), np.uint32(0), np.uint32(0)
    collect(dev)
    if back.finished > 0:
        return pick_up(dev)
    if back.closing:
        return GRANT if back.started == 0 else NONE
    if back.broken:
        return END
    dev.turn[LOOKS_LEFT] -= 1
    if dev.turn[LOOKS_LEFT] < 0:
        return AGAIN
    waiting = ring.unconsumed(dev.words, dev.half, REQ, np.int64(back.vacant))
    if waiting == RING_BROKEN:
        back.broken = np.uint32(BROKEN_RING)
        return END
    back.waiting = np.uint32(min(waiting, np.int64(back.gather_max)))
    return ON if waiting > 0 else NONE


@part
def take(dev: Blkback) -> int:
    """TAKE: copy one request into a slot, check it, look its grefs up; AGAIN while there are more.
    Then GRANT if pages are missing.

    Who never spins asks for the next notification before it answers, as Linux does: so at depth 1,
    where the next request follows the answer, each request notifies.
    """
    back = dev.back[0]
    copy_request(dev.qwords, ring.slot(dev.half, dev.half[0].cons), dev.copy)
    dev.half[0].cons = u32_add(dev.half[0].cons, 1)
    back.vacant -= np.uint32(1)
    slot = np.int64(dev.vacant[back.vacant])
    dev.group[back.gathered] = np.uint32(slot)
    _parse(dev, slot)
    dev.turn[LOOKS_LEFT] -= np.int64(dev.requests[slot].nr_segments)  # large ones take longer
    if dev.requests[slot].status == NOT_DONE:
        if back.copies:
            use_own_pages(dev, slot)
        else:
            _find_pages(dev, slot)
    back.gathered += np.uint32(1)
    dev.turn[REQUESTS_TAKEN] += 1
    if back.gathered < back.waiting:
        return AGAIN
    back.request, back.at, back.moved = np.uint32(0), np.uint32(0), np.uint64(0)
    if not spins(dev.spin):
        return ARM
    return GRANT if back.map_ops > 0 or back.copies else ON


@part
def _parse(dev: Blkback, slot: int) -> None:
    """Fill a slot from the copy; `status` is NOT_DONE if the request is sound."""
    word = dev.copy[0]
    request = dev.requests[slot]
    request.id, request.sector = dev.copy[ID], dev.copy[SECTOR]
    request.operation = np.uint32(operation_of(word))
    request.kind, request.state = np.uint32(_kind_of(operation_of(word))), np.uint32(TAKEN)
    request.nr_segments = np.uint32(0)
    nr_segments = np.int64(0) if request.kind == DISCARD else nr_segments_of(word)
    request.status = np.int32(_verdict(dev, slot, nr_segments))
    dev.counters[0].requests += np.uint64(1)
    dev.counters[0].flush_requests += np.uint64(request.kind in (BARRIER, FLUSH))
    dev.counters[0].discard_requests += np.uint64(request.kind == DISCARD)
    if request.status != NOT_DONE:
        request.kind = np.uint32(BAD)
        dev.counters[0].bad_requests += np.uint64(1)
        return
    request.nr_segments = np.uint32(nr_segments)
    for at in range(nr_segments):
        descriptor = dev.copy[SEGMENTS + at]
        segment = dev.segments[slot, at]
        segment.gref = np.uint32(gref_of(descriptor))
        segment.first_sect = np.uint16(first_sect_of(descriptor))
        segment.nr_sectors = np.uint16(last_sect_of(descriptor) - first_sect_of(descriptor) + 1)
    dev.counters[0].segments += np.uint64(nr_segments)
    dev.turn[SEGMENTS_TAKEN] += nr_segments


@part
def _kind_of(operation: int) -> int:
    if operation == BLKIF_OP_READ:
        return READ
    if operation == BLKIF_OP_WRITE:
        return WRITE
    if operation == BLKIF_OP_WRITE_BARRIER:
        return BARRIER
    if operation == BLKIF_OP_FLUSH_DISKCACHE:
        return FLUSH
    return DISCARD if operation == BLKIF_OP_DISCARD else BAD


@part
def _verdict(dev: Blkback, slot: int, nr_segments: int) -> int:
    """The status that the copied request deserves before anything of it is tried."""
    back, request = dev.back[0], dev.requests[slot]
    kind = np.int64(request.kind)
    if kind > WRITE and (back.features >> kind) & 1 == 0:
        return BLKIF_RSP_EOPNOTSUPP
    if kind != READ and back.read_only:
        return BLKIF_RSP_ERROR
    if nr_segments > BLKIF_MAX_SEGMENTS_PER_REQUEST:
        return BLKIF_RSP_ERROR
    if nr_segments == 0 and kind in (READ, WRITE):
        return BLKIF_RSP_ERROR
    total = np.uint64(0)
    for at in range(nr_segments):
        first_sect = first_sect_of(dev.copy[SEGMENTS + at])
        last_sect = last_sect_of(dev.copy[SEGMENTS + at])
        if last_sect >= SECTORS_PER_PAGE or first_sect > last_sect:
            return BLKIF_RSP_ERROR
        nr_sectors = last_sect - first_sect + 1
        if nr_sectors & np.int64(back.sector_mask):
            return BLKIF_RSP_ERROR
        total += np.uint64(nr_sectors)
    request.nr_sectors = dev.copy[NR_SECTORS] if kind == DISCARD else total
    if request.nr_sectors == 0:  # it names no place: a flush's sector is anything
        return BLKIF_RSP_ERROR if kind == DISCARD else NOT_DONE
    # Written so that no sum can wrap: both are the guest's to choose.
    if (request.sector | request.nr_sectors) & np.uint64(back.sector_mask):
        return BLKIF_RSP_ERROR
    size = np.uint64(back.nr_sectors)
    if request.sector >= size or request.nr_sectors > size - request.sector:
        return BLKIF_RSP_ERROR
    dev.turn[SECTORS] += np.int64(total)
    return NOT_DONE


@part
def _find_pages(dev: Blkback, slot: int) -> None:
    """Look each gref of a request up in the tree; what is not there becomes a map op."""
    back = dev.back[0]
    request = dev.requests[slot]
    flags = GNTMAP_HOST_MAP
    if not back.persistent and request.kind != READ:
        flags |= GNTMAP_READONLY
    for at in range(request.nr_segments):
        segment = dev.segments[slot, at]
        node = np.int64(-1)
        if back.persistent:
            node = np.int64(get(dev.tree, dev.nodes, np.int64(segment.gref)))
        if node >= 0:
            segment.kind, segment.node = np.uint32(KEPT), np.int32(node)
            segment.slot = np.int32((dev.nodes[node].host_addr - back.balloon) >> np.uint64(12))
            segment.handle = dev.nodes[node].handle
            continue
        back.free_slots -= np.uint32(1)
        segment.kind, segment.slot = np.uint32(MISSING), np.int32(dev.slots[back.free_slots])
        op = dev.map_ops[back.map_ops]
        op.host_addr = back.balloon + np.uint64(segment.slot) * np.uint64(XEN_PAGE_SIZE)
        op.flags, op.ref = np.uint32(flags), segment.gref
        op.dom, op.status = np.uint16(back.remote_domid), np.int16(GNTST_UNFILLED)
        dev.op_segments[back.map_ops] = np.int32(slot * BLKIF_MAX_SEGMENTS_PER_REQUEST + at)
        back.map_ops += np.uint32(1)
