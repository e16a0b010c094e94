"""Serving requests without mapping: the hypervisor copies between the guest's pages and dom0's own.

Owns: the GNTTABOP_copy operations of a group, and the pages they copy to and from: segment `n` of
slot `s` has dom0's own frame `bounce_frame + 11 * s + n`, filled from the guest before a write to
the store, copied to it after a read. Nothing is mapped, so nothing is unmapped and nothing flushed;
every byte moves once more. QEMU and tapdisk serve so.
Rule: a copy that is refused fails its request and nothing else. Of a read of several segments the
others may be in the guest's pages by then, as with QEMU, and as with a disk that fails half-way:
what a failed read leaves in its buffer is nobody's to use.
"""

import numpy as np

from backend.blkback import Blkback
from backend.slots import BOUNCED, READ
from common.abi import (
    BLKIF_MAX_SEGMENTS_PER_REQUEST,
    BLKIF_RSP_ERROR,
    BLKIF_RSP_OKAY,
    DOMID_SELF,
    GNTCOPY_DEST_GREF,
    GNTCOPY_SOURCE_GREF,
    GNTST_OKAY,
    SECTOR_SIZE,
)
from common.compiled import kernel, part
from common.not_done import GNTST_UNFILLED, NOT_DONE


@part
def use_own_pages(dev: Blkback, slot: int) -> None:
    """The segments of a sound request are reached in its slot's own pages."""
    for at in range(dev.requests[slot].nr_segments):
        segment = dev.segments[slot, at]
        segment.kind = np.uint32(BOUNCED)
        segment.slot = np.int32(slot * BLKIF_MAX_SEGMENTS_PER_REQUEST + at)


@kernel
def list_copies(dev: Blkback, to_guest: bool) -> np.int64:
    """List the operations of the group, one a segment; returns how many `copy_ops`.

    to_guest: for the reads that the store has done, which are NOT_DONE again until they are copied;
    else for the writes, before it.
    """
    back = dev.back[0]
    due = BLKIF_RSP_OKAY if to_guest else NOT_DONE
    back.copy_ops = np.uint32(0)
    flags = GNTCOPY_DEST_GREF if to_guest else GNTCOPY_SOURCE_GREF
    for index in range(back.gathered):
        slot = np.int64(dev.group[index])
        request = dev.requests[slot]
        if (request.kind == READ) != to_guest or request.status != due:
            continue
        request.status = np.int32(NOT_DONE)
        for at in range(request.nr_segments):
            segment, op = dev.segments[slot, at], dev.copy_ops[back.copy_ops]
            offset = np.uint16(segment.first_sect * SECTOR_SIZE)
            granted, own = (op.dest, op.source) if to_guest else (op.source, op.dest)
            own.gmfn = back.bounce_frame + np.uint64(segment.slot)
            own.domid, granted.domid = np.uint16(DOMID_SELF), np.uint16(back.remote_domid)
            granted.gmfn = np.uint64(segment.gref)  # the union's upper half is nobody's
            granted.offset = own.offset = offset
            op.len, op.flags = np.uint16(segment.nr_sectors * SECTOR_SIZE), np.uint16(flags)
            op.status = np.int16(GNTST_UNFILLED)
            dev.op_segments[back.copy_ops] = np.int32(slot * BLKIF_MAX_SEGMENTS_PER_REQUEST + at)
            back.copy_ops += np.uint32(1)
    return np.int64(back.copy_ops)


@part
def finish_copies(dev: Blkback, first: int, end: int) -> None:
    """After the copy hypercall for `copy_ops[first:end]`: whose copy was refused has failed."""
    for done in range(first, end):
        if dev.copy_ops[done].status == GNTST_OKAY:
            dev.counters[0].copy_ops += np.uint64(1)
        else:
            dev.requests[_slot_of(dev, done)].status = np.int32(BLKIF_RSP_ERROR)


@part
def finish_reads(dev: Blkback) -> None:
    """All copies to the guest have been made: a read none of whose was refused is done."""
    for done in range(dev.back[0].copy_ops):
        request = dev.requests[_slot_of(dev, done)]
        if request.status == NOT_DONE:
            request.status = np.int32(BLKIF_RSP_OKAY)


@part
def _slot_of(dev: Blkback, op: int) -> np.int64:
    return np.int64(dev.op_segments[op]) // BLKIF_MAX_SEGMENTS_PER_REQUEST
