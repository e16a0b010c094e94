"""The less usual phases of blkfront: notifying, waiting, granting, ending access for good.

Owns: which function such a step of `frontend/steps.py` is. The usual ones are asked for by the loop
itself (`frontend/load.py:run`).
"""

from common import ring
from common.atomics import load_acquire
from common.compiled import kernel
from common.event_channel import become_pending, clear_pending, is_masked
from common.ring import RSP
from common.spinning import spin_until_changed, spins
from common.steps import AGAIN, EVENT, NONE, ON, WOKE
from frontend import blkfront, steps
from frontend.blkfront_info import Blkfront


@kernel
def advance(dev: Blkfront, step: int) -> int:
    """Do the phase `step`, none of the usual ones; its outcome."""
    if step == steps.END_SWAP:
        return blkfront.end_swap(dev)
    if step == steps.PREPARE:
        return blkfront.prepare(dev)
    if step == steps.GRANT_ACCESS:
        return blkfront.grant(dev)
    if step == steps.ROUND:
        blkfront.new_turn(dev)
        return ON
    if step == steps.CLEAR:
        if not spins(dev.spin):
            dev.turn[EVENT] += clear_pending(dev.events.pending, dev.events.port[0])
        return ON
    if step == steps.SET_PENDING:
        return ON if become_pending(dev.events.far_pending, dev.events.port[0]) else NONE
    if step == steps.READ_MASK:
        if is_masked(dev.events.far_mask, dev.events.port[0]):
            return NONE
        dev.turn[WOKE] += 1
        return NONE if dev.front[0].notes_wakes else ON
    if step == steps.WATCH:
        seen = dev.half[0].cons
        if load_acquire(dev.words, RSP) != seen:
            return AGAIN
        return AGAIN if spin_until_changed(dev.words, RSP, seen, dev.spin) else ON
    if step in (steps.ARM, steps.ARM_TAKEN):
        ring.arm(dev.words, dev.half, RSP)
        return ON
    assert step == steps.LOOK_AGAIN, "no such step"
    seen = ring.unconsumed(dev.words, dev.half, RSP, dev.front[0].outstanding)
    return NONE if seen == 0 else ON
