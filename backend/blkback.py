"""blkback's core, its state: one ring of one virtual disk, as arrays that compiled phases take.

Owns: what a ring's worker knows. The phases are in `backend/phases.py`, the tree of kept mappings
in `backend/persistent_grants.py`.
Never knows: time, processes, sockets, how a page gets mapped. A driver asks the hypervisor and
maps: `backend/ring_thread.py` with real `mmap`s, a simulator or a test in plain memory.

Host addresses: dom0 maps foreign pages at addresses it has set aside (Linux: ballooned pages). Slot
`s` has host address `balloon + s * 4096`; `page_table[s]` is where its bytes are reached.
"""

from typing import Final, NamedTuple

import numpy as np

from backend.persistent_grants import new_tree
from common import ring
from common.abi import (
    BLKIF_MAX_PERSISTENT_GRANTS,
    BLKIF_MAX_SEGMENTS_PER_REQUEST,
    GNTTAB_COPY,
    GNTTAB_MAP_GRANT_REF,
    GNTTAB_UNMAP_GRANT_REF,
    XEN_PAGE_SIZE,
)
from common.counters import BACKEND_COUNTERS
from common.ring import RSP, SLOT_QWORDS

# Why a ring is broken (BACK.broken); the texts go into the log and xenstore's error node.
BROKEN_RING: Final = 1
BROKEN_REASONS: Final = {
    BROKEN_RING: "the frontend produced more requests than the ring holds",
}

# What happens to a segment's page when its request is done.
FAILED: Final = 0  # not mapped: the hypervisor refused the grant
MISSING: Final = 1  # not mapped yet
KEPT: Final = 2  # in the tree, marked in flight
ONCE: Final = 3  # mapped for this request only

BACK: Final = np.dtype(
    [
        ("balloon", "<u8"),  # host address of slot 0
        ("store", "<u8"),  # address of the store's first byte; 0: its callbacks are used
        ("nr_sectors", "<u8"),
        ("remote_domid", "<u4"),
        ("cpu", "<u4"),  # the worker CPU its vCPU is pinned to
        ("persistent", "<u4"),
        ("read_only", "<u4"),
        ("gather_max", "<u4"),  # requests taken together: 1, or the whole ring (batching)
        ("gathered", "<u4"),
        ("map_ops", "<u4"),
        ("unmap_ops", "<u4"),
        ("copy_ops", "<u4"),
        ("copies", "<u4"),  # served by grant copy: nothing is mapped
        ("bounce_frame", "<u8"),  # then: dom0's own frame that slot 0 is
        ("free_slots", "<u4"),
        ("broken", "<u4"),
    ],
    align=True,
)

REQUEST: Final = np.dtype(
    [
        ("id", "<u8"),
        ("sector", "<u8"),
        ("operation", "<u4"),
        ("nr_segments", "<u4"),
        ("status", "<i4"),  # BLKIF_RSP_*, or NOT_DONE
        ("pad", "<u4"),
    ]
)

SEGMENT: Final = np.dtype(
    [
        ("gref", "<u4"),
        ("slot", "<i4"),
        ("handle", "<u4"),
        ("node", "<i4"),
        ("kind", "<u4"),
        ("first_sect", "<u2"),
        ("nr_sectors", "<u2"),
    ]
)


class Blkback(NamedTuple):
    """words, qwords: the ring's page as u32 and u64; half: RING_HALF; back: BACK; copy: u64 (14,),
    the one copy of the request being parsed; requests: REQUEST (nr_ents); segments: SEGMENT
    (nr_ents, 11); map_ops, unmap_ops, copy_ops: the hypercalls' own structs (nr_ents * 11);
    op_segments: i32, the segment each map or copy op is for; slots: u32, the free host-address
    slots, a stack; page_table: u64 by slot; accessed: u64, four words a maptrack handle, the CPUs
    that touched it; tree, nodes: the persistent grants; counters: BACKEND_COUNTERS.
    """

    words: np.ndarray
    qwords: np.ndarray
    half: np.ndarray
    back: np.ndarray
    copy: np.ndarray
    requests: np.ndarray
    segments: np.ndarray
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


def slots_needed(nr_ents: int, max_persistent_grants: int) -> int:
    """Host-address slots of one ring: every kept page, and every segment of a full ring besides."""
    return max_persistent_grants + nr_ents * BLKIF_MAX_SEGMENTS_PER_REQUEST


def new_blkback(
    ring_page: np.ndarray,
    page_table: np.ndarray,
    accessed: np.ndarray,
    counters: np.ndarray | None = None,
    *,
    remote_domid: int,
    nr_sectors: int,
    store_address: int = 0,
    balloon: int = XEN_PAGE_SIZE,
    persistent: bool = True,
    max_persistent_grants: int = BLKIF_MAX_PERSISTENT_GRANTS,
    gather_max: int = 1,
    cpu: int = 0,
    read_only: bool = False,
    bounce_frame: int | None = None,
) -> Blkback:
    """A worker's state on the mapped `ring_page` (u8), as the frontend left it.

    `page_table` (u64) has one entry for each host-address slot, `slots_needed` of them. With a
    `bounce_frame` requests are served by grant copy, and the slots are dom0's frames from there on.
    """
    assert bounce_frame is None or not persistent, "what is copied cannot be kept mapped"
    nr_ents = 1 << (((len(ring_page) - ring.HEADER_QWORDS * 8) // 112).bit_length() - 1)
    words = ring_page.view(np.uint32)
    nr_segments = nr_ents * BLKIF_MAX_SEGMENTS_PER_REQUEST
    back = np.zeros(1, BACK)
    back["balloon"], back["store"], back["nr_sectors"] = balloon, store_address, nr_sectors
    back["remote_domid"], back["cpu"] = remote_domid, cpu
    back["persistent"], back["read_only"] = persistent, read_only
    back["gather_max"] = min(gather_max, nr_ents)
    back["free_slots"] = len(page_table)
    back["copies"], back["bounce_frame"] = bounce_frame is not None, bounce_frame or 0
    tree, nodes = new_tree(max_persistent_grants if persistent else 0)
    return Blkback(
        words,
        ring_page.view(np.uint64),
        ring.attach_half(words, nr_ents, RSP),
        back,
        np.zeros(SLOT_QWORDS, np.uint64),
        np.zeros(nr_ents, REQUEST),
        np.zeros((nr_ents, BLKIF_MAX_SEGMENTS_PER_REQUEST), SEGMENT),
        np.zeros(nr_segments, GNTTAB_MAP_GRANT_REF),
        np.zeros(nr_segments, GNTTAB_UNMAP_GRANT_REF),
        np.zeros(nr_segments, GNTTAB_COPY),
        np.zeros(nr_segments, np.int32),
        np.arange(len(page_table), dtype=np.uint32)[::-1].copy(),
        page_table,
        accessed,
        tree,
        nodes,
        np.zeros(1, BACKEND_COUNTERS) if counters is None else counters,
    )
