"""Serving requests without mapping: the hypervisor copies between the guest's pages and dom0's own.

Owns: the GNTTABOP_copy operations of a batch. Each segment's slot `s` is dom0's own frame
`bounce_frame + s`: filled from the guest before a write to the store, copied to it after a read.
Nothing is mapped, so nothing is unmapped and nothing flushed; every byte moves once more. QEMU and
tapdisk serve so.
Rule: a copy that is refused fails its request and nothing else. Of a read of several segments the
others may be in the guest's pages by then, as with QEMU, and as with a disk that fails half-way:
what a failed read leaves in its buffer is nobody's to use.
"""

import numpy as np

from backend import phases
from backend.blkback import Blkback
from backend.phases import ACCESSED_WORDS
from common.abi import (
    BLKIF_MAX_SEGMENTS_PER_REQUEST,
    BLKIF_OP_READ,
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


@kernel
def list_copies(dev: Blkback, to_guest: bool) -> np.int64:
    """List the operations of what was gathered, one a segment; returns how many `copy_ops`.

    to_guest: for the reads that the store has done, which are NOT_DONE again until they are copied;
    else for the writes, before it.
    """
    back = dev.back[0]
    due = BLKIF_RSP_OKAY if to_guest else NOT_DONE
    back.copy_ops = np.uint32(0)
    flags = GNTCOPY_DEST_GREF if to_guest else GNTCOPY_SOURCE_GREF
    for index in range(back.gathered):
        request = dev.requests[index]
        if (request.operation == BLKIF_OP_READ) != to_guest or request.status != due:
            continue
        request.status = np.int32(NOT_DONE)
        for at in range(request.nr_segments):
            segment, op = dev.segments[index, at], dev.copy_ops[back.copy_ops]
            offset = np.uint16(segment.first_sect * SECTOR_SIZE)
            granted, own = (op.dest, op.source) if to_guest else (op.source, op.dest)
            own.gmfn = back.bounce_frame + np.uint64(segment.slot)
            own.domid, granted.domid = np.uint16(DOMID_SELF), np.uint16(back.remote_domid)
            granted.gmfn = np.uint64(segment.gref)  # the union's upper half is nobody's
            granted.offset = own.offset = offset
            op.len, op.flags = np.uint16(segment.nr_sectors * SECTOR_SIZE), np.uint16(flags)
            op.status = np.int16(GNTST_UNFILLED)
            dev.op_segments[back.copy_ops] = np.int32(index * BLKIF_MAX_SEGMENTS_PER_REQUEST + at)
            back.copy_ops += np.uint32(1)
    return np.int64(back.copy_ops)


@part
def finish_copies(dev: Blkback, first: int, end: int) -> None:
    """After the copy hypercall for `copy_ops[first:end]`: whose copy was refused has failed."""
    for done in range(first, end):
        if dev.copy_ops[done].status != GNTST_OKAY:
            dev.requests[_request_of(dev, done)].status = np.int32(BLKIF_RSP_ERROR)


@part
def finish_reads(dev: Blkback) -> None:
    """All copies to the guest have been made: a read none of whose was refused is done."""
    for done in range(dev.back[0].copy_ops):
        request = dev.requests[_request_of(dev, done)]
        if request.status == NOT_DONE:
            request.status = np.int32(BLKIF_RSP_OKAY)


@part
def _request_of(dev: Blkback, op: int) -> np.int64:
    return np.int64(dev.op_segments[op]) // BLKIF_MAX_SEGMENTS_PER_REQUEST


@part
def settle(dev: Blkback) -> None:
    """The gathered pages are dom0's own: what `take` asked to have mapped is there as it is.

    Before any copy is listed: `op_segments` are those of the map operations until then.
    """
    back = dev.back[0]
    nobodys_handle = len(dev.accessed) // ACCESSED_WORDS - 1  # whose accessed bits nothing reads
    for done in range(back.map_ops):
        dev.map_ops[done].handle = np.uint32(nobodys_handle)
        dev.map_ops[done].status = np.int16(GNTST_OKAY)
    phases.keep_mapped(dev, 0, np.int64(back.map_ops))
    back.map_ops = np.uint32(0)
