"""The guest's compiled loop: phase after phase, ring after ring, until the outside world is needed.

Owns: which function a step of `frontend/steps.py` is, the loop over one ring's phases (`run`), and
that over a guest's rings (`serve`).
"""

from typing import Final

import numpy as np

from common import notifying
from common.compiled import part, whole
from common.effects import SLICE, WAIT
from common.ring import RSP
from common.steps import LOOKS_LEFT, NO_STEP, ON, STEP, follow, leave, mask_of
from common.turns import (
    ASLEEP,
    LOOKS_A_TURN,
    READY,
    RING_BITS,
    SLEEPING,
    Turns,
    begin_slice,
    next_ring,
    note,
    watches,
)
from frontend import blkfront, responses, steps
from frontend.blkfront_info import BLKFRONT, Blkfront
from frontend.load import LOAD
from frontend.load_state import STALE
from frontend.load_turn import turn
from frontend.room import may_go_on

NO_STOPS: Final = 0
WATCHING: Final = mask_of(steps.WATCH)
USUAL: Final = mask_of(
    steps.LOOK, steps.TAKE, steps.COPY_OUT, steps.END_LOOK, steps.FINISH, steps.TURN, steps.SUBMIT,
    steps.COPY_IN, steps.PUT, steps.PUBLISH, steps.CHECK_EVENT,
)  # fmt: skip


ring_of, job_of = BLKFRONT.view, LOAD.view


@whole
def run(rings: np.ndarray, jobs: np.ndarray, ring: int, looks: int, stops: int) -> int:
    """Run the job of ring number `ring` for at most so many looks at it; returns the first effect.

    rings, jobs: rows of BLKFRONT and LOAD (i64), by ring number; stops: a set of steps
    (`common.steps.mask_of`): before one of them, but for the first, STOP.
    """
    dev, job = ring_of(rings, ring), job_of(jobs, ring)
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


@whole
def serve(rings: np.ndarray, jobs: np.ndarray, turns: Turns) -> np.int64:
    """Run the jobs of the rings that have `turns`, a turn each, until the driver has something to
    do: the effect and the ring that it is of (`both_of`).

    WAIT: all are asleep, and SLICE: the slice is over, are of no ring. What begins a slice is the
    call after one of the two.
    """
    head = turns.head[0]
    if head.until_ns == 0:
        begin_slice(turns)
        for place in range(head.count):
            heed_time(jobs, turns, np.int64(turns.order[place]))
    stops = WATCHING if watches(turns) else NO_STOPS
    while True:
        ring = next_ring(turns)
        if ring < 0:
            head.until_ns = 0
            return np.int64(WAIT if ring == ASLEEP else SLICE) << RING_BITS
        effect = run(rings, jobs, ring, LOOKS_A_TURN, stops)
        for_driver = note(turns, ring, effect)
        if effect == WAIT:
            heed_time(jobs, turns, np.int64(ring))
        if ring_of(rings, ring).grants.list[0].waiting > 0:
            let_go_on(rings, turns)
        if for_driver:
            return np.int64(effect) << RING_BITS | ring


@part
def heed_time(jobs: np.ndarray, turns: Turns, ring: int) -> None:
    """The slice ends when it is time for the job of a ring that sleeps: the driver sees to it."""
    due_ns = np.int64(job_of(jobs, ring).load[0].due_ns)
    if due_ns > 0 and turns.state[ring] == SLEEPING:
        turns.head[0].until_ns = min(turns.head[0].until_ns, due_ns)


@part
def let_go_on(rings: np.ndarray, turns: Turns) -> None:
    """Who waits for grant entries has a turn if that may help."""
    for place in range(turns.head[0].count):
        ring = np.int64(turns.order[place])
        if may_go_on(ring_of(rings, ring)):
            turns.state[ring] = np.uint8(READY)


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
