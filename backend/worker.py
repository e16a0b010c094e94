"""The compiled loop of a ring's worker: phase after phase, until the outside world is needed.

Owns: which function a step of `backend/steps.py` is, and the loop. With every page kept and
requests coming there is no effect but SLICE.
"""

from typing import Final

import numpy as np

from backend import doors, phases, steps, taking
from backend.blkback import BLKBACK, Blkback
from common import notifying
from common.compiled import kernel, part
from common.ring import REQ, RSP, publish
from common.steps import EVENT, LOOKS_LEFT, NO_STEP, ON, STEP, WRITTEN, follow, leave, mask_of

LOOKS_PER_SLICE: Final = 10_000  # at the ring: as many requests, or more
BETWEEN_REQUESTS: Final = mask_of(steps.CLEAR, steps.LOOK)
USUAL: Final = mask_of(
    steps.LOOK, steps.TAKE, steps.MOVE, steps.RELEASE, steps.RESPOND, steps.PUBLISH,
    steps.CHECK_EVENT,
)  # fmt: skip
_view = BLKBACK.view


@kernel
def work(rings: np.ndarray, ring: int, looks: int, stops: int) -> int:
    """Serve a ring for at most so many looks at it; returns the first effect that is needed.

    rings: BLKBACK's rows; ring: the number of one; stops: a set of steps (`common.steps.mask_of`):
    before one of them, but for the first, STOP.
    """
    dev = _view(rings, ring)
    dev.turn[LOOKS_LEFT] = looks
    at = dev.turn[STEP]
    while at <= NO_STEP:
        # The usual ones in their usual order, so that the CPU foresees each: the table decides.
        if at == steps.LOOK:
            at = follow(dev.next, at, taking.look(dev), stops)
        if at == steps.TAKE:
            at = follow(dev.next, at, taking.take(dev), stops)
        if at == steps.MOVE:
            at = follow(dev.next, at, phases.move(dev), stops)
        if at == steps.RELEASE:
            at = follow(dev.next, at, phases.release(dev), stops)
        if at == steps.RESPOND:
            at = follow(dev.next, at, phases.respond(dev), stops)
        if at == steps.PUBLISH:
            at = follow(dev.next, at, _publish(dev), stops)
        if at == steps.CHECK_EVENT:
            at = follow(dev.next, at, _check_event(dev), stops)
        if at <= NO_STEP and (USUAL >> at) & 1 == 0:
            at = follow(dev.next, at, _advance(dev, at), stops)
    return leave(dev.turn, at)


@part
def _advance(dev: Blkback, step: int) -> int:
    """Do the phase `step`, none of the usual ones; its outcome."""
    if step == steps.PLAN:
        return doors.plan(dev)
    if step in (steps.MAP, steps.UNMAP, steps.COPY_IN, steps.COPY_OUT):
        return doors.grant_op(dev)
    if step in (steps.MAPPED, steps.UNMAPPED, steps.COPIED_IN, steps.COPIED_OUT):
        return doors.granted(dev, step)
    if step == steps.LIST_OUT:
        return doors.list_out(dev)
    if step == steps.EMPTY:
        return doors.empty_slots(dev)
    if step == steps.RELEASE_KEPT:
        return phases.release_kept(dev)
    return _notify_or_wait(dev, step)


@part
def _publish(dev: Blkback) -> int:
    dev.turn[WRITTEN] = 0
    publish(dev.words, dev.half, RSP)
    return ON


@part
def _check_event(dev: Blkback) -> int:
    outcome = notifying.check_event(dev, RSP)
    dev.counters[0].notify_to_front += np.uint64(outcome == ON)
    return outcome


@part
def _notify_or_wait(dev: Blkback, step: int) -> int:
    if step == steps.CLEAR:
        dev.turn[EVENT] = 0
        return notifying.clear(dev)
    if step == steps.SET_PENDING:
        return notifying.set_pending(dev)
    if step == steps.READ_MASK:
        return notifying.read_mask(dev, dev.back[0].notes_wakes)
    if step == steps.WATCH:
        return notifying.watch(dev, REQ)
    if step in (steps.ARM, steps.ARM_TAKEN):
        return notifying.arm(dev, REQ)
    assert step == steps.LOOK_AGAIN, "no such step"
    return notifying.look_again(dev, REQ, dev.half[0].nr_ents)
