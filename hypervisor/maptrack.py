"""A domain's maptrack: which foreign grants it has mapped, by the handle it unmaps them with.

Owns: the handles, as a free list, and what each stands for.
Rules: a handle is live while its flags hold a mapping; the last mapping to go frees it. An unmap
comes in two halves with the TLB flush between them (XSA-394 is what happens otherwise):
`begin_unmap` takes the mapping away from the handle, and only after the flush does the grant
table drop the pin, and the grant's owner may reuse the page.

Xen's entry is 16 bytes. Ours also keeps what Xen would read from the mapper's page table: the host
address and the frame.
"""

from typing import Any, Final, NamedTuple

import numpy as np

from common.abi import (
    GNTMAP_DEVICE_MAP,
    GNTMAP_HOST_MAP,
    GNTMAP_READONLY,
    GNTST_BAD_HANDLE,
    GNTST_BAD_VIRT_ADDR,
    GNTST_GENERAL_ERROR,
    GNTST_OKAY,
    XEN_PAGE_SIZE,
)
from common.compiled import kernel
from hypervisor.room import Carver

NO_HANDLE: Final = 0xFFFFFFFF
MAPPED: Final = GNTMAP_HOST_MAP | GNTMAP_DEVICE_MAP

MAPTRACK_ENTRY: Final = np.dtype(
    [
        ("host_addr", "<u8"),
        ("ref", "<u4"),
        ("frame", "<u4"),
        ("flags", "<u4"),  # GNTMAP_*; 0: free
        ("next", "<u4"),  # of a free entry: the next free one
        ("domid", "<u2"),  # whose grant it is
    ],
    align=True,
)

# `free`: first free handle; `used`: live handles.
MAPTRACK_LIST: Final = np.dtype([("free", "<u4"), ("used", "<u4")])

# What the first half of an unmap leaves for the second: which grant, and which mappings went.
UNMAPPED: Final = np.dtype(
    [("ref", "<u4"), ("handle", "<u4"), ("done", "<u4"), ("domid", "<u2")], align=True
)


class Maptrack(NamedTuple):
    """`entries`: MAPTRACK_ENTRY, one a handle; `list`: MAPTRACK_LIST, one."""

    entries: np.ndarray
    list: np.ndarray


def new_maptrack(memory: Carver, nr_handles: int) -> Maptrack:
    """All of `nr_handles` handles free, the lowest to be given out first."""
    entries = memory.array(nr_handles, MAPTRACK_ENTRY)
    entries["next"] = np.arange(1, nr_handles + 1)
    entries["next"][-1:] = NO_HANDLE
    head = memory.array(1, MAPTRACK_LIST)
    head["free"] = 0 if nr_handles else NO_HANDLE
    return Maptrack(entries, head)


@kernel
def take_handle(track: Maptrack) -> np.int64:
    """A free handle, its entry still to be filled, or NO_HANDLE."""
    handle = np.int64(track.list[0].free)
    if handle != NO_HANDLE:
        track.list[0].free = track.entries[handle].next
        track.list[0].used += np.uint32(1)
    return handle


@kernel
def free_handle(track: Maptrack, handle: int) -> None:
    """The last mapping of `handle` is gone."""
    track.entries[handle].flags = np.uint32(0)
    track.entries[handle].next = track.list[0].free
    track.list[0].free = np.uint32(handle)
    track.list[0].used -= np.uint32(1)


@kernel
def begin_unmap(track: Maptrack, ops: np.ndarray, unmapped: np.ndarray) -> np.int64:
    """First half of unmapping `ops` (GNTTAB_UNMAP_GRANT_REF, at most one flush's worth).

    Sets each op's status; `unmapped` (UNMAPPED, as long) says what `end_unmap` is to finish.
    Returns how many ops took a mapping away.
    """
    count = np.int64(0)
    for index in range(len(ops)):
        unmapped[index].done = np.uint32(0)
        ops[index].status = np.int16(_begin_one(track, ops[index], unmapped[index]))
        count += unmapped[index].done != 0
    return count


@kernel
def _begin_one(track: Maptrack, op: Any, unmapped: Any) -> int:
    handle = np.int64(op.handle)
    if handle >= len(track.entries) or track.entries[handle].flags == 0:
        return GNTST_BAD_HANDLE
    entry = track.entries[handle]
    bus_addr = np.uint64(entry.frame) * np.uint64(XEN_PAGE_SIZE)
    if op.dev_bus_addr not in (np.uint64(0), bus_addr):
        return GNTST_GENERAL_ERROR
    gone = np.uint32(0)
    if op.host_addr != 0 and entry.flags & GNTMAP_HOST_MAP:
        if op.host_addr != entry.host_addr:
            return GNTST_BAD_VIRT_ADDR
        gone |= np.uint32(GNTMAP_HOST_MAP)
    if op.dev_bus_addr != 0 and entry.flags & GNTMAP_DEVICE_MAP:
        gone |= np.uint32(GNTMAP_DEVICE_MAP)
    unmapped.handle, unmapped.ref, unmapped.domid = op.handle, entry.ref, entry.domid
    if gone:
        unmapped.done = gone | (entry.flags & np.uint32(GNTMAP_READONLY))
        entry.flags &= ~gone
    if not entry.flags & np.uint32(MAPPED):
        free_handle(track, handle)
    return GNTST_OKAY
