"""blkback's phases once requests are taken: their data moved, their pages let go, their answers.

Owns: what is done with a Blkback (`backend/blkback.py`) in each phase, each with at most one access
to what the peer may change. Which follows which, and why, is `backend/steps.py`'s; how requests are
taken `backend/taking.py`'s; what goes through a door `backend/doors.py`'s.
Rule: nothing is okay before it has been done. A sound request is NOT_DONE until its data has moved,
an operation's status GNTST_UNFILLED until the hypervisor has filled it: what a driver forgets is
answered as an error.
"""

import numpy as np

from backend.at_store import submit
from backend.blkback import MEMORY, Blkback
from backend.pages import page_address, touch
from backend.persistent_grants import erase, first, get, insert, put
from backend.slots import BAD, DISCARD, DONE, FAILED, FREE, IO, KEPT, ONCE, READ, UNMAPPING
from common import ring
from common.abi import (
    BLKIF_MAX_SEGMENTS_PER_REQUEST,
    BLKIF_RSP_ERROR,
    BLKIF_RSP_OKAY,
    GNTST_OKAY,
    SECTOR_SIZE,
    XEN_PAGE_SIZE,
)
from common.blkif import put_response
from common.compiled import kernel, part
from common.copying import copy_bytes, copy_page, zero_bytes
from common.not_done import GNTST_UNFILLED, NOT_DONE
from common.steps import (
    AGAIN,
    COPY,
    GRANT,
    NONE,
    ON,
    WRITTEN,
)
from common.u32 import u32_add


@kernel
def keep_mapped(dev: Blkback, first: int, end: int) -> None:
    """After the map hypercall for `map_ops[first:end]`: keep what may be kept, fail what was
    refused.
    """
    back = dev.back[0]
    for done in range(first, end):
        op = dev.map_ops[done]
        place = np.int64(dev.op_segments[done])
        slot = place // BLKIF_MAX_SEGMENTS_PER_REQUEST
        segment = dev.segments[slot, place % BLKIF_MAX_SEGMENTS_PER_REQUEST]
        if op.status != GNTST_OKAY:
            segment.kind = np.uint32(FAILED)
            _free_slot(dev, np.int64(segment.slot))
            dev.requests[slot].status = np.int32(BLKIF_RSP_ERROR)
            continue
        dev.counters[0].map_ops += np.uint64(1)
        segment.handle, segment.kind = op.handle, np.uint32(ONCE)
        if not back.persistent:
            continue
        node = np.int64(
            insert(
                dev.tree,
                dev.nodes,
                np.int64(segment.gref),
                np.uint64(op.host_addr),
                np.int64(op.handle),
            )
        )
        if node < 0:  # the cap is reached, or this gref is already there and in flight
            dev.counters[0].overflow_segments += np.uint64(1)
            continue
        get(dev.tree, dev.nodes, np.int64(segment.gref))
        segment.kind, segment.node = np.uint32(KEPT), np.int32(node)
    dev.counters[0].persistent_now = np.uint64(dev.tree[0].count)
    dev.counters[0].persistent_max = np.uint64(dev.tree[0].count_max)


@part
def move(dev: Blkback) -> int:
    """MOVE: copy one segment between its page and the store's memory; AGAIN while there are more.

    A request is okay once its last segment has moved. What has none is a flush, of which memory has
    nothing to do, or a discard. Where there is no memory: see `submit`.
    """
    back = dev.back[0]
    if back.store_door != MEMORY:
        return submit(dev)
    if not _is_to_move(dev) and not _next_to_move(dev):
        return _moved(dev)
    slot = np.int64(dev.group[back.request])
    request = dev.requests[slot]
    request.state = np.uint32(IO)
    if request.nr_segments > 0:
        _move_segment(dev, slot)
    elif request.kind == DISCARD:
        at = np.int64(back.store) + np.int64(request.sector) * SECTOR_SIZE
        zero_bytes(at, np.int64(request.nr_sectors) * SECTOR_SIZE)
    if back.at == request.nr_segments:
        request.status = np.int32(BLKIF_RSP_OKAY)
        if not _next_to_move(dev):
            return _moved(dev)
    return AGAIN


@part
def _move_segment(dev: Blkback, slot: int) -> None:
    back, request = dev.back[0], dev.requests[slot]
    segment = dev.segments[slot, back.at]
    nr_bytes = np.int64(segment.nr_sectors) * SECTOR_SIZE
    store = np.int64(back.store) + np.int64(request.sector + back.moved) * SECTOR_SIZE
    page = page_address(dev, slot, np.int64(back.at))
    touch(dev, slot, np.int64(back.at))
    if request.kind == READ:
        _copy(page, store, nr_bytes)
    else:
        _copy(store, page, nr_bytes)
    back.moved += np.uint64(segment.nr_sectors)
    back.at += np.uint32(1)


@part
def _is_to_move(dev: Blkback) -> bool:
    return dev.requests[dev.group[dev.back[0].request]].status == NOT_DONE


@part
def _next_to_move(dev: Blkback) -> bool:
    """Go to the next sound request; False if there is none."""
    back = dev.back[0]
    back.request += np.uint32(1)
    back.at, back.moved = np.uint32(0), np.uint64(0)
    while back.request < back.gathered and not _is_to_move(dev):
        back.request += np.uint32(1)
    return back.request < back.gathered


@part
def _moved(dev: Blkback) -> int:
    return COPY if dev.back[0].copies else ON


@part
def _copy(dest: int, source: int, nr_bytes: int) -> None:
    if nr_bytes == XEN_PAGE_SIZE:
        copy_page(dest, source)
    else:
        copy_bytes(dest, source, nr_bytes)


@part
def release(dev: Blkback) -> int:
    """RELEASE: the pages are no longer needed: clear in-flight marks, list what is to be unmapped
    before the responses go out. GRANT if there is any.
    """
    back = dev.back[0]
    for index in range(back.gathered):
        slot = dev.group[index]
        request = dev.requests[slot]
        if request.status != BLKIF_RSP_OKAY and request.kind != BAD:
            dev.counters[0].io_errors += np.uint64(1)
        request.state = np.uint32(DONE)
        for at in range(request.nr_segments):
            segment = dev.segments[slot, at]
            if segment.kind == KEPT:
                put(dev.tree, dev.nodes, np.int64(segment.node))
            elif segment.kind == ONCE:
                request.state = np.uint32(UNMAPPING)
                _list_unmap(dev, np.int64(segment.slot), np.int64(segment.handle))
    back.request = np.uint32(0)
    return GRANT if back.unmap_ops > 0 else ON


@part
def _list_unmap(dev: Blkback, slot: int, handle: int) -> None:
    back = dev.back[0]
    op = dev.unmap_ops[back.unmap_ops]
    op.host_addr = back.balloon + np.uint64(slot) * np.uint64(XEN_PAGE_SIZE)
    op.dev_bus_addr, op.handle = np.uint64(0), np.uint32(handle)
    op.status = np.int16(GNTST_UNFILLED)
    back.unmap_ops += np.uint32(1)


@kernel
def free_unmapped(dev: Blkback, first: int, end: int) -> None:
    """After the unmap hypercall for `unmap_ops[first:end]`: the slots are free again."""
    for done in range(first, end):
        op = dev.unmap_ops[done]
        assert op.status == GNTST_OKAY, "the hypervisor refused an unmap"
        dev.counters[0].unmap_ops += np.uint64(1)
        _free_slot(dev, np.int64((op.host_addr - dev.back[0].balloon) >> np.uint64(12)))


@kernel
def _free_slot(dev: Blkback, slot: int) -> None:
    dev.slots[dev.back[0].free_slots] = np.uint32(slot)
    dev.back[0].free_slots += np.uint32(1)


@part
def respond(dev: Blkback) -> int:
    """RESPOND: write one response, in the order of the group; AGAIN while there are more.

    Its slot is free from now on.
    """
    back = dev.back[0]
    slot = dev.group[back.request]
    request = dev.requests[slot]
    at = ring.slot(dev.half, dev.half[0].prod_pvt)
    status = np.int64(BLKIF_RSP_ERROR if request.status == NOT_DONE else request.status)
    put_response(dev.qwords, at, request.id, np.int64(request.operation), status)
    dev.half[0].prod_pvt = u32_add(dev.half[0].prod_pvt, 1)
    dev.turn[WRITTEN] += 1
    request.state = np.uint32(FREE)
    dev.vacant[back.vacant] = slot
    back.vacant += np.uint32(1)
    back.request += np.uint32(1)
    if back.request < back.gathered:
        return AGAIN
    back.gathered = np.uint32(0)
    return ON


@part
def release_kept(dev: Blkback) -> int:
    """RELEASE_KEPT: take up to 11 mappings out of the tree, to be unmapped; NONE if it is empty.
    AGAIN if the store still has requests, whose pages may be among them.

    Linux unmaps what is left in batches of a request's segments; so do we.
    """
    back = dev.back[0]
    if back.vacant < dev.half[0].nr_ents:
        return AGAIN
    back.unmap_ops = np.uint32(0)
    while back.unmap_ops < BLKIF_MAX_SEGMENTS_PER_REQUEST:
        node = np.int64(first(dev.tree, dev.nodes))
        if node < 0:
            break
        slot = (dev.nodes[node].host_addr - back.balloon) >> np.uint64(12)
        _list_unmap(dev, np.int64(slot), np.int64(dev.nodes[node].handle))
        erase(dev.tree, dev.nodes, node)
    dev.counters[0].persistent_now = np.uint64(dev.tree[0].count)
    return GRANT if back.unmap_ops > 0 else NONE
