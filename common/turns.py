"""One thread that serves many rings: whose turn it is, and when it may sleep.

Owns: the turns, alike for a guest's vCPU, with all its disks, and for one of dom0's, with all its
rings. What is done in a turn is the end's compiled loop's, which is run for one ring after the
other (`frontend/stepper.py:serve`, `backend/worker.py:serve`).
Rules
1. A ring that has something to do has a turn, of so many looks at it, in every round.
2. A ring that has nothing is watched, with all others of that kind, while the thread has others to
   serve, and after that for as long as it pays (`common/spinning.py`). Only then is each asked to
   arm and to look again; and the thread sleeps when every one of them sleeps.
3. A ring that sleeps is woken by its pending bit, which is looked at in every round; and so is what
   else may have something for it, whether it sleeps or is watched.
4. A slice is bounded in time: then the outside world is looked at.
5. What answers over a descriptor is asked for every `hear_ns`, between turns and while it spins.
"""

from typing import Any, Final, NamedTuple

import numpy as np
from numba import types

from common.arena import Arena
from common.atomics import load_acquire, pause
from common.clock import monotonic_ns
from common.compiled import kernel
from common.effects import SLICE, STOP, WAIT
from common.event_channel import clear_pending
from common.ring import RING_HALF
from common.rows import Layout
from common.spinning import begin_spin, goes_on, looks_a_turn, spins
from common.steps import COMPANY

SLICE_NS: Final = 2_000_000
LOOKS_A_TURN: Final = 256  # at the ring; dom0 counts each segment of what it takes as one, too

# What `next_ring` returns when it is no ring's turn.
ASLEEP: Final = -1  # all are armed, and have nothing
SLICE_OVER: Final = -2
NOBODY: Final = -3
HEARD: Final = -4  # the descriptor is ready

HEAR_NS: Final = 50_000
POLLIN: Final = 1

# Of a ring.
READY: Final = 0
WATCHED: Final = 1  # it has nothing, and has not armed
SLEEPING: Final = 2

RING_BITS: Final = 16  # of what `serve` returns: the effect is above

TURNS: Final = np.dtype(
    [
        ("until_ns", "<i8"),
        ("timespec", "<i8", (2,)),  # scratch of the clock
        ("peer", "<i4"),  # which producer of a ring is the peer's: `common/ring.py`
        ("count", "<i4"),
        ("place", "<i4"),  # in `order`: who had the last turn
        ("hear_ns", "<i4"),  # how often the descriptor is looked at
        ("heard_ns", "<i8"),  # when the descriptor was last looked at
        ("polled", "<i4"),  # `struct pollfd`: what else may have something for a ring, or -1
        ("events", "<i4"),  # `events`, and above it `revents`
    ]
)


POLLFD_AT: Final = TURNS.fields["polled"][1]  # type: ignore[index]
_poll = types.ExternalFunction("poll", types.intc(types.uintp, types.uintp, types.intc))


class End(NamedTuple):
    """What is looked at of a ring: some of a Blkfront's or a Blkback's arrays.

    answers, taken, flags: u32 (1,), of what else may have something for the ring: how many it has
    given, how many of them were taken, and anything but 0 if it is to be asked.
    """

    words: np.ndarray
    half: np.ndarray
    turn: np.ndarray
    pending: np.ndarray
    port: np.ndarray
    answers: np.ndarray
    taken: np.ndarray
    flags: np.ndarray


END: Final = Layout(
    End,
    words=np.uint32,
    half=RING_HALF,
    turn=np.int64,
    pending=np.uint64,
    port=np.int64,
    answers=np.uint32,
    taken=np.uint32,
    flags=np.uint32,
)
end_of = END.view
_NOTHING: Final = np.zeros(1, np.uint32)
NOBODY_ELSE: Final = (_NOTHING, _NOTHING, _NOTHING)


def looked_at(dev: Any, else_: tuple[np.ndarray, np.ndarray, np.ndarray] = NOBODY_ELSE) -> End:
    """That of a Blkfront or a Blkback. else_: answers, taken and flags."""
    return End(dev.words, dev.half, dev.turn, dev.events.pending, dev.events.port, *else_)


class Turns(NamedTuple):
    """head: TURNS (1,); order: i32, the numbers of the rings that have turns, `head.count` of them;
    state: u8 by ring; ends: END's rows by ring; spin: SPIN (1,), the thread's.
    """

    head: np.ndarray
    order: np.ndarray
    state: np.ndarray
    ends: np.ndarray
    spin: np.ndarray


def new_turns(arena: Arena, rings_max: int, peer: int, spin: np.ndarray) -> Turns:
    """For rings with the numbers 0 to `rings_max - 1`, none of which has turns yet.

    peer: the producer that is waited for, REQ or RSP; spin: the thread's, and its rings'.
    """
    head = arena.array(1, TURNS)
    head["peer"], head["polled"], head["hear_ns"] = peer, -1, HEAR_NS
    return Turns(
        head,
        arena.array(rings_max, np.int32),
        arena.array(rings_max, np.uint8),
        END.rows(arena, rings_max),
        spin,
    )


def take_in(turns: Turns, ring: int, end: End) -> None:
    """From now on `ring` has turns. Its arrays are to live while it has."""
    count = int(turns.head["count"][0])
    assert ring not in turns.order[:count], "it has turns"
    END.write(turns.ends[ring], end)
    turns.order[count], turns.state[ring] = ring, READY
    turns.head["count"] = count + 1
    _tell_of_company(turns)


def leave_out(turns: Turns, ring: int) -> None:
    """From now on it has none."""
    count = int(turns.head["count"][0])
    (place,) = np.flatnonzero(turns.order[:count] == ring)
    turns.order[place : count - 1] = turns.order[place + 1 : count]
    turns.head["count"] = count - 1
    _tell_of_company(turns)


def rings_of(turns: Turns) -> list[int]:
    """The rings that have turns."""
    return [int(ring) for ring in turns.order[: turns.head["count"][0]]]


def make_ready(turns: Turns, ring: int) -> None:
    """It is to have a turn, though its peer has sent no event."""
    turns.state[ring] = READY


def _tell_of_company(turns: Turns) -> None:
    rings = rings_of(turns)
    for ring in rings:
        _tell(turns.ends, ring, int(len(rings) > 1))


@kernel
def _tell(ends: np.ndarray, ring: int, company: int) -> None:
    end_of(ends, ring).turn[COMPANY] = company


def hear_of(turns: Turns, fd: int, every_ns: int = HEAR_NS) -> None:
    """From now on `fd` is looked at, too, every so often; -1: none is."""
    turns.head["polled"], turns.head["hear_ns"] = fd, every_ns


@kernel
def begin_slice(turns: Turns) -> None:
    """A slice begins."""
    head = turns.head[0]
    head.until_ns = monotonic_ns(head.timespec) + SLICE_NS


@kernel
def watches(turns: Turns) -> bool:
    """Is a ring's loop to stop before it watches? Who is alone, or never spins, need not."""
    return turns.head[0].count > 1 and spins(turns.spin)


@kernel
def next_ring(turns: Turns) -> np.int64:
    """Whose turn it is; or ASLEEP, SLICE_OVER, HEARD or NOBODY."""
    head = turns.head[0]
    if head.count == 0:
        return np.int64(NOBODY)
    now_ns = monotonic_ns(head.timespec)
    if now_ns >= head.until_ns:
        return np.int64(SLICE_OVER)
    if _hears(turns, now_ns):
        return np.int64(HEARD)
    found = _look_round(turns)
    if found != ASLEEP or not _any_watched(turns):
        return found
    begin_spin(turns.spin)
    while found == ASLEEP and goes_on(turns.spin):
        for _ in range(looks_a_turn(turns.spin)):
            found = _look_round(turns)
            if found != ASLEEP:
                break
            pause()
        if found == ASLEEP and _hears(turns, turns.spin[0].now_ns):
            return np.int64(HEARD)
    if found == ASLEEP:  # none of them needs to be watched any longer
        for at in range(head.count):
            if turns.state[turns.order[at]] == WATCHED:
                turns.state[turns.order[at]] = np.uint8(READY)
        found = _look_round(turns)
    return found


@kernel
def _hears(turns: Turns, now_ns: int) -> bool:
    head = turns.head[0]
    if head.polled < 0 or now_ns - head.heard_ns < head.hear_ns:
        return False
    head.heard_ns, head.events = now_ns, np.int32(POLLIN)
    return _poll(turns.head.ctypes.data + POLLFD_AT, np.uint64(1), np.int32(0)) > 0


@kernel
def _any_watched(turns: Turns) -> bool:
    watched = 0
    for at in range(turns.head[0].count):
        watched += turns.state[turns.order[at]] == WATCHED
    return watched > 0


@kernel
def _look_round(turns: Turns) -> np.int64:
    """The next ring, from the one after the last, that is ready, or whose peer has done something;
    ASLEEP if there is none.
    """
    head = turns.head[0]
    for step in range(1, head.count + 1):
        place = (head.place + step) % head.count
        ring = np.int64(turns.order[place])
        if turns.state[ring] == READY or _stirs(turns, ring):
            turns.state[ring] = np.uint8(READY)
            head.place = np.int32(place)
            return ring
    return np.int64(ASLEEP)


@kernel
def _stirs(turns: Turns, ring: int) -> bool:
    """Is there something for a ring that is not ready?"""
    end = end_of(turns.ends, ring)
    if load_acquire(end.answers, 0) != load_acquire(end.taken, 0):
        return True
    if load_acquire(end.flags, 0) != 0:
        return True
    if turns.state[ring] == WATCHED:
        return load_acquire(end.words, turns.head[0].peer) != end.half[0].cons
    return is_pending(end) and clear_pending(end.pending, end.port[0])


@kernel
def is_pending(end: End) -> bool:
    """Is there an event? A load, where `clear_pending` would write."""
    port = end.port[0]
    return (load_acquire(end.pending, port >> 6) >> np.uint64(port & 63)) & np.uint64(1) != 0


@kernel
def note(turns: Turns, ring: int, effect: int) -> bool:
    """How a ring's turn ended; True if the driver has to do something."""
    if effect == STOP:
        turns.state[ring] = np.uint8(WATCHED)
    elif effect == WAIT:
        turns.state[ring] = np.uint8(SLEEPING)
    return effect not in (STOP, WAIT, SLICE)


@kernel
def any_pending(turns: Turns) -> bool:
    """Is any ring's event pending? To be asked after its carriers are drained, before a sleep."""
    pending = 0
    for at in range(turns.head[0].count):
        pending += is_pending(end_of(turns.ends, turns.order[at]))
    return pending > 0


def both_of(returned: int) -> tuple[int, int]:
    """What `serve` returns: the effect, and the ring that it is of."""
    return returned >> RING_BITS, returned & ((1 << RING_BITS) - 1)
