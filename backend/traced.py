"""dom0's loop over a thread's rings while it is traced: the same phases, and when each began.

Owns: which phases have an entry in the log. The phases are run by `backend/worker.py`'s loop, which
is asked to stop before each of these: so a run that is not traced pays nothing for those that are.
"""

from collections.abc import Callable
from typing import Final

import numpy as np

from backend import steps
from backend.blkback import BLKBACK
from backend.worker import TO_WATCH, serve, was_woken_for_nothing, work
from common.clock import monotonic_ns
from common.compiled import direct, part, whole
from common.effects import STOP, WAIT
from common.steps import LOOKS_LEFT, STEP, mask_of
from common.trace_log import Log, write_step
from common.turns import (
    LOOKS_A_TURN,
    NOBODY,
    RING_BITS,
    Turns,
    begin_slice,
    next_ring,
    note,
    watches,
)

TRACED: Final = mask_of(
    steps.TAKE, steps.MAP, steps.MAPPED, steps.RELEASE, steps.UNMAP, steps.UNMAPPED, steps.RESPOND,
    steps.PUBLISH,
)  # fmt: skip
_view = BLKBACK.view


@whole
def serve_traced(
    turns: Turns, rings: np.ndarray, ending: int, head: np.ndarray, entries: np.ndarray
) -> np.int64:
    """`worker.serve`, and what is done when in a log (`common/trace_log.py`)."""
    begin_slice(turns)
    while True:
        ring = next_ring(turns)
        if ring < 0:
            return np.int64(ring)
        looks = 0 if ring == ending else LOOKS_A_TURN
        effect = _work(turns, rings, ring, looks, head, entries)
        needed = note(turns, ring, effect) or ring == ending
        if effect == WAIT:
            needed |= was_woken_for_nothing(rings, ring)
        if needed:
            return np.int64(effect) << RING_BITS | ring


def serving(
    turns: Turns, rings: np.ndarray, log: Log | None
) -> Callable[[Turns, np.ndarray, int], int]:
    """`worker.serve`, loaded; a slice that begins while its log is on is traced."""
    serves = direct(serve, turns, rings, NOBODY)
    if log is None:
        return serves
    is_on, traces = log.asks(), direct(serve_traced, turns, rings, NOBODY, *log)

    def either(turns: Turns, rings: np.ndarray, ending: int) -> int:
        if is_on():
            return int(traces(turns, rings, ending, *log))
        return int(serves(turns, rings, ending))

    return either


@part
def _work(
    turns: Turns, rings: np.ndarray, ring: int, looks: int, head: np.ndarray, entries: np.ndarray
) -> np.int64:
    stops = TO_WATCH if watches(turns) else 0
    dev = _view(rings, ring)
    while True:
        at = dev.turn[STEP]
        if (TRACED >> at) & 1:
            _write(turns, rings, ring, at, head, entries)
        effect = np.int64(work(rings, ring, looks, stops | TRACED))
        if effect != STOP or (stops >> dev.turn[STEP]) & 1:
            return effect
        looks = dev.turn[LOOKS_LEFT]


@part
def _write(
    turns: Turns, rings: np.ndarray, ring: int, step: int, head: np.ndarray, entries: np.ndarray
) -> None:
    dev = _view(rings, ring)
    now_ns, index = monotonic_ns(turns.head[0].timespec), np.int64(dev.half[0].cons)
    if step != steps.RESPOND:
        write_step(head, entries, now_ns, ring, step, index, 0, 0, 0, 0)
        return
    request = dev.requests[np.int64(dev.group[dev.back[0].request])]
    ident, sector = np.int64(request.id & np.uint64(0xFFFFFFFF)), np.int64(request.sector)
    of = np.int64(request.operation), np.int64(request.nr_segments)
    write_step(head, entries, now_ns, ring, step, index, ident, sector, *of)
