"""The compiled loop of a ring's worker: phases back to back, until the outside world is needed.

Owns: the order of phases, and where to go on after the driver has done what was asked. Each return
is one effect; the driver does it and calls again. With every page kept and requests coming there is
none but SLICE.
"""

from typing import Final

import numpy as np

from backend import phases
from backend.blkback import Blkback
from backend.foreign_memory import map_granted, unmap_slots
from backend.grant_copy import finish_copies, give_back, list_copies, settle
from common.abi import (
    GNTTAB_COPY,
    GNTTAB_MAP_GRANT_REF,
    GNTTAB_UNMAP_GRANT_REF,
    GNTTABOP_COPY,
    GNTTABOP_MAP_GRANT_REF,
    GNTTABOP_UNMAP_GRANT_REF,
    HYPERVISOR_GRANT_TABLE_OP,
)
from common.atomics import load_acquire
from common.compiled import kernel
from common.event_channel import set_pending
from common.hypercall_gate import MADE, NO_SLOT, PENDING, Gate, call
from common.ring import REQ, RING_BROKEN
from common.spinning import spin_until_changed, spins

# Effects.
SLICE: Final = 0  # nothing: time to look at the outside world
MAP: Final = 1  # make the hypercall for back.map_ops map ops, and map what it granted
IO: Final = 2  # the store has no memory: call its callbacks
UNMAP: Final = 3  # empty back.unmap_ops slots, and make the hypercall for them
WAKE: Final = 4  # the frontend's event has just become pending: wake it
WAIT: Final = 5  # the event is armed and nothing has come: sleep until notified
BROKEN: Final = 6  # the frontend broke the ring: back.broken says how
COPY: Final = 7  # make the hypercall for back.copy_ops copy ops

# Where the next call goes on.
GATHER: Final = 0
MAPPED: Final = 1
DONE_IO: Final = 2
UNMAPPED: Final = 3
COPIED_IN: Final = 4
COPIED_OUT: Final = 5

# What of an effect has been done already. posted: its hypercall is in the gate and has to be waited
# for; unmapped: the slots of UNMAP are empty.
CURSOR: Final = np.dtype([("step", "<u4"), ("posted", "<u4"), ("unmapped", "<u4")])

MAP_OP_BYTES: Final = GNTTAB_MAP_GRANT_REF.itemsize
UNMAP_OP_BYTES: Final = GNTTAB_UNMAP_GRANT_REF.itemsize
COPY_OP_BYTES: Final = GNTTAB_COPY.itemsize


@kernel
def work(
    dev: Blkback,
    cursor: np.ndarray,
    far_pending: np.ndarray,
    far_mask: np.ndarray,
    port: int,
    spin: np.ndarray,
    batches: int,
    gate: Gate,
    ram_fd: int,
) -> int:
    """Serve the ring for at most `batches` batches; returns the first effect that is needed.

    cursor: CURSOR (1,), this worker's place; far_pending, far_mask, port: the frontend's event;
    gate: its vCPU's, or `no_gate()`; ram_fd: the frontend's RAM, to map from where there is a gate.
    """
    for _ in range(batches):
        step = cursor[0].step
        cursor[0].step = np.uint32(GATHER)
        if step == GATHER:
            taken = _take_requests(dev, spin)
            if taken == RING_BROKEN:
                return BROKEN
            if taken == 0:
                if _idle(dev, spin):
                    continue
                return WAIT
            if dev.back[0].copies:
                settle(dev)
                cursor[0].step = np.uint32(COPIED_IN)
                if list_copies(dev, False) > 0 and not _copy(dev, cursor, gate, spin):
                    return COPY
                step = np.uint32(COPIED_IN)
            elif dev.back[0].map_ops > 0:
                cursor[0].step = np.uint32(MAPPED)
                if not _map(dev, cursor, gate, ram_fd, spin):
                    return MAP
                step = np.uint32(MAPPED)
        if step == COPIED_IN:
            finish_copies(dev)
        elif step == MAPPED:
            phases.finish_map(dev)
        if step in (GATHER, COPIED_IN, MAPPED):
            if dev.back[0].store == 0:
                cursor[0].step = np.uint32(DONE_IO)
                return IO
            phases.execute(dev)
        if dev.back[0].copies:
            if step != COPIED_OUT:
                cursor[0].step = np.uint32(COPIED_OUT)
                if list_copies(dev, True) > 0 and not _copy(dev, cursor, gate, spin):
                    return COPY
            finish_copies(dev)
            give_back(dev)
        elif step == UNMAPPED:
            assert phases.finish_unmap(dev)
        elif phases.release(dev) > 0:
            cursor[0].step = np.uint32(UNMAPPED)
            if not _unmap(dev, cursor, gate, spin):
                return UNMAP
            assert phases.finish_unmap(dev)
        cursor[0].step = np.uint32(GATHER)
        phases.respond(dev)
        if phases.push(dev) and set_pending(far_pending, far_mask, port):
            return WAKE
    return SLICE


@kernel
def _map(
    dev: Blkback,
    cursor: np.ndarray,
    gate: Gate,
    ram_fd: int,
    spin: np.ndarray,
) -> bool:
    """Make the hypercall through the gate, and map; False if the driver has to do both."""
    count = np.int64(dev.back[0].map_ops)
    number, cmd = HYPERVISOR_GRANT_TABLE_OP, GNTTABOP_MAP_GRANT_REF
    args, nbytes = dev.map_ops.ctypes.data, count * MAP_OP_BYTES
    made = call(gate, number, cmd, args, nbytes, spin)
    cursor[0].posted = np.uint32(made == PENDING)
    if made != MADE:
        return False
    assert map_granted(ram_fd, dev.map_ops, count) == 0, "a granted page could not be mapped"
    return True


@kernel
def _unmap(dev: Blkback, cursor: np.ndarray, gate: Gate, spin: np.ndarray) -> bool:
    """Unmap, and make the hypercall through the gate; False if the driver has to do the rest."""
    cursor[0].posted, cursor[0].unmapped = np.uint32(0), np.uint32(0)
    if gate.place[0].slot == NO_SLOT:
        return False
    count = np.int64(dev.back[0].unmap_ops)
    assert unmap_slots(dev.unmap_ops, count) == 0, "a page could not be unmapped"
    number, cmd = HYPERVISOR_GRANT_TABLE_OP, GNTTABOP_UNMAP_GRANT_REF
    args, nbytes = dev.unmap_ops.ctypes.data, count * UNMAP_OP_BYTES
    made = call(gate, number, cmd, args, nbytes, spin)
    cursor[0].posted, cursor[0].unmapped = np.uint32(made == PENDING), np.uint32(made != MADE)
    return made == MADE


@kernel
def _copy(dev: Blkback, cursor: np.ndarray, gate: Gate, spin: np.ndarray) -> bool:
    """Make the copy hypercall through the gate; False if the driver has to make it."""
    number, cmd = HYPERVISOR_GRANT_TABLE_OP, GNTTABOP_COPY
    args, nbytes = dev.copy_ops.ctypes.data, np.int64(dev.back[0].copy_ops) * COPY_OP_BYTES
    made = call(gate, number, cmd, args, nbytes, spin)
    cursor[0].posted = np.uint32(made == PENDING)
    return made == MADE


@kernel
def _take_requests(dev: Blkback, spin: np.ndarray) -> int:
    """Gather; who never spins asks for the next notification before it answers, as Linux does.

    So at depth 1, where the next request follows the answer, each request notifies.
    """
    taken = phases.gather(dev)
    if taken > 0 and not spins(spin):
        phases.rearm(dev)
    return taken


@kernel
def _idle(dev: Blkback, spin: np.ndarray) -> bool:
    """The ring is empty: True once it no longer is, False if it is time to sleep (armed)."""
    seen = load_acquire(dev.words, REQ)
    if seen != dev.half[0].cons:
        return True
    if spin_until_changed(dev.words, REQ, seen, spin):
        return True
    phases.rearm(dev)
    return phases.requests_waiting(dev) != 0
