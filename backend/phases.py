"""What a ring's worker does with requests, phase by phase. Sans-I/O, compiled.

    gather -> [map] -> finish_map -> execute -> release -> [unmap] -> finish_unmap
           -> respond -> push

Between the brackets the driver makes one hypercall for all of `map_ops` (or `unmap_ops`), and maps
(or unmaps) what it granted. A batch whose pages are all kept has neither.

Rules
1. A request is copied once, checked, and only then acted on. A bad one is answered, never dropped.
2. The tree's in-flight mark covers a kept page from `gather` to `release`. A gref that is named
   again meanwhile (in the same request or another) is mapped a second time for that request only:
   in 2012 it was a BUG() in dom0.
3. A response goes out after its request's unmaps.
4. Nothing is okay before it has been done: a sound request is NOT_DONE until its data has moved, an
   operation's status GNTST_UNFILLED until the hypervisor has filled it. What a driver forgets is
   answered as an error.
"""

from typing import Final

import numpy as np

from backend.blkback import BROKEN_RING, FAILED, KEPT, MISSING, ONCE, Blkback
from backend.persistent_grants import erase, first, get, insert, put
from common import ring
from common.abi import (
    BLKIF_MAX_SEGMENTS_PER_REQUEST,
    BLKIF_OP_READ,
    BLKIF_OP_WRITE,
    BLKIF_RSP_EOPNOTSUPP,
    BLKIF_RSP_ERROR,
    BLKIF_RSP_OKAY,
    GNTMAP_HOST_MAP,
    GNTMAP_READONLY,
    GNTST_OKAY,
    SECTOR_SIZE,
    SECTORS_PER_PAGE,
    XEN_PAGE_SIZE,
)
from common.blkif import (
    ID,
    SECTOR,
    SEGMENTS,
    copy_request,
    first_sect_of,
    gref_of,
    last_sect_of,
    nr_segments_of,
    operation_of,
    put_response,
)
from common.compiled import kernel
from common.copying import copy_bytes, copy_page
from common.not_done import GNTST_UNFILLED, NOT_DONE
from common.ring import REQ, RING_BROKEN, RSP
from common.u32 import u32_add

ACCESSED_WORDS: Final = 4  # 256 CPUs a maptrack handle


@kernel
def requests_waiting(dev: Blkback) -> int:
    """Requests to take, or RING_BROKEN if the frontend claims more than the ring holds."""
    return ring.unconsumed(dev.words, dev.half, REQ, np.int64(dev.half[0].nr_ents))


@kernel
def gather(dev: Blkback) -> int:
    """CONSUME: take up to `gather_max` requests, check them, look their grefs up.

    Returns how many were taken, or RING_BROKEN. `back.map_ops` of `map_ops` are then to be made.
    """
    back = dev.back[0]
    back.gathered, back.map_ops, back.unmap_ops = np.uint32(0), np.uint32(0), np.uint32(0)
    if back.broken:
        return RING_BROKEN
    waiting = requests_waiting(dev)
    if waiting == RING_BROKEN:
        back.broken = np.uint32(BROKEN_RING)
        return RING_BROKEN
    taken = min(waiting, np.int64(back.gather_max))
    for index in range(taken):
        copy_request(dev.qwords, ring.slot(dev.half, dev.half[0].cons), dev.copy)
        dev.half[0].cons = u32_add(dev.half[0].cons, 1)
        _parse(dev, index)
        if dev.requests[index].status == NOT_DONE:
            _find_pages(dev, index)
    back.gathered = np.uint32(taken)
    return taken


@kernel
def _parse(dev: Blkback, index: int) -> None:
    """Fill request `index` and its segments from the copy; `status` is NOT_DONE if it is sound."""
    word = dev.copy[0]
    request = dev.requests[index]
    request.id, request.sector = dev.copy[ID], dev.copy[SECTOR]
    request.operation = np.uint32(operation_of(word))
    request.nr_segments = np.uint32(0)
    request.status = np.int32(_verdict(dev))
    dev.counters[0].requests += np.uint64(1)
    if request.status != NOT_DONE:
        dev.counters[0].bad_requests += np.uint64(1)
        return
    nr_segments = nr_segments_of(word)
    request.nr_segments = np.uint32(nr_segments)
    for at in range(nr_segments):
        descriptor = dev.copy[SEGMENTS + at]
        segment = dev.segments[index, at]
        segment.gref = np.uint32(gref_of(descriptor))
        segment.first_sect = np.uint16(first_sect_of(descriptor))
        segment.nr_sectors = np.uint16(last_sect_of(descriptor) - first_sect_of(descriptor) + 1)
    dev.counters[0].segments += np.uint64(nr_segments)


@kernel
def _verdict(dev: Blkback) -> int:
    """The status that the copied request deserves before anything of it is tried."""
    operation = operation_of(dev.copy[0])
    if operation not in (BLKIF_OP_READ, BLKIF_OP_WRITE):
        return BLKIF_RSP_EOPNOTSUPP
    if operation == BLKIF_OP_WRITE and dev.back[0].read_only:
        return BLKIF_RSP_ERROR
    nr_segments = nr_segments_of(dev.copy[0])
    if nr_segments == 0 or nr_segments > BLKIF_MAX_SEGMENTS_PER_REQUEST:
        return BLKIF_RSP_ERROR
    total = np.uint64(0)
    for at in range(nr_segments):
        first_sect = first_sect_of(dev.copy[SEGMENTS + at])
        last_sect = last_sect_of(dev.copy[SEGMENTS + at])
        if last_sect >= SECTORS_PER_PAGE or first_sect > last_sect:
            return BLKIF_RSP_ERROR
        total += np.uint64(last_sect - first_sect + 1)
    size, sector = np.uint64(dev.back[0].nr_sectors), np.uint64(dev.copy[SECTOR])
    # Written so that no sum can wrap: `sector` is the guest's to choose.
    if sector >= size or total > size - sector:
        return BLKIF_RSP_ERROR
    return NOT_DONE


@kernel
def _find_pages(dev: Blkback, index: int) -> None:
    """Look each gref of a request up in the tree; what is not there becomes a map op."""
    back = dev.back[0]
    request = dev.requests[index]
    flags = GNTMAP_HOST_MAP
    if not back.persistent and request.operation == BLKIF_OP_WRITE:
        flags |= GNTMAP_READONLY
    for at in range(request.nr_segments):
        segment = dev.segments[index, at]
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
        dev.op_segments[back.map_ops] = np.int32(index * BLKIF_MAX_SEGMENTS_PER_REQUEST + at)
        back.map_ops += np.uint32(1)


@kernel
def finish_map(dev: Blkback) -> None:
    """SUBMIT: after the map hypercall: keep what may be kept, fail what was refused."""
    back = dev.back[0]
    for done in range(back.map_ops):
        op = dev.map_ops[done]
        place = np.int64(dev.op_segments[done])
        index = place // BLKIF_MAX_SEGMENTS_PER_REQUEST
        segment = dev.segments[index, place % BLKIF_MAX_SEGMENTS_PER_REQUEST]
        if op.status != GNTST_OKAY:
            segment.kind = np.uint32(FAILED)
            _free_slot(dev, np.int64(segment.slot))
            dev.requests[index].status = np.int32(BLKIF_RSP_ERROR)
            continue
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
    if back.map_ops > 0:
        dev.counters[0].persistent_now = np.uint64(dev.tree[0].count)
        dev.counters[0].persistent_max = np.uint64(dev.tree[0].count_max)
    back.map_ops = np.uint32(0)


@kernel
def execute(dev: Blkback) -> None:
    """Copy between the mapped pages and the store's memory, for each sound request."""
    back = dev.back[0]
    for index in range(back.gathered):
        request = dev.requests[index]
        if request.status != NOT_DONE:
            continue
        store = np.int64(back.store) + np.int64(request.sector) * SECTOR_SIZE
        for at in range(request.nr_segments):
            segment = dev.segments[index, at]
            nr_bytes = np.int64(segment.nr_sectors) * SECTOR_SIZE
            page = page_address(dev, index, at)
            touch(dev, np.int64(segment.handle))
            if request.operation == BLKIF_OP_READ:
                _copy(page, store, nr_bytes)
            else:
                _copy(store, page, nr_bytes)
            store += nr_bytes
        request.status = np.int32(BLKIF_RSP_OKAY)


@kernel
def page_address(dev: Blkback, index: int, at: int) -> np.int64:
    """Where the first byte of a mapped segment is reached."""
    segment = dev.segments[index, at]
    return np.int64(dev.page_table[segment.slot]) + np.int64(segment.first_sect) * SECTOR_SIZE


@kernel
def touch(dev: Blkback, handle: int) -> None:
    """Mark a mapping as accessed by this worker's CPU, as a page-table walk would."""
    cpu = np.int64(dev.back[0].cpu)
    dev.accessed[handle * ACCESSED_WORDS + (cpu >> 6)] |= np.uint64(1) << np.uint64(cpu & 63)


@kernel
def _copy(dest: int, source: int, nr_bytes: int) -> None:
    if nr_bytes == XEN_PAGE_SIZE:
        copy_page(dest, source)
    else:
        copy_bytes(dest, source, nr_bytes)


@kernel
def release(dev: Blkback) -> np.int64:
    """The pages are no longer needed: clear in-flight marks, list what is to be unmapped.

    Returns how many `unmap_ops` are to be made before the responses go out.
    """
    back = dev.back[0]
    for index in range(back.gathered):
        request = dev.requests[index]
        if request.status != BLKIF_RSP_OKAY and request.nr_segments > 0:
            dev.counters[0].io_errors += np.uint64(1)
        for at in range(request.nr_segments):
            segment = dev.segments[index, at]
            if segment.kind == KEPT:
                put(dev.tree, dev.nodes, np.int64(segment.node))
            elif segment.kind == ONCE:
                _list_unmap(dev, np.int64(segment.slot), np.int64(segment.handle))
    return np.int64(back.unmap_ops)


@kernel
def _list_unmap(dev: Blkback, slot: int, handle: int) -> None:
    back = dev.back[0]
    op = dev.unmap_ops[back.unmap_ops]
    op.host_addr = back.balloon + np.uint64(slot) * np.uint64(XEN_PAGE_SIZE)
    op.dev_bus_addr, op.handle = np.uint64(0), np.uint32(handle)
    op.status = np.int16(GNTST_UNFILLED)
    back.unmap_ops += np.uint32(1)


@kernel
def finish_unmap(dev: Blkback) -> bool:
    """After the unmap hypercall: the slots are free again. False if one was refused: our bug."""
    back = dev.back[0]
    sound = True
    for done in range(back.unmap_ops):
        op = dev.unmap_ops[done]
        sound = sound and op.status == GNTST_OKAY
        _free_slot(dev, np.int64((op.host_addr - back.balloon) >> np.uint64(12)))
    back.unmap_ops = np.uint32(0)
    return sound


@kernel
def _free_slot(dev: Blkback, slot: int) -> None:
    dev.slots[dev.back[0].free_slots] = np.uint32(slot)
    dev.back[0].free_slots += np.uint32(1)


@kernel
def respond(dev: Blkback) -> None:
    """Write the responses of all gathered requests, in the order they came, not yet published."""
    for index in range(dev.back[0].gathered):
        request = dev.requests[index]
        at = ring.slot(dev.half, dev.half[0].prod_pvt)
        status = np.int64(BLKIF_RSP_ERROR if request.status == NOT_DONE else request.status)
        put_response(dev.qwords, at, request.id, np.int64(request.operation), status)
        dev.half[0].prod_pvt = u32_add(dev.half[0].prod_pvt, 1)
    dev.back[0].gathered = np.uint32(0)


@kernel
def push(dev: Blkback) -> bool:
    """PUBLISH and CHECK_NOTIFY: True if the frontend must be notified (and is so counted)."""
    ring.publish(dev.words, dev.half, RSP)
    if ring.check_notify(dev.words, dev.half, RSP):
        dev.counters[0].notify_to_front += np.uint64(1)
        return True
    return False


@kernel
def rearm(dev: Blkback) -> None:
    """REARM: ask to be notified of the next request; look again before sleeping."""
    ring.rearm(dev.words, dev.half, REQ)


@kernel
def release_kept(dev: Blkback) -> int:
    """Disconnect: take up to 11 mappings out of the tree; returns how many `unmap_ops` to make.

    Linux unmaps what is left in batches of a request's segments; so do we, until this says 0.
    """
    listed = 0
    while listed < BLKIF_MAX_SEGMENTS_PER_REQUEST:
        node = np.int64(first(dev.tree, dev.nodes))
        if node < 0:
            break
        slot = (dev.nodes[node].host_addr - dev.back[0].balloon) >> np.uint64(12)
        _list_unmap(dev, np.int64(slot), np.int64(dev.nodes[node].handle))
        erase(dev.tree, dev.nodes, node)
        listed += 1
    dev.counters[0].persistent_now = np.uint64(dev.tree[0].count)
    return listed
