"""What the compiled loops of a guest ask of the outside world, and the loop that waits for I/Os.

Owns: the effects, and the part that a load and a block device share: submitting, and idling until
the backend has answered.
"""

from typing import Final

import numpy as np

from common.atomics import load_acquire
from common.compiled import kernel
from common.event_channel import set_pending
from common.ring import RING_BROKEN, RSP
from common.spinning import spin_until_changed, spins
from frontend import blkfront
from frontend.blkfront_info import Blkfront

SLICE: Final = 0  # nothing: time to look at the outside world
WAKE: Final = 1  # the backend's event has just become pending: wake it
WAIT: Final = 2  # the event is armed and nothing has come: sleep until notified
BROKEN: Final = 3  # the backend broke the protocol: front.broken says how
DONE: Final = 4  # everything asked for is finished


@kernel
def take_responses(dev: Blkfront, spin: np.ndarray) -> int:
    """Take what has come (`blkfront.consume`); who never spins asks for the next notification now.

    As Linux does at the end of its interrupt handler: the event is armed before the next request
    goes out, so that at depth 1 each response notifies.
    """
    taken = blkfront.consume(dev)
    if taken > 0 and not spins(spin):
        blkfront.rearm(dev)
    return taken


@kernel
def submit_queued(dev: Blkfront, far_pending: np.ndarray, far_mask: np.ndarray, port: int) -> int:
    """Put queued I/Os on the ring while there is room, each published as it is written.

    Returns WAKE as soon as the backend must be woken, else SLICE.
    """
    while dev.front[0].queued > 0:
        if blkfront.submit(dev) == 0:
            break
        if blkfront.push(dev) and set_pending(far_pending, far_mask, port):
            return WAKE
    return SLICE


@kernel
def idle(dev: Blkfront, spin: np.ndarray) -> int:
    """No response is there: SLICE once one is, WAIT if it is time to sleep (armed)."""
    seen = load_acquire(dev.words, RSP)
    if seen != dev.half[0].cons:
        return SLICE
    if spin_until_changed(dev.words, RSP, seen, spin):
        return SLICE
    blkfront.rearm(dev)
    return SLICE if blkfront.responses_waiting(dev) != 0 else WAIT


@kernel
def finish_queued(
    dev: Blkfront,
    far_pending: np.ndarray,
    far_mask: np.ndarray,
    port: int,
    spin: np.ndarray,
) -> int:
    """Submit and consume until no I/O is queued or out: DONE, or the effect needed before that."""
    while True:
        if take_responses(dev, spin) == RING_BROKEN:
            return BROKEN
        if submit_queued(dev, far_pending, far_mask, port) == WAKE:
            return WAKE
        if dev.front[0].outstanding == 0:
            return DONE
        if idle(dev, spin) == WAIT:
            return WAIT
