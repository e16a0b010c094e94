"""A domain's grant table as the hypervisor sees it: entries shared with the guest, and their pins.

Owns: the status-bit protocol, and for each gref who has it mapped how often.
Rules (Xen's `grant_table.h` and `common/grant_table.c`)
1. The guest may change an entry at any moment. It is taken by one compare-and-swap of flags and
   domid together, which sets `reading` (and `writing`); a guest that keeps changing it gets an
   error after a few tries, not our time.
2. The frame is read once, when the first pin is set, and is remembered: later mappings of the same
   gref see the same page whatever the guest has written since.
3. The status bits go when the last pin (the last writable one, for `writing`) goes, and only then
   can the guest end access.
4. An unmap's pins drop after the flush (`hypervisor/maptrack.py`).
Never knows: who calls, or how many CPUs there are.

The pin is four 8-bit counters, as Xen's: device read, device write, host read, host write.
"""

from typing import Any, Final, NamedTuple

import numpy as np

from common.abi import (
    GNTMAP_DEVICE_MAP,
    GNTMAP_HOST_MAP,
    GNTMAP_READONLY,
    GNTST_BAD_GNTREF,
    GNTST_BAD_PAGE,
    GNTST_BAD_VIRT_ADDR,
    GNTST_GENERAL_ERROR,
    GNTST_NO_DEVICE_SPACE,
    GNTST_OKAY,
    GTF_PERMIT_ACCESS,
    GTF_READING,
    GTF_READONLY,
    GTF_TYPE_MASK,
    GTF_WRITING,
    XEN_PAGE_SIZE,
)
from common.atomics import cmpxchg, fetch_and, load_acquire
from common.compiled import kernel
from hypervisor.maptrack import NO_HANDLE, Maptrack, free_handle, take_handle
from hypervisor.room import Carver

STATUS_TRIES: Final = 5

PIN_HOST_WRITE: Final = 1
PIN_HOST_READ: Final = 1 << 8
PIN_DEVICE_WRITE: Final = 1 << 16
PIN_DEVICE_READ: Final = 1 << 24
PIN_WRITERS: Final = 0x00FF00FF
PIN_NEAR_OVERFLOW: Final = 0x80808080  # Xen's guard: a counter past half its range takes no more

ACTIVE: Final = np.dtype([("pin", "<u4"), ("frame", "<u4"), ("domid", "<u4")])

TABLE: Final = np.dtype([("domid", "<u4"), ("nr_ram_frames", "<u4"), ("mapped", "<u4")])


class GrantTable(NamedTuple):
    """`entries`: u32, two words an entry, shared with the guest; `active`: ACTIVE, one a gref;
    `table`: TABLE, one. `mapped` counts the mappings, pin by pin, that stand now.
    """

    entries: np.ndarray
    active: np.ndarray
    table: np.ndarray


def new_grant_table(
    memory: Carver, domid: int, frames: np.ndarray, nr_ram_frames: int
) -> GrantTable:
    """The table of `domid` in its grant-table `frames` (u8, whole frames): nothing is pinned."""
    entries = frames.view(np.uint32)
    table = memory.array(1, TABLE)
    table["domid"], table["nr_ram_frames"] = domid, nr_ram_frames
    return GrantTable(entries, memory.array(len(entries) // 2, ACTIVE), table)


@kernel
def map_grants(table: GrantTable, track: Maptrack, mapper: int, ops: np.ndarray) -> np.int64:
    """Map each of `ops` (GNTTAB_MAP_GRANT_REF, all of this table's domain) for domain `mapper`.

    Sets status, and for what is mapped handle and dev_bus_addr. Returns how many were.
    """
    mapped = np.int64(0)
    for index in range(len(ops)):
        status = _map_one(table, track, mapper, ops[index])
        ops[index].status = np.int16(status)
        mapped += status == GNTST_OKAY
    return mapped


@kernel
def _map_one(table: GrantTable, track: Maptrack, mapper: int, op: Any) -> int:
    flags = np.int64(op.flags)
    if not flags & (GNTMAP_HOST_MAP | GNTMAP_DEVICE_MAP):
        return GNTST_BAD_GNTREF  # as Xen says it
    if flags & GNTMAP_HOST_MAP and (op.host_addr == 0 or op.host_addr % XEN_PAGE_SIZE):
        return GNTST_BAD_VIRT_ADDR
    handle = take_handle(track)
    if handle == NO_HANDLE:
        return GNTST_NO_DEVICE_SPACE
    status = pin(table, mapper, np.int64(op.ref), flags)
    if status != GNTST_OKAY:
        free_handle(track, handle)
        return status
    active = table.active[np.int64(op.ref)]
    if flags & GNTMAP_DEVICE_MAP and active.frame == 0:
        unpin(table, np.int64(op.ref), flags)
        free_handle(track, handle)
        return GNTST_BAD_PAGE  # its bus address would be 0, which an unmap takes for none
    entry = track.entries[handle]
    entry.host_addr, entry.ref, entry.frame = op.host_addr, op.ref, active.frame
    entry.domid = np.uint16(table.table[0].domid)
    entry.flags = np.uint32(flags & (GNTMAP_HOST_MAP | GNTMAP_DEVICE_MAP | GNTMAP_READONLY))
    op.handle = np.uint32(handle)
    op.dev_bus_addr = np.uint64(active.frame) * np.uint64(XEN_PAGE_SIZE)
    return GNTST_OKAY


@kernel
def pin(table: GrantTable, mapper: int, gref: int, flags: int) -> int:
    """Pin `gref` for the mappings in `flags` (GNTMAP_*), taking the entry; returns a GNTST."""
    if gref >= len(table.active):
        return GNTST_BAD_GNTREF
    active = table.active[gref]
    readonly = flags & GNTMAP_READONLY
    if active.pin and (active.domid != mapper or active.pin & PIN_NEAR_OVERFLOW):
        return GNTST_GENERAL_ERROR
    if active.pin == 0 or (not readonly and not active.pin & PIN_WRITERS):
        status = _set_status(table, gref, mapper, readonly != 0)
        if status != GNTST_OKAY:
            return status
        if active.pin == 0:
            frame = load_acquire(table.entries, 2 * gref + 1)
            if frame >= table.table[0].nr_ram_frames:
                _clear_status(table, gref, GTF_READING | GTF_WRITING)
                return GNTST_BAD_PAGE
            active.frame, active.domid = np.uint32(frame), np.uint32(mapper)
    active.pin = np.uint32(np.int64(active.pin) + _pins(flags))
    table.table[0].mapped += np.uint32(_mappings(flags))
    return GNTST_OKAY


@kernel
def unpin(table: GrantTable, gref: int, flags: int) -> None:
    """Drop the pins of the mappings in `flags`, and the status bits nobody needs any more."""
    active = table.active[gref]
    assert active.pin >= _pins(flags), "unpin of what was not pinned"
    active.pin = np.uint32(np.int64(active.pin) - _pins(flags))
    table.table[0].mapped -= np.uint32(_mappings(flags))
    clear = 0
    if active.pin & PIN_WRITERS == 0 and not flags & GNTMAP_READONLY:
        clear |= GTF_WRITING
    if active.pin == 0:
        clear |= GTF_READING
    if clear:
        _clear_status(table, gref, clear)


@kernel
def end_unmap(table: GrantTable, unmapped: np.ndarray) -> np.int64:
    """Second half of an unmap: drop the pins of those of `unmapped` that are this domain's."""
    ended = np.int64(0)
    for index in range(len(unmapped)):
        if unmapped[index].done and unmapped[index].domid == table.table[0].domid:
            unpin(table, np.int64(unmapped[index].ref), np.int64(unmapped[index].done))
            ended += 1
    return ended


@kernel
def _pins(flags: int) -> np.int64:
    readonly = flags & GNTMAP_READONLY
    pins = np.int64(0)
    if flags & GNTMAP_HOST_MAP:
        pins += PIN_HOST_READ if readonly else PIN_HOST_WRITE
    if flags & GNTMAP_DEVICE_MAP:
        pins += PIN_DEVICE_READ if readonly else PIN_DEVICE_WRITE
    return pins


@kernel
def _mappings(flags: int) -> np.int64:
    host, device = (flags & GNTMAP_HOST_MAP) != 0, (flags & GNTMAP_DEVICE_MAP) != 0
    return np.int64(host) + np.int64(device)


@kernel
def _set_status(table: GrantTable, gref: int, mapper: int, readonly: bool) -> int:
    """Take the shared entry for `mapper`, or say what is wrong with it."""
    for _ in range(STATUS_TRIES):
        entry = np.int64(load_acquire(table.entries, 2 * gref))
        if entry & GTF_TYPE_MASK != GTF_PERMIT_ACCESS or entry >> 16 != mapper:
            return GNTST_GENERAL_ERROR
        taken = entry | GTF_READING
        if not readonly:
            if entry & GTF_READONLY:
                return GNTST_GENERAL_ERROR
            taken |= GTF_WRITING
        if cmpxchg(table.entries, 2 * gref, np.uint32(entry), np.uint32(taken)) == entry:
            return GNTST_OKAY
    return GNTST_GENERAL_ERROR


@kernel
def _clear_status(table: GrantTable, gref: int, bits: int) -> None:
    fetch_and(table.entries, 2 * gref, np.uint32(0xFFFFFFFF & ~bits))
