"""The guest's own side of its grant table: which entries are free, granting, ending access.
All disks of a guest have the one table.

Owns: the free list of grefs and the entries in the frames shared with the hypervisor.
Rules (Xen's `grant_table.h`): an entry's frame is written before its flags permit access; access
ends only by a compare-and-swap that finds neither `reading` nor `writing` set, because those bits
are the hypervisor's and mean that the page is mapped.

An entry is two u32 words: flags | domid << 16, and frame.
"""

from typing import Final, NamedTuple

import numpy as np

from common.abi import (
    GNTTAB_NR_RESERVED_ENTRIES,
    GRANT_ENTRY_V1,
    GTF_INVALID,
    GTF_PERMIT_ACCESS,
    GTF_READING,
    GTF_READONLY,
    GTF_TYPE_MASK,
    GTF_WRITING,
)
from common.arena import Arena
from common.atomics import cmpxchg, load_acquire, store_release
from common.compiled import kernel
from common.rows import Layout

NO_GREF: Final = 0  # reserved, so never given out
END_ACCESS_TRIES: Final = 5  # only the hypervisor can race us, and only to set or clear two bits

GRANT_LIST: Final = np.dtype(
    [
        ("head", "<u4"),
        ("free", "<u4"),
        # Of all disks of the guest: `frontend/room.py`.
        ("in_flight", "<u4"),  # requests on their rings
        ("waiting", "<u4"),  # disks that wait for entries
        ("first", "<u4"),  # the one that is first, 0 for none
    ]
)


class Grants(NamedTuple):
    """`entries`: u32, two words an entry; `next`: u32, the free list; `list`: GRANT_LIST, one."""

    entries: np.ndarray
    next: np.ndarray
    list: np.ndarray


GRANTS: Final = Layout(Grants, entries=np.uint32, next=np.uint32, list=GRANT_LIST)


def new_grants(arena: Arena, frames: np.ndarray) -> Grants:
    """The entries of the grant-table `frames` (u8) that permit nothing are free, ascending from the
    reserved ones on. What is granted already stays so: its status bits must not be written over.
    """
    entries = frames.view(GRANT_ENTRY_V1)
    free = np.flatnonzero(entries["flags"] == GTF_INVALID)
    free = free[free >= GNTTAB_NR_RESERVED_ENTRIES]
    links = arena.array(len(entries), np.uint32)
    links[free[:-1]] = free[1:]
    head = arena.array(1, GRANT_LIST)
    head["head"] = free[0] if len(free) else NO_GREF
    head["free"] = len(free)
    return Grants(frames.view(np.uint32), links, head)


@kernel
def grant_access(grants: Grants, domid: int, frame: int, readonly: bool) -> np.int64:
    """Let `domid` map `frame`; returns the gref, or NO_GREF if the table is full."""
    gref = np.int64(grants.list[0].head)
    if gref == NO_GREF:
        return np.int64(NO_GREF)
    grants.list[0].head = grants.next[gref]
    grants.list[0].free -= np.uint32(1)
    flags = GTF_PERMIT_ACCESS | (GTF_READONLY if readonly else 0)
    store_release(grants.entries, 2 * gref + 1, np.uint32(frame))
    store_release(grants.entries, 2 * gref, np.uint32(flags | (domid << 16)))
    return gref


@kernel
def look_at_entry(grants: Grants, gref: int) -> np.int64:
    """The first word of an entry that was granted: flags and domid.

    Of access that has not been given, or has ended, it is an AssertionError: freed twice, a gref
    would be given out twice.
    """
    entry = np.int64(load_acquire(grants.entries, 2 * gref))
    assert entry & GTF_TYPE_MASK != GTF_INVALID, "access is ended that is not given"
    return entry


@kernel
def is_mapped(entry: int) -> bool:
    """Does the hypervisor say so of an entry?"""
    return entry & (GTF_READING | GTF_WRITING) != 0


@kernel
def swap_entry(grants: Grants, gref: int, entry: int) -> bool:
    """Take the grant back and free the gref, if it still is as `entry` was seen."""
    if cmpxchg(grants.entries, 2 * gref, np.uint32(entry), np.uint32(0)) != entry:
        return False
    grants.next[gref] = grants.list[0].head
    grants.list[0].head = np.uint32(gref)
    grants.list[0].free += np.uint32(1)
    return True


@kernel
def end_access(grants: Grants, gref: int) -> bool:
    """Take the grant back and free the gref; False, and nothing changed, while it is mapped.

    For cold paths: a request's grants are ended step by step (`frontend/steps.py`).
    """
    for _ in range(END_ACCESS_TRIES):
        entry = look_at_entry(grants, gref)
        if is_mapped(entry):
            return False
        if swap_entry(grants, gref, entry):
            return True
    return False
