"""The guest's compiled loop: phase after phase, until the outside world is needed.

Owns: which function a step of `frontend/steps.py` is, and the loop.
"""

from typing import Final

from common import ring
from common.atomics import load_acquire
from common.compiled import kernel
from common.event_channel import become_pending, clear_pending, is_masked
from common.ring import RSP
from common.spinning import spin_until_changed, spins
from common.steps import (
    AGAIN,
    EVENT,
    LOOKS_LEFT,
    NO_STEP,
    NONE,
    ON,
    STEP,
    WOKE,
    follow,
    leave,
    mask_of,
)
from frontend import blkfront, steps
from frontend.blkfront_info import Blkfront
from frontend.load import STALE, Load, turn

LOOKS_PER_SLICE: Final = 20_000  # at the ring: as many I/Os, or more
USUAL: Final = mask_of(
    steps.LOOK, steps.TAKE, steps.COPY_OUT, steps.END_LOOK, steps.FINISH, steps.TURN, steps.SUBMIT,
    steps.COPY_IN, steps.PUT, steps.PUBLISH, steps.CHECK_EVENT,
)  # fmt: skip


@kernel
def run(dev: Blkfront, job: Load, looks: int, stops: int) -> int:
    """Run `job` on `dev` for at most so many looks at the ring; returns the first effect.

    stops: a set of steps (`common.steps.mask_of`): before one of them, but for the first, STOP.
    """
    dev.turn[LOOKS_LEFT] = looks
    job.clock[STALE] = 1
    at = dev.turn[STEP]
    while at <= NO_STEP:
        # The usual ones in their usual order, so that the CPU foresees each: the table decides.
        if at == steps.LOOK:
            at = follow(dev.next, at, blkfront.look(dev), stops)
        if at == steps.TAKE:
            at = follow(dev.next, at, blkfront.take(dev), stops)
        if at == steps.COPY_OUT:
            at = follow(dev.next, at, blkfront.copy_out(dev), stops)
        if at == steps.END_LOOK:
            at = follow(dev.next, at, blkfront.end_look(dev), stops)
        if at == steps.FINISH:
            at = follow(dev.next, at, blkfront.finish(dev), stops)
        if at == steps.TURN:
            at = follow(dev.next, at, turn(dev, job), stops)
        if at == steps.SUBMIT:
            at = follow(dev.next, at, blkfront.submit(dev), stops)
        if at == steps.COPY_IN:
            at = follow(dev.next, at, blkfront.copy_in(dev), stops)
        if at == steps.PUT:
            at = follow(dev.next, at, blkfront.put(dev), stops)
        if at == steps.PUBLISH:
            at = follow(dev.next, at, blkfront.publish(dev), stops)
        if at == steps.CHECK_EVENT:
            at = follow(dev.next, at, blkfront.check_event(dev), stops)
        if at <= NO_STEP and (USUAL >> at) & 1 == 0:
            at = follow(dev.next, at, _advance(dev, at), stops)
    return leave(dev.turn, at)


@kernel
def _advance(dev: Blkfront, step: int) -> int:
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
