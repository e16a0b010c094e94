"""The phases of notifying and of waiting, which both ends of a ring have alike.

Owns: each such phase, with its one access; which follows which is the ends' tables'. `own` and
`peer` name the two producers by their word, as in `common/ring.py`.
"""

from typing import Any, Final

from common import ring
from common.atomics import load_acquire
from common.compiled import part
from common.event_channel import become_pending, clear_pending, is_masked
from common.napping import nap
from common.spinning import begin_spin, spin_until_changed, spins, spun_ns
from common.steps import AGAIN, COMPANY, EVENT, LOOKS_LEFT, NEXT, NONE, ON, WOKE

LOOK_NS_BITS: Final = 13  # of what a look may take: a turn's (`common/turns.py`) are 2 ms

# A ring's end: a Blkfront or a Blkback, whose words, half, turn, events and spin are used.
End = Any


@part
def clear(end: End) -> int:
    """CLEAR: take our event. Who spins has none to take until it has slept."""
    if not spins(end.spin):
        end.turn[EVENT] += clear_pending(end.events.pending, end.events.port[0])
    return ON


@part
def check_event(end: End, own: int) -> int:
    """CHECK_EVENT: did the peer ask to be notified of what is published? NEXT: no, and we spin."""
    if ring.check_notify(end.words, end.half, own):
        return ON
    return NEXT if spins(end.spin) else NONE


@part
def set_pending(end: End) -> int:
    """SET_PENDING: NONE if the far end's event was pending."""
    return ON if become_pending(end.events.far_pending, end.events.port[0]) else NONE


@part
def read_mask(end: End, notes_wakes: int) -> int:
    """READ_MASK: ON if the far end is to be woken by the driver, who may have it noted instead."""
    if is_masked(end.events.far_mask, end.events.port[0]):
        return NONE
    end.turn[WOKE] += 1
    return NONE if notes_wakes else ON


@part
def watch(end: End, peer: int) -> int:
    """WATCH: AGAIN once the peer has produced something, ON if it does not pay to look longer.

    In company whose turn it is has looked for as long as it pays, at all rings together. Who is
    alone has its turn by the clock, too: what it spins is taken off its looks.
    """
    seen = end.half[0].cons
    if load_acquire(end.words, peer) != seen:
        return AGAIN
    if end.turn[COMPANY] != 0:
        return ON
    if not spins(end.spin):
        return ON
    begin_spin(end.spin)
    found = False
    while not found and nap(
        end.spin, ring.under_way(end.half, peer), ring.answered(end.half, peer)
    ):
        found = load_acquire(end.words, peer) != seen
    if not found:
        end.turn[LOOKS_LEFT] -= spun_ns(end.spin) >> LOOK_NS_BITS
        found = spin_until_changed(end.words, peer, seen, end.spin)
    end.turn[LOOKS_LEFT] -= spun_ns(end.spin) >> LOOK_NS_BITS
    return AGAIN if found else ON


@part
def arm(end: End, peer: int) -> int:
    """ARM, ARM_TAKEN: ask to be notified of the peer's next."""
    ring.arm(end.words, end.half, peer)
    return ON


@part
def look_again(end: End, peer: int, limit: int) -> int:
    """LOOK_AGAIN: NONE if the peer has produced nothing, and we may sleep."""
    return NONE if ring.unconsumed(end.words, end.half, peer, limit) == 0 else ON
