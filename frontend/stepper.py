"""The guest's compiled loop: phase after phase, until the outside world is needed.

Owns: which function a step of `frontend/steps.py` is, and the loop.
"""

from typing import Final

import numpy as np

from common import notifying
from common.compiled import kernel, part
from common.ring import RSP
from common.steps import LOOKS_LEFT, NO_STEP, ON, STEP, follow, leave, mask_of
from frontend import blkfront, responses, steps
from frontend.blkfront_info import BLKFRONT, Blkfront
from frontend.load import LOAD, STALE, turn

LOOKS_PER_SLICE: Final = 20_000  # at the ring: as many I/Os, or more
USUAL: Final = mask_of(
    steps.LOOK, steps.TAKE, steps.COPY_OUT, steps.END_LOOK, steps.FINISH, steps.TURN, steps.SUBMIT,
    steps.COPY_IN, steps.PUT, steps.PUBLISH, steps.CHECK_EVENT,
)  # fmt: skip


_ring_of, _job_of = BLKFRONT.view, LOAD.view


@kernel
def run(rings: np.ndarray, jobs: np.ndarray, ring: int, looks: int, stops: int) -> int:
    """Run the job of ring number `ring` for at most so many looks at it; returns the first effect.

    rings, jobs: rows of BLKFRONT and LOAD (i64), by ring number; stops: a set of steps
    (`common.steps.mask_of`): before one of them, but for the first, STOP.
    """
    dev, job = _ring_of(rings, ring), _job_of(jobs, ring)
    dev.turn[LOOKS_LEFT] = looks
    job.clock[STALE] = 1
    at = dev.turn[STEP]
    while at <= NO_STEP:
        # The usual ones in their usual order, so that the CPU foresees each: the table decides.
        if at == steps.LOOK:
            at = follow(dev.next, at, responses.look(dev), stops)
        if at == steps.TAKE:
            at = follow(dev.next, at, responses.take(dev), stops)
        if at == steps.COPY_OUT:
            at = follow(dev.next, at, responses.copy_out(dev), stops)
        if at == steps.END_LOOK:
            at = follow(dev.next, at, responses.end_look(dev), stops)
        if at == steps.FINISH:
            at = follow(dev.next, at, responses.finish(dev), stops)
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


@part
def _advance(dev: Blkfront, step: int) -> int:
    """Do the phase `step`, none of the usual ones; its outcome."""
    if step == steps.END_SWAP:
        return responses.end_swap(dev)
    if step == steps.PREPARE:
        return blkfront.prepare(dev)
    if step == steps.GRANT_ACCESS:
        return blkfront.grant(dev)
    if step == steps.ROUND:
        blkfront.new_turn(dev)
        return ON
    if step == steps.CLEAR:
        return notifying.clear(dev)
    if step == steps.SET_PENDING:
        return notifying.set_pending(dev)
    if step == steps.READ_MASK:
        return notifying.read_mask(dev, dev.front[0].notes_wakes)
    if step == steps.WATCH:
        return notifying.watch(dev, RSP)
    if step in (steps.ARM, steps.ARM_TAKEN):
        return notifying.arm(dev, RSP)
    assert step == steps.LOOK_AGAIN, "no such step"
    return notifying.look_again(dev, RSP, dev.front[0].outstanding)
