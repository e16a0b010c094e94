"""The compiled loop of a ring's worker: phases back to back, until the outside world is needed.

Owns: the order of phases, and where to go on after the driver has done what was asked. Each return
is one effect; the driver does it and calls again. With every page kept and requests coming there is
none but SLICE.
"""

from typing import Final

import numpy as np

from backend import phases
from backend.blkback import Blkback
from common.atomics import load_acquire
from common.compiled import kernel
from common.event_channel import set_pending
from common.ring import REQ, RING_BROKEN
from common.spinning import spin_until_changed, spins

# Effects.
SLICE: Final = 0  # nothing: time to look at the outside world
MAP: Final = 1  # make the hypercall for back.map_ops map ops, and map what it granted
IO: Final = 2  # the store has no memory: call its callbacks
UNMAP: Final = 3  # unmap back.unmap_ops slots, and make the hypercall for them
WAKE: Final = 4  # the frontend's event has just become pending: wake it
WAIT: Final = 5  # the event is armed and nothing has come: sleep until notified
BROKEN: Final = 6  # the frontend broke the ring: back.broken says how

# Where the next call goes on.
GATHER: Final = 0
MAPPED: Final = 1
DONE_IO: Final = 2
UNMAPPED: Final = 3

CURSOR: Final = np.dtype([("step", "<u4")])


@kernel
def work(
    dev: Blkback,
    cursor: np.ndarray,
    far_pending: np.ndarray,
    far_mask: np.ndarray,
    port: int,
    spin: np.ndarray,
    runnable: np.ndarray,
    batches: int,
) -> int:
    """Serve the ring for at most `batches` batches; returns the first effect that is needed.

    cursor: CURSOR (1,), this worker's place; far_pending, far_mask, port: the frontend's event.
    """
    for _ in range(batches):
        step = cursor[0].step
        cursor[0].step = np.uint32(GATHER)
        if step == GATHER:
            taken = _take_requests(dev, spin)
            if taken == RING_BROKEN:
                return BROKEN
            if taken == 0:
                if _idle(dev, spin, runnable):
                    continue
                return WAIT
            if dev.back[0].map_ops > 0:
                cursor[0].step = np.uint32(MAPPED)
                return MAP
        if step == MAPPED:
            phases.finish_map(dev)
        if step in (GATHER, MAPPED):
            if dev.back[0].store == 0:
                cursor[0].step = np.uint32(DONE_IO)
                return IO
            phases.execute(dev)
        if step == UNMAPPED:
            assert phases.finish_unmap(dev)
        elif phases.release(dev) > 0:
            cursor[0].step = np.uint32(UNMAPPED)
            return UNMAP
        phases.respond(dev)
        if phases.push(dev) and set_pending(far_pending, far_mask, port):
            return WAKE
    return SLICE


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
def _idle(dev: Blkback, spin: np.ndarray, runnable: np.ndarray) -> bool:
    """The ring is empty: True once it no longer is, False if it is time to sleep (armed)."""
    seen = load_acquire(dev.words, REQ)
    if seen != dev.half[0].cons:
        return True
    if spin_until_changed(dev.words, REQ, seen, spin, runnable):
        return True
    phases.rearm(dev)
    return phases.requests_waiting(dev) != 0
