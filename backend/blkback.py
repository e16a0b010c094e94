"""blkback's core, its state: one ring of one virtual disk, as arrays that compiled phases take.

Owns: what a ring's worker knows. What a request's slot holds is in `backend/slots.py`, the phases
are in `backend/phases.py`, the tree of kept mappings in `backend/persistent_grants.py`.
Never knows: time, processes, sockets, how a page gets mapped. A driver asks the hypervisor and
maps: `backend/ring_hands.py` with real `mmap`s, a simulator or a test in plain memory.

Host addresses: dom0 maps foreign pages at addresses it has set aside (Linux: ballooned pages). Slot
`s` has host address `balloon + s * 4096`; `page_table[s]` is where its bytes are reached.
"""

from typing import Final, NamedTuple

import numpy as np

from backend import steps
from backend.persistent_grants import NODE, TREE, new_tree
from backend.slots import REQUEST, SEGMENT
from backend.store_jobs import IOVEC, JOB, Jobs
from backend.store_queue import STORE_QUEUE, StoreQueue, no_queue
from common import ring
from common.abi import (
    BLKIF_MAX_PERSISTENT_GRANTS,
    BLKIF_MAX_SEGMENTS_PER_REQUEST,
    GNTTAB_COPY,
    GNTTAB_MAP_GRANT_REF,
    GNTTAB_UNMAP_GRANT_REF,
    XEN_PAGE_SIZE,
)
from common.arena import Arena
from common.counters import BACKEND_COUNTERS
from common.event_channel import EVENT_WORDS, EventWords
from common.hypercall_gate import GATE, Gate
from common.ring import RING_HALF, RSP, SLOT_QWORDS
from common.rows import Layout
from common.spinning import SPIN
from common.steps import STEP, TURN_WORDS

# Why a ring is broken (BACK.broken); the texts go into the log and xenstore's error node.
BROKEN_RING: Final = 1
BROKEN_REASONS: Final = {
    BROKEN_RING: "the frontend produced more requests than the ring holds",
}

# How the store is reached (BACK.store_door).
MEMORY: Final = 0  # copied from and to
CALLS: Final = 1  # the driver calls it
NOTHING: Final = 2  # a null store: all is done, and nothing moves
QUEUE: Final = 3  # through two rings in memory (`backend/store_queue.py`)

BACK: Final = np.dtype(
    [
        ("balloon", "<u8"),  # host address of slot 0
        ("store", "<u8"),  # MEMORY: address of the store's first byte
        ("nr_sectors", "<u8"),
        ("remote_domid", "<u4"),
        ("cpu", "<u4"),  # the worker CPU its vCPU is pinned to
        ("persistent", "<u4"),
        ("read_only", "<u4"),
        ("features", "<u4"),  # what is served besides reads and writes: bits by kind
        ("sector_mask", "<u4"),  # of the store's own sectors: 0, or 7 where they have 4096 bytes
        ("gather_max", "<u4"),  # requests taken together: 1, or the whole ring (batching)
        ("waiting", "<u4"),  # requests that have been seen, and are still to be taken
        ("gathered", "<u4"),  # slots of the group
        ("vacant", "<u4"),  # slots that are free
        ("started", "<u4"),  # slots whose job is to be handed to the store
        ("at_store", "<u4"),  # slots that have been started, and are not finished
        ("held", "<u4"),  # slots that wait for a barrier, or are one that waits for others
        ("held_first", "<u4"),
        ("barrier", "<u4"),  # one is at the store
        ("finished", "<u4"),  # slots that the store has finished
        ("picked_up", "<u4"),  # of these: those that have been taken into a group
        ("request", "<u4"),  # of the group: the one that is being moved or answered
        ("at", "<u4"),  # its segment
        ("moved", "<u8"),  # its sectors that have been moved
        ("answers", "<u8"),  # jobs that the store has answered
        ("closing", "<u4"),  # no more requests
        ("map_ops", "<u4"),
        ("unmap_ops", "<u4"),
        ("copy_ops", "<u4"),
        ("copies", "<u4"),  # served by grant copy: nothing is mapped
        ("bounce_frame", "<u8"),  # then: dom0's own frame for the first segment of slot 0
        ("free_slots", "<u4"),
        ("broken", "<u4"),
        ("served", "<u8"),  # requests taken and answered, when it last fell asleep
        ("fruitless", "<u4"),  # times that it has fallen asleep again without a request
        # The hypercall that is being made: which of the listed operations it takes.
        ("call_cmd", "<u4"),  # GNTTABOP_*
        ("call_ops", "<u8"),  # address of what is listed
        ("call_op_bytes", "<u4"),
        ("call_listed", "<u4"),  # operations
        ("call_max", "<u4"),  # operations that one call takes
        ("call_first", "<u4"),
        ("call_count", "<u4"),
        ("posted", "<u4"),  # it is in the gate, and is to be waited for
        # The doors (`backend/doors.py`).
        ("store_door", "<u4"),
        ("map_door", "<u4"),
        ("ram_fd", "<i4"),  # REAL: the frontend's RAM
        ("ram", "<u8"),  # TABLE: address of the frontend's frame 0
        ("hole", "<u8"),  # TABLE: where an empty slot leads
        ("notes_wakes", "<u4"),  # the driver is not returned to for a WAKE: it reads WOKE
    ],
    align=True,
)


class Blkback(NamedTuple):
    """words, qwords: the ring's page as u32 and u64; half: RING_HALF; turn: i64 (TURN_WORDS), its
    place and what it has done; next: the table; back: BACK; copy: u64 (14,), the one copy of the
    request being parsed; requests: REQUEST (nr_ents), segments: SEGMENT (nr_ents, 11), a row for
    each slot; vacant, group, started, held, finished: u32 (nr_ents), numbers of slots; jobs,
    iovecs, answered, statuses: what a store without memory is asked, and says
    (`backend/store_jobs.py`); queue: what takes it there; map_ops, unmap_ops, copy_ops: the
    hypercalls' own structs (nr_ents * 11); op_segments: i32, the segment each map
    or copy op is for; slots: u32, the free host-address slots, a stack; page_table: u64 by slot;
    accessed: u64, four words a maptrack handle, the CPUs that touched it; tree, nodes: the
    persistent grants; counters: BACKEND_COUNTERS; events: both ends' words; spin: SPIN; gate: its
    vCPU's, or `no_gate()`.
    """

    words: np.ndarray
    qwords: np.ndarray
    half: np.ndarray
    turn: np.ndarray
    next: np.ndarray
    back: np.ndarray
    copy: np.ndarray
    requests: np.ndarray
    segments: np.ndarray
    vacant: np.ndarray
    group: np.ndarray
    started: np.ndarray
    held: np.ndarray
    finished: np.ndarray
    jobs: np.ndarray
    iovecs: np.ndarray
    answered: np.ndarray
    statuses: np.ndarray
    queue: StoreQueue
    map_ops: np.ndarray
    unmap_ops: np.ndarray
    copy_ops: np.ndarray
    op_segments: np.ndarray
    slots: np.ndarray
    page_table: np.ndarray
    accessed: np.ndarray
    tree: np.ndarray
    nodes: np.ndarray
    counters: np.ndarray
    events: EventWords
    spin: np.ndarray
    gate: Gate


BLKBACK: Final = Layout(
    Blkback,
    words=np.uint32,
    qwords=np.uint64,
    half=RING_HALF,
    turn=np.int64,
    next=np.uint16,
    back=BACK,
    copy=np.uint64,
    requests=REQUEST,
    segments=(SEGMENT, 2),
    vacant=np.uint32,
    group=np.uint32,
    started=np.uint32,
    held=np.uint32,
    finished=np.uint32,
    jobs=JOB,
    iovecs=(IOVEC, 2),
    answered=np.uint32,
    statuses=np.int32,
    queue=STORE_QUEUE,
    map_ops=GNTTAB_MAP_GRANT_REF,
    unmap_ops=GNTTAB_UNMAP_GRANT_REF,
    copy_ops=GNTTAB_COPY,
    op_segments=np.int32,
    slots=np.uint32,
    page_table=np.uint64,
    accessed=np.uint64,
    tree=TREE,
    nodes=NODE,
    counters=BACKEND_COUNTERS,
    events=EVENT_WORDS,
    spin=SPIN,
    gate=GATE,
)


def slots_needed(nr_ents: int, max_persistent_grants: int) -> int:
    """Host-address slots of one ring: every kept page, and every segment of a full ring besides."""
    return max_persistent_grants + nr_ents * BLKIF_MAX_SEGMENTS_PER_REQUEST


def new_blkback(
    arena: Arena,
    ring_page: np.ndarray,
    page_table: np.ndarray,
    accessed: np.ndarray,
    counters: np.ndarray,
    events: EventWords,
    spin: np.ndarray,
    gate: Gate,
    *,
    persistent: bool = True,
    max_persistent_grants: int = BLKIF_MAX_PERSISTENT_GRANTS,
    gather_max: int = 1,
    bounce_frame: int | None = None,
    queue: StoreQueue | None = None,
    **fields: int,
) -> Blkback:
    """A worker's state for a connected frontend.

    ring_page: u8, the mapped ring; page_table: u64, a free slot for each element; counters:
    BACKEND_COUNTERS (1,); gather_max: 1 for batching `request`, or the ring's size for `drain`;
    bounce_frame: the first of dom0's own frames for segments, to serve by grant copy; queue: the
    store's, if it has one; fields: the rest of BACK.
    """
    assert not (bounce_frame is not None and persistent), "what is copied cannot be kept mapped"
    nr_ents = ring.nr_ents_of(ring_page)
    words, nr_segments = ring_page.view(np.uint32), nr_ents * BLKIF_MAX_SEGMENTS_PER_REQUEST
    back = arena.array(1, BACK)
    back["balloon"], back["persistent"] = XEN_PAGE_SIZE, persistent
    back["free_slots"] = len(page_table)
    back["gather_max"], back["vacant"] = min(gather_max, nr_ents), nr_ents
    back["copies"], back["bounce_frame"] = bounce_frame is not None, bounce_frame or 0
    for field, value in fields.items():
        back[field] = value
    tree, nodes = new_tree(arena, max_persistent_grants if persistent else 0)
    return Blkback(
        words,
        ring_page.view(np.uint64),
        ring.attach_half(arena, words, nr_ents, RSP),
        arena.array(TURN_WORDS, np.int64),
        steps.NEXT,
        back,
        arena.array(SLOT_QWORDS, np.uint64),
        *_new_slots(arena, nr_ents),
        *_new_jobs(arena, nr_ents),
        queue or no_queue(),
        arena.array(nr_segments, GNTTAB_MAP_GRANT_REF),
        arena.array(nr_segments, GNTTAB_UNMAP_GRANT_REF),
        arena.array(nr_segments, GNTTAB_COPY),
        arena.array(nr_segments, np.int32),
        _stack_of(arena, len(page_table)),
        page_table,
        accessed,
        tree,
        nodes,
        counters,
        events,
        spin,
        gate,
    )


Seven = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def _new_slots(arena: Arena, nr_ents: int) -> Seven:
    """requests to finished: all are vacant."""
    requests = arena.array(nr_ents, REQUEST)
    segments = arena.array((nr_ents, BLKIF_MAX_SEGMENTS_PER_REQUEST), SEGMENT)
    group, started, held, finished = (arena.array(nr_ents, np.uint32) for _ in range(4))
    return requests, segments, _stack_of(arena, nr_ents), group, started, held, finished


def _stack_of(arena: Arena, count: int) -> np.ndarray:
    """The numbers up to `count`, the first on top."""
    stack = arena.array(count, np.uint32)
    stack[:] = np.arange(count)[::-1]
    return stack


def _new_jobs(arena: Arena, nr_ents: int) -> Jobs:
    return Jobs(
        arena.array(nr_ents, JOB),
        arena.array((nr_ents, BLKIF_MAX_SEGMENTS_PER_REQUEST), IOVEC),
        arena.array(nr_ents, np.uint32),
        arena.array(nr_ents, np.int32),
    )


def jobs_of(dev: Blkback) -> Jobs:
    """What its store is asked, and says."""
    return Jobs(dev.jobs, dev.iovecs, dev.answered, dev.statuses)


def begin_close(dev: Blkback) -> None:
    """Between two groups: take no more requests, answer what is at the store, unmap what is kept,
    and then be DONE.
    """
    assert dev.turn[STEP] in (steps.CLEAR, steps.LOOK)
    dev.turn[STEP] = steps.LOOK
    dev.back["closing"] = 1
