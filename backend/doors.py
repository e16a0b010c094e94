"""blkback's doors to what lies outside of its state: the hypervisor, dom0's address space, a store.

Owns: how each is gone through. Which way is a number in the ring's state and a branch here, so that
one compiled loop serves all of them:
    grant_op   a grant-table hypercall, posted in the gate where there is one, else by the driver
    map        a granted frame made reachable, and no longer: by mmap (REAL), or by arithmetic in
               `page_table` where the guest's frames are in this address space anyway (TABLE)
    submit_io  to the store's memory (`phases.move`), by the driver's calls, or nowhere
               (`at_store.py`)
    wake       the far end, by the driver
Rule: a call takes no more operations than both gate and message carry; what is left is the next
call's. This is the one place where calls are cut.
"""

from typing import Final

import numpy as np

from backend import phases, steps
from backend.blkback import Blkback
from backend.foreign_memory import map_granted, unmap_slots
from backend.grant_copy import finish_copies, finish_reads, list_copies
from backend.slots import DONE, MAPPING
from common.abi import (
    BLKIF_MAX_SEGMENTS_PER_REQUEST,
    GNTST_OKAY,
    GNTTAB_COPY,
    GNTTAB_MAP_GRANT_REF,
    GNTTAB_UNMAP_GRANT_REF,
    GNTTABOP_COPY,
    GNTTABOP_MAP_GRANT_REF,
    GNTTABOP_UNMAP_GRANT_REF,
    HYPERVISOR_GRANT_TABLE_OP,
)
from common.compiled import part
from common.hypercall import HYPERCALL, MESSAGE_MAX
from common.hypercall_gate import MADE, PAYLOAD_MAX, PENDING, call
from common.not_done import GNTST_UNFILLED
from common.steps import AGAIN, COPY, GRANT, NEXT, NONE, ON

# BACK.map_door.
REAL: Final = 0
TABLE: Final = 1

CALL_BYTES_MAX: Final = min(PAYLOAD_MAX, MESSAGE_MAX - HYPERCALL.itemsize)
FLUSH_ENTRIES: Final = 32  # an unmap call ends with a whole flush, so that cutting adds none
MAPS_MAX: Final = CALL_BYTES_MAX // GNTTAB_MAP_GRANT_REF.itemsize
UNMAPS_MAX: Final = (
    CALL_BYTES_MAX // GNTTAB_UNMAP_GRANT_REF.itemsize // FLUSH_ENTRIES * FLUSH_ENTRIES
)
COPIES_MAX: Final = CALL_BYTES_MAX // GNTTAB_COPY.itemsize

MAP_OP_BYTES: Final = GNTTAB_MAP_GRANT_REF.itemsize
UNMAP_OP_BYTES: Final = GNTTAB_UNMAP_GRANT_REF.itemsize
COPY_OP_BYTES: Final = GNTTAB_COPY.itemsize


@part
def plan(dev: Blkback) -> int:
    """PLAN: what do the requests taken need of the grant table?"""
    back = dev.back[0]
    if back.copies:
        return _prepare_copies(dev, False)
    if back.map_ops == 0:
        return ON
    for listed in range(back.map_ops):
        slot = np.int64(dev.op_segments[listed]) // BLKIF_MAX_SEGMENTS_PER_REQUEST
        dev.requests[slot].state = np.uint32(MAPPING)
    back.call_cmd, back.call_listed = np.uint32(GNTTABOP_MAP_GRANT_REF), back.map_ops
    _prepare(dev, dev.map_ops.ctypes.data, MAP_OP_BYTES, MAPS_MAX)
    return GRANT


@part
def list_out(dev: Blkback) -> int:
    """LIST_OUT: reads that the store has done are still to be copied to the guest."""
    return _prepare_copies(dev, True)


@part
def _prepare_copies(dev: Blkback, to_guest: bool) -> int:
    back = dev.back[0]
    if list_copies(dev, to_guest) == 0:
        return ON
    back.call_cmd, back.call_listed = np.uint32(GNTTABOP_COPY), back.copy_ops
    _prepare(dev, dev.copy_ops.ctypes.data, COPY_OP_BYTES, COPIES_MAX)
    return COPY


@part
def empty_slots(dev: Blkback) -> int:
    """EMPTY: nothing is reached any more through the slots that are to be unmapped.

    Before the hypercall: once that returns, the guest may use the pages for something else.
    """
    back = dev.back[0]
    back.call_cmd, back.call_listed = np.uint32(GNTTABOP_UNMAP_GRANT_REF), back.unmap_ops
    _prepare(dev, dev.unmap_ops.ctypes.data, UNMAP_OP_BYTES, UNMAPS_MAX)
    if back.map_door == REAL:
        failed = unmap_slots(dev.unmap_ops, np.int64(back.unmap_ops))
        assert failed == 0, "a page could not be unmapped"
        return ON
    for done in range(back.unmap_ops):
        slot = (dev.unmap_ops[done].host_addr - back.balloon) >> np.uint64(12)
        dev.page_table[np.int64(slot)] = back.hole
    return ON


@part
def _prepare(dev: Blkback, ops: int, op_bytes: int, most: int) -> None:
    """The calls that come next take, `most` at a time, the operations listed at address `ops`."""
    back = dev.back[0]
    back.call_ops, back.call_first = np.uint64(ops), np.uint32(0)
    back.call_op_bytes, back.call_max = np.uint32(op_bytes), np.uint32(most)


@part
def grant_op(dev: Blkback) -> int:
    """MAP, UNMAP, COPY_IN, COPY_OUT: make the hypercall for the next of what is listed.

    NONE if the driver has to make it, or, if it is `posted`, to wait for it.
    """
    back = dev.back[0]
    back.call_count = min(back.call_listed - back.call_first, back.call_max)
    op_bytes = np.int64(back.call_op_bytes)
    args = np.int64(back.call_ops) + np.int64(back.call_first) * op_bytes
    number, cmd = HYPERVISOR_GRANT_TABLE_OP, np.int64(back.call_cmd)
    made = call(dev.gate, number, cmd, args, np.int64(back.call_count) * op_bytes, dev.spin)
    back.posted = np.uint32(made == PENDING)
    return ON if made == MADE else NONE


@part
def granted(dev: Blkback, step: int) -> int:
    """MAPPED, UNMAPPED, COPIED_IN, COPIED_OUT: the call has been made; AGAIN if one more is due."""
    back = dev.back[0]
    first, end = np.int64(back.call_first), np.int64(back.call_first) + np.int64(back.call_count)
    back.call_first = np.uint32(end)
    dev.counters[0].hypercalls += np.uint64(_was_made(dev, step, first))
    if step == steps.MAPPED:
        _reach(dev, first, end)
        phases.keep_mapped(dev, first, end)
    elif step == steps.UNMAPPED:
        phases.free_unmapped(dev, first, end)
    else:
        finish_copies(dev, first, end)
    if end < back.call_listed:
        return AGAIN
    if step == steps.COPIED_OUT:
        finish_reads(dev)
    if back.closing and back.gathered == 0:  # it was what had been kept
        return NEXT
    if step == steps.UNMAPPED:
        for at in range(back.gathered):
            dev.requests[dev.group[at]].state = np.uint32(DONE)
    return ON


@part
def _was_made(dev: Blkback, step: int, first: int) -> bool:
    """Has the hypervisor filled the call's operations? It has not, if that failed as a whole."""
    if step == steps.MAPPED:
        return dev.map_ops[first].status != GNTST_UNFILLED
    if step == steps.UNMAPPED:
        return dev.unmap_ops[first].status != GNTST_UNFILLED
    return dev.copy_ops[first].status != GNTST_UNFILLED


@part
def _reach(dev: Blkback, first: int, end: int) -> None:
    """Make what was granted reachable through its slots."""
    back = dev.back[0]
    if back.map_door == REAL:
        failed = map_granted(np.int64(back.ram_fd), dev.map_ops, first, end)
        assert failed == 0, "a granted page could not be mapped (vm.max_map_count?)"
        return
    for done in range(first, end):
        op = dev.map_ops[done]
        if op.status == GNTST_OKAY:
            slot = (op.host_addr - back.balloon) >> np.uint64(12)
            dev.page_table[np.int64(slot)] = back.ram + op.dev_bus_addr


def called_for(dev: Blkback) -> tuple[int, np.ndarray]:
    """The command of the call that the effect HYPERCALL asks for, and its operations."""
    first, count = int(dev.back["call_first"][0]), int(dev.back["call_count"][0])
    cmd = int(dev.back["call_cmd"][0])
    return cmd, _listed(dev)[cmd][first : first + count]


def _listed(dev: Blkback) -> dict[int, np.ndarray]:
    return {
        GNTTABOP_MAP_GRANT_REF: dev.map_ops,
        GNTTABOP_UNMAP_GRANT_REF: dev.unmap_ops,
        GNTTABOP_COPY: dev.copy_ops,
    }
