"""A guest's loop over its rings while it is traced: the same phases, and when each began.

Owns: which phases have an entry in the log. See `backend/traced.py`, whose twin it is.
"""

from collections.abc import Callable
from typing import Any, Final

import numpy as np

from common.clock import monotonic_ns
from common.compiled import direct, part, whole
from common.effects import SLICE, STOP, WAIT
from common.steps import LOOKS_LEFT, STEP, mask_of
from common.trace_log import Log, write_step
from common.turns import ASLEEP, LOOKS_A_TURN, RING_BITS, Turns, next_ring, note, watches
from frontend import steps
from frontend.stepper import (
    NO_STOPS,
    WATCHING,
    begin_turns,
    let_go_on,
    ring_of,
    run,
    serve,
    slept_until_due,
)

TRACED: Final = mask_of(steps.PUT, steps.PUBLISH, steps.FINISH)


@whole
def serve_traced(
    rings: np.ndarray, jobs: np.ndarray, turns: Turns, head: np.ndarray, entries: np.ndarray
) -> np.int64:
    """`stepper.serve`, and what is done when in a log (`common/trace_log.py`)."""
    begin_turns(jobs, turns)
    stops = WATCHING if watches(turns) else NO_STOPS
    while True:
        ring = next_ring(turns)
        if ring < 0:
            turns.head[0].until_ns = 0
            return np.int64(WAIT if ring == ASLEEP else SLICE) << RING_BITS
        effect = _run(rings, jobs, turns, ring, stops, head, entries)
        for_driver = note(turns, ring, effect)
        if effect == WAIT:
            slept_until_due(jobs, turns, np.int64(ring))
        if ring_of(rings, ring).grants.list[0].waiting > 0:
            let_go_on(rings, turns)
        if for_driver:
            return np.int64(effect) << RING_BITS | ring


def serving(
    rings: np.ndarray, jobs: np.ndarray, turns: Turns, log: Log | None
) -> Callable[..., int]:
    """`stepper.serve`, loaded; a slice that begins while its log is on is traced."""
    serves = direct(serve, rings, jobs, turns)
    if log is None:
        return serves
    is_on, traces = log.asks(), direct(serve_traced, rings, jobs, turns, *log)

    def either(*given: Any) -> int:
        return int(traces(*given, *log)) if is_on() else int(serves(*given))

    return either


@part
def _run(
    rings: np.ndarray,
    jobs: np.ndarray,
    turns: Turns,
    ring: int,
    stops: int,
    head: np.ndarray,
    entries: np.ndarray,
) -> np.int64:
    dev, looks = ring_of(rings, ring), LOOKS_A_TURN
    while True:
        at = dev.turn[STEP]
        if (TRACED >> at) & 1:
            _write(rings, turns, ring, at, head, entries)
        effect = np.int64(run(rings, jobs, ring, looks, stops | TRACED))
        if effect != STOP or (stops >> dev.turn[STEP]) & 1:
            return effect
        looks = dev.turn[LOOKS_LEFT]


@part
def _write(
    rings: np.ndarray, turns: Turns, ring: int, step: int, head: np.ndarray, entries: np.ndarray
) -> None:
    dev = ring_of(rings, ring)
    ident = np.int64(dev.front[0].ident)
    shadow = dev.shadow[ident]
    index = np.int64(shadow.issued) if step == steps.FINISH else np.int64(dev.half[0].prod_pvt)
    io = dev.ios[shadow.io]
    sector = np.int64(io.sector) + (np.int64(io.issued_sectors) if step == steps.PUT else 0)
    now_ns = monotonic_ns(turns.head[0].timespec)
    given = now_ns, ring, step, index, ident, sector
    write_step(head, entries, *given, np.int64(shadow.operation), np.int64(shadow.nr_segments))
