"""The guest's compiled loop where disks are exported: the rings' phases, and between them sockets.

Owns: when an export's connections are looked at, and `serve`, which is `frontend/stepper.py`'s for
rings some of which are exports'.
Rules
1. An export's ring stops before each TURN. There its finished I/Os become replies, what clients
   have sent becomes I/Os, and both go on in one call: nobody is returned to for a request.
2. Sockets tell of themselves once (EPOLLET), to one epoll of all exports; what they have told is in
   their connections. Room is asked to be told of only where it has been missing.
3. A ring that has nothing to do is watched together with that epoll, for as long as it pays, and
   then both are slept on.
4. A turn is bounded: who always has something leaves the other rings their turns.
"""

import platform
import select
from typing import Final, NamedTuple

import numpy as np
from numba import types

from common.arena import Arena
from common.compiled import kernel, part, whole
from common.effects import SLICE, STOP, WAIT
from common.spinning import spins
from common.steps import COMPANY, mask_of
from common.turns import (
    ASLEEP,
    HEARD,
    LOOKS_A_TURN,
    READY,
    RING_BITS,
    Turns,
    next_ring,
    note,
    watches,
)
from frontend import steps
from frontend.blkfront_info import Blkfront
from frontend.load import Load
from frontend.nbd_answers import arrange, send_all, take_done
from frontend.nbd_asked import BYTES, receive, take_all
from frontend.nbd_export import (
    CONNECTIONS_MAX,
    ENDED,
    ENDING,
    EXPORTS,
    LIVE,
    LOST,
    NOBODY,
    REQUESTS,
    Export,
)
from frontend.stepper import (
    NO_STOPS,
    WATCHING,
    begin_turns,
    job_of,
    let_go_on,
    ring_of,
    run,
    slept_until_due,
)

AT_TURN: Final = mask_of(steps.TURN)
ROUNDS_MAX: Final = 64  # of an export's turn
TRIES_MAX: Final = 4  # of a connection, in a round
EVENTS_MAX: Final = 64
HEAR_NS: Final = 5_000

IN: Final = int(select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET)
OUT: Final = int(select.EPOLLOUT)
GONE: Final = int(select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR)
EPOLL_CTL_ADD, EPOLL_CTL_MOD = 1, 3
SHUT_RDWR: Final = 2
RING_SHIFT: Final = 8  # of what an event names: the connection is below

# `struct epoll_event`, which is packed on x86-64 only.
EPOLL_EVENT: Final = np.dtype(
    [("events", "<u4"), ("data", "<u8")], align=platform.machine() != "x86_64"
)
SCRATCH_AT: Final = (EVENTS_MAX - 1) * EPOLL_EVENT.itemsize  # the last of them
EARS: Final = np.dtype([("rings", "<u8"), ("epoll", "<i4"), ("pad", "<u4")])

_epoll_wait = types.ExternalFunction(
    "epoll_wait", types.intc(types.intc, types.uintp, types.intc, types.intc)
)
_epoll_ctl = types.ExternalFunction(
    "epoll_ctl", types.intc(types.intc, types.intc, types.intc, types.uintp)
)
_shutdown = types.ExternalFunction("shutdown", types.intc(types.intc, types.intc))

export_of = EXPORTS.view


class Ears(NamedTuple):
    """head: EARS (1,): the rings that are exports', a bit each; events: EPOLL_EVENT, scratch."""

    head: np.ndarray
    events: np.ndarray


def new_ears(arena: Arena) -> Ears:
    """Of a guest without exports."""
    ears = Ears(arena.array(1, EARS), arena.array(EVENTS_MAX, EPOLL_EVENT))
    ears.head["epoll"] = -1
    return ears


@whole
def serve(
    rings: np.ndarray, jobs: np.ndarray, exports: np.ndarray, ears: Ears, turns: Turns
) -> np.int64:
    """See `frontend/stepper.py:serve`. exports: rows of EXPORTS, by ring number."""
    head = turns.head[0]
    begin_turns(jobs, turns)
    stops = WATCHING if watches(turns) else NO_STOPS
    while True:
        ring = next_ring(turns)
        if ring == HEARD:
            hear(exports, ears, turns)
            continue
        if ring < 0:
            head.until_ns = 0
            return np.int64(WAIT if ring == ASLEEP else SLICE) << RING_BITS
        if (ears.head[0].rings >> np.uint64(ring)) & np.uint64(1) != 0:
            effect = _serve_export(rings, jobs, exports, ears, turns, ring)
        else:
            effect = run(rings, jobs, ring, LOOKS_A_TURN, stops)
        for_driver = note(turns, ring, effect)
        if effect == WAIT:
            slept_until_due(jobs, turns, np.int64(ring))
        if ring_of(rings, ring).grants.list[0].waiting > 0:
            let_go_on(rings, turns)
        if for_driver:
            return np.int64(effect) << RING_BITS | ring


@kernel
def hear(exports: np.ndarray, ears: Ears, turns: Turns) -> None:
    """Note what sockets have to tell: their rings have something to do."""
    count = _epoll_wait(
        ears.head[0].epoll, ears.events.ctypes.data, np.int32(EVENTS_MAX - 1), np.int32(0)
    )
    for at in range(count):
        told, named = np.int64(ears.events[at].events), np.int64(ears.events[at].data)
        ring = named >> RING_SHIFT
        c = export_of(exports, ring).connections[named & ((1 << RING_SHIFT) - 1)]
        if told & GONE != 0:
            c.readable = np.uint32(ENDED)
        elif told & IN != 0 and c.readable == 0:
            c.readable = np.uint32(1)
        if told & OUT != 0:
            c.writable = np.uint32(1)
            _ask_for(ears, EPOLL_CTL_MOD, np.int64(c.fd), named, IN)
        turns.state[ring] = np.uint8(READY)


@kernel
def listen_to(ears: Ears, fd: int, ring: int, connection: int) -> None:
    """From now on `fd`, of this connection, tells of itself, until it is closed."""
    _ask_for(ears, EPOLL_CTL_ADD, fd, ring << RING_SHIFT | connection, IN)


@kernel
def _ask_for(ears: Ears, how: int, fd: int, named: int, events: int) -> None:
    """What a socket is to tell of."""
    event = ears.events[EVENTS_MAX - 1]
    event.events, event.data = np.uint32(events), np.uint64(named)
    address = np.int64(ears.events.ctypes.data) + SCRATCH_AT
    _epoll_ctl(ears.head[0].epoll, np.int32(how), np.int32(fd), np.uint64(address))


@whole
def _serve_export(
    rings: np.ndarray,
    jobs: np.ndarray,
    exports: np.ndarray,
    ears: Ears,
    turns: Turns,
    ring: int,
) -> np.int64:
    """A turn of an export's ring; the effect that ended it. STOP: it has nothing to do."""
    dev, job, x = ring_of(rings, ring), job_of(jobs, ring), export_of(exports, ring)
    dev.turn[COMPANY] = 1  # who watches is `next_ring`, which hears the sockets, too
    for at in range(ROUNDS_MAX):
        nr_done = np.int64(dev.front[0].done)
        take_done(dev, x)
        hear(exports, ears, turns)
        moved, x.head[0].busy = False, np.uint32(0)
        for number in range(CONNECTIONS_MAX):
            if x.connections[number].state in (LIVE, ENDING):
                moved = _use_socket(dev, job, x, ears, ring, number) or moved
                if x.connections[number].state == LOST:  # the slice ends: its socket is to go
                    turns.head[0].until_ns = 1
        idle = nr_done + np.int64(dev.front[0].queued) + np.int64(x.head[0].busy) == 0
        if idle and (moved or at > 0) and spins(dev.spin) and job.load[0].stop == 0:
            return np.int64(STOP)
        effect = run(rings, jobs, ring, LOOKS_A_TURN, AT_TURN)
        if effect == WAIT and x.head[0].busy != 0:
            return np.int64(SLICE)
        if effect != STOP:
            return np.int64(effect)
    return np.int64(SLICE)


@part
def _use_socket(dev: Blkfront, job: Load, x: Export, ears: Ears, ring: int, number: int) -> bool:
    """Send and receive on one connection what can be; was anything?"""
    c = x.connections[number]
    moved, again = False, True
    for _ in range(TRIES_MAX):
        arrange(x, number)
        again = False
        if c.nr_outs > 0 and c.writable != 0 and c.state != LOST:
            again = send_all(dev, x, number)
            if c.writable == 0:
                named = ring << RING_SHIFT | number
                _ask_for(ears, EPOLL_CTL_MOD, np.int64(c.fd), named, IN | OUT)
        waits = take_all(dev, job, x, number)
        if waits == BYTES and c.readable != 0 and c.state == LIVE:
            again = receive(dev, x, number) or again
        answers = c.nr_ready > 0 and c.speaker == NOBODY and c.writable != 0
        again = again or answers
        moved = moved or again
        if not again:
            break
    if c.state == ENDING and c.free_requests == REQUESTS and c.nr_outs == 0:
        c.state = np.uint32(LOST)
    if c.state == LOST:
        _shutdown(c.fd, np.int32(SHUT_RDWR))
    elif again:
        x.head[0].busy = np.uint32(1)
    return moved
