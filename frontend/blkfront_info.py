"""blkfront's core, its state: one virtual disk of a guest, as arrays that compiled phases take.

Owns: the shadow of every request in flight, and which page and grant each of its segments uses. The
phases are in `frontend/blkfront.py`.
Never knows: time, processes, sockets.
"""

from typing import Final, NamedTuple

import numpy as np

from common import ring
from common.abi import BLKIF_MAX_SEGMENTS_PER_REQUEST
from common.arena import Arena
from common.counters import FRONTEND_COUNTERS
from common.event_channel import EVENT_WORDS, EventWords
from common.rows import Layout
from common.spinning import SPIN
from common.steps import STEP, TURN_WORDS
from frontend import steps
from frontend.grants import GRANTS, Grants
from frontend.page_pool import PAGE_POOL, PagePool, begin_pool

PER_REQUEST: Final = 0
PERSISTENT: Final = 1
REUSE: Final = 2

# Why a device is broken (FRONT.broken); the texts go into the log and xenstore's error node.
BROKEN_RING: Final = 1
BROKEN_ID: Final = 2
BROKEN_OPERATION: Final = 3
BROKEN_STILL_MAPPED: Final = 4
BROKEN_REASONS: Final = {
    BROKEN_RING: "the backend produced more responses than there were requests",
    BROKEN_ID: "the backend answered a request that was not asked",
    BROKEN_OPERATION: "the backend answered a request with another operation",
    BROKEN_STILL_MAPPED: "the backend answered a request but kept its page mapped",
}

NONE: Final = -1
NOT_SENT: Final = 0  # no operation: a flush is done at once

# The status of an I/O that the pool or the grant table cannot hold even when nothing else is in
# flight; none of BLKIF_RSP_*, so no backend's to say.
NO_ROOM: Final = -3

FRONT: Final = np.dtype(
    [
        ("ram", "<u8"),  # address of guest frame 0
        ("backend_domid", "<u4"),
        ("handle", "<u4"),  # virtual device number
        ("grant_mode", "<u4"),  # PER_REQUEST, PERSISTENT or REUSE
        ("broken", "<u4"),
        ("free_id", "<i4"),  # head of the shadow's free list
        ("outstanding", "<u4"),  # requests on the ring
        ("queue_first", "<u4"),
        ("queued", "<u4"),
        ("done", "<u4"),
        ("notes_wakes", "<u4"),  # the driver is not returned to for a WAKE: it reads WOKE
        # The request that is being prepared or finished, and where in it we are.
        ("ident", "<u4"),
        ("at", "<u4"),  # segment
        ("responses", "<u4"),  # that have been seen, and are still to be taken
        ("status", "<i4"),  # of the response taken
        ("entry", "<u4"),  # the grant entry as it was seen
        ("tries", "<u4"),
        ("wanted", "<u4"),  # grant entries that are waited for: `frontend/room.py`
        ("flushes_as", "<u4"),  # the operation that a flush is sent as, or NOT_SENT
        ("discards", "<u4"),  # are discards sent?
        ("unflushed", "<u4"),  # flushes that were reported done though the backend has done none
    ],
    align=True,
)

SHADOW: Final = np.dtype(
    [
        ("next", "<i4"),
        ("io", "<i4"),
        ("issued", "<u4"),  # which request of the ring it is, free-running
        ("operation", "u1"),
        ("nr_segments", "u1"),
        ("used", "u1"),
    ],
    align=True,
)

# What has been given back is no longer named: NO_GREF, NO_PAGE.
SHADOW_SEGMENT: Final = np.dtype(
    [("gref", "<u4"), ("page", "<i4"), ("frame", "<u4"), ("nr_sectors", "<u4")]
)

# One I/O of the caller: `frame` is the first of the consecutive guest frames of its buffer. A flush
# (BLKIF_OP_FLUSH_DISKCACHE, however it is sent) has no sectors, and a discard no buffer.
IO: Final = np.dtype(
    [
        ("sector", "<u8"),
        ("started_ns", "<u8"),  # the caller's
        ("nr_sectors", "<u8"),
        ("issued_sectors", "<u8"),
        ("frame", "<u4"),
        ("outstanding", "<u4"),
        ("operation", "<u2"),
        ("status", "<i2"),  # NOT_DONE until its last request is answered or one has failed
        ("secure", "<u2"),  # of a discard: nobody is to be able to read it again
        ("again", "<u2"),  # a flush that was on another ring: see `frontend/recovery.py`
    ]
)


class Blkfront(NamedTuple):
    """All of one device's state, as arrays that compiled phases take.

    words, qwords: the ring's page as u32 and u64; half: RING_HALF; turn: i64 (TURN_WORDS), its
    place and what it has done; next: the table; front: FRONT; shadow: SHADOW (nr_ents); segments:
    SHADOW_SEGMENT (nr_ents, 11); ios: IO (n); queue, done: i32 (n), indices of I/Os waiting for the
    ring and of I/Os finished; counters: FRONTEND_COUNTERS; events: both ends' words; spin: SPIN.
    """

    words: np.ndarray
    qwords: np.ndarray
    half: np.ndarray
    turn: np.ndarray
    next: np.ndarray
    front: np.ndarray
    shadow: np.ndarray
    segments: np.ndarray
    ios: np.ndarray
    queue: np.ndarray
    done: np.ndarray
    grants: Grants
    pool: PagePool
    counters: np.ndarray
    events: EventWords
    spin: np.ndarray


BLKFRONT: Final = Layout(
    Blkfront,
    words=np.uint32,
    qwords=np.uint64,
    half=ring.RING_HALF,
    turn=np.int64,
    next=np.uint16,
    front=FRONT,
    shadow=SHADOW,
    segments=(SHADOW_SEGMENT, 2),
    ios=IO,
    queue=np.int32,
    done=np.int32,
    grants=GRANTS,
    pool=PAGE_POOL,
    counters=FRONTEND_COUNTERS,
    events=EVENT_WORDS,
    spin=SPIN,
)


def new_blkfront(
    arena: Arena,
    ring_page: np.ndarray,
    ram_address: int,
    grants: Grants,
    pool: PagePool,
    counters: np.ndarray,
    events: EventWords,
    spin: np.ndarray,
    *,
    nr_ios: int,
    backend_domid: int = 0,
    handle: int = 0,
    start: int = 0,
    notes_wakes: bool = False,
) -> Blkfront:
    """A device on a fresh ring; `ring_page` (u8, whole pages) is initialised here, at `start`.

    counters: FRONTEND_COUNTERS (1,). notes_wakes: see FRONT.
    """
    nr_ents = ring.nr_ents_of(ring_page)
    front = arena.array(1, FRONT)
    front["ram"], front["handle"], front["notes_wakes"] = ram_address, handle, notes_wakes
    dev = Blkfront(
        ring_page.view(np.uint32),
        ring_page.view(np.uint64),
        ring.new_half(arena, nr_ents),
        arena.array(TURN_WORDS, np.int64),
        steps.NEXT,
        front,
        arena.array(nr_ents, SHADOW),
        arena.array((nr_ents, BLKIF_MAX_SEGMENTS_PER_REQUEST), SHADOW_SEGMENT),
        arena.array(nr_ios, IO),
        arena.array(nr_ios, np.int32),
        arena.array(nr_ios, np.int32),
        grants,
        pool,
        counters,
        events,
        spin,
    )
    begin_ring(dev, backend_domid, start)
    return dev


def begin_ring(dev: Blkfront, backend_domid: int, start: int = 0) -> None:
    """The device is on a fresh ring, for that backend, and nothing is granted. What is queued, and
    what is done, stays."""
    ring.shared_ring_init(dev.words, start)
    ring.begin_half(dev.half, start)
    dev.turn[:] = 0
    dev.turn[STEP] = steps.CLEAR  # a lie that is there already is seen before anything is asked
    dev.front["backend_domid"] = backend_domid
    for name in ("broken", "free_id", "outstanding", "ident", "at", "responses", "tries"):
        dev.front[name] = 0
    dev.shadow[:], dev.segments[:] = 0, 0
    dev.shadow["next"] = np.arange(1, len(dev.shadow) + 1)
    dev.shadow["next"][-1] = NONE
    begin_pool(dev.pool)
