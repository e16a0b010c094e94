"""The compiled loops of rings' workers: phase after phase, until the outside world is needed.

Owns: which function a step of `backend/steps.py` is, the loop of one ring, and the loop over all of
a thread's. With every page kept and requests coming there is no effect but SLICE.
"""

from typing import Final

import numpy as np

from backend import at_store, doors, phases, steps, taking
from backend.blkback import BLKBACK, QUEUE, Blkback
from backend.queue_sleep import wait_for
from backend.store_queue import has_answers
from common import notifying
from common.atomics import load_acquire, pause
from common.compiled import part, whole
from common.effects import WAIT
from common.napping import end_nap, nap_ns, share_of
from common.ring import REQ, RSP, answered, publish
from common.spinning import begin_spin, goes_on, looks_a_turn, spins, spun_ns
from common.steps import (
    AGAIN,
    COMPANY,
    EVENT,
    LOOKS_LEFT,
    NO_STEP,
    ON,
    STEP,
    WRITTEN,
    follow,
    leave,
    mask_of,
)
from common.turns import LOOKS_A_TURN, RING_BITS, Turns, begin_slice, next_ring, note, watches

BETWEEN_REQUESTS: Final = mask_of(steps.CLEAR, steps.LOOK)
USUAL: Final = mask_of(
    steps.LOOK, steps.TAKE, steps.MOVE, steps.RELEASE, steps.RESPOND, steps.PUBLISH,
    steps.CHECK_EVENT,
)  # fmt: skip
TO_WATCH: Final = mask_of(steps.WATCH)
FRUITLESS_MAX: Final = 2  # a spin takes requests whose event is still on its way
_view = BLKBACK.view


@whole
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


@whole
def serve(turns: Turns, rings: np.ndarray, ending: int) -> np.int64:
    """Serve all rings that have turns, for a slice; what for (`both_of`) the driver is needed.

    ending: a ring that is to stop between two requests, or NOBODY: it looks for no more of them,
    and its turn is returned from, whatever its effect. WAIT is that of a ring that has been woken
    for nothing too often; when all sleep it is ASLEEP, else what `next_ring` says.
    """
    begin_slice(turns)
    while True:
        ring = next_ring(turns)
        if ring < 0:
            return np.int64(ring)
        stops = TO_WATCH if watches(turns) else 0
        effect = work(rings, ring, 0 if ring == ending else LOOKS_A_TURN, stops)
        needed = note(turns, ring, effect) or ring == ending
        if effect == WAIT:
            needed |= was_woken_for_nothing(rings, ring)
        if needed:
            return np.int64(effect) << RING_BITS | ring


@part
def was_woken_for_nothing(rings: np.ndarray, ring: int) -> bool:
    """A ring falls asleep: has that come without a request, or an answer, too often?"""
    dev = _view(rings, ring)
    back, counters = dev.back[0], dev.counters[0]
    counters.waits += np.uint64(1)
    served = counters.requests + np.uint64(dev.half[0].prod_pvt)  # taken, or answered
    back.fruitless = np.uint32(back.fruitless + 1 if served == back.served else 0)
    back.served = served
    return back.fruitless > FRUITLESS_MAX


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
    if step == steps.HAND_OVER:
        return at_store.hand_over(dev)
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
        return _watch(dev)
    if step in (steps.ARM, steps.ARM_TAKEN):
        return notifying.arm(dev, REQ)
    assert step == steps.LOOK_AGAIN, "no such step"
    return _look_again(dev)


@part
def _watch(dev: Blkback) -> int:
    """Who has given the store something watches both, or neither: a store that the driver calls is
    heard of by the driver only.
    """
    if dev.back[0].vacant == dev.half[0].nr_ents:
        return notifying.watch(dev, REQ)
    if dev.back[0].store_door != QUEUE or dev.turn[COMPANY] != 0 or not spins(dev.spin):
        return ON
    begin_spin(dev.spin)
    seen = _has_more(dev)
    while not seen and _naps(dev):
        seen = _has_more(dev)
    while not seen and goes_on(dev.spin):
        for _ in range(looks_a_turn(dev.spin)):
            seen = _has_more(dev)
            if seen:
                break
            pause()
    dev.turn[LOOKS_LEFT] -= spun_ns(dev.spin) >> notifying.LOOK_NS_BITS
    return AGAIN if seen else ON


@part
def _naps(dev: Blkback) -> bool:
    """Until the store has answered some; requests are late by a part of what one takes."""
    ns = nap_ns(dev.spin, dev.back[0].at_store, answered(dev.half, REQ))
    if ns == 0:
        return False
    wait_for(dev.queue, share_of(dev.spin, dev.back[0].at_store), ns)
    end_nap(dev.spin)
    return True


@part
def _has_more(dev: Blkback) -> bool:
    return load_acquire(dev.words, REQ) != dev.half[0].cons or has_answers(dev.queue)


@part
def _look_again(dev: Blkback) -> int:
    """What the store has finished, or a request's next job, is a reason to go on, too."""
    back = dev.back[0]
    if (
        back.finished > 0
        or back.started > 0
        or (back.store_door == QUEUE and has_answers(dev.queue))
    ):
        return ON
    return notifying.look_again(dev, REQ, dev.back[0].vacant)
