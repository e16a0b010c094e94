"""GNTTABOP_copy: the hypervisor copies between two pages, so that nobody maps anything.

Owns: the checks of one copy. Rules: a page is named by a gref of any domain that has granted it to
the caller, or by a frame of the caller's own (domid must then be DOMID_SELF). Both ends are pinned
before a byte moves, so the frame that was checked is the frame that is copied (XSA-500), and both
are released after. Nothing is flushed: nothing was mapped.
"""

from typing import Any, Final, NamedTuple

import numpy as np

from common.abi import (
    DOMID_SELF,
    GNTCOPY_DEST_GREF,
    GNTCOPY_SOURCE_GREF,
    GNTMAP_HOST_MAP,
    GNTMAP_READONLY,
    GNTST_BAD_COPY_ARG,
    GNTST_BAD_DOMAIN,
    GNTST_BAD_PAGE,
    GNTST_OKAY,
    GNTST_PERMISSION_DENIED,
    XEN_PAGE_SIZE,
)
from common.compiled import kernel
from common.copying import copy_bytes
from hypervisor.grant_table import GrantTable, pin, unpin

READ: Final = GNTMAP_HOST_MAP | GNTMAP_READONLY
WRITE: Final = GNTMAP_HOST_MAP


class End(NamedTuple):
    """The domain that one end's domid names: its grant table, its RAM (u8).

    found: there is such a domain; if not, the other two are anybody's and are not looked at.
    """

    grants: GrantTable
    ram: np.ndarray
    found: bool


@kernel
def copy_run(caller: int, source: End, dest: End, ops: np.ndarray) -> np.int64:
    """Do the copies `ops` (GNTTAB_COPY, all between these two domains) for domain `caller`.

    Sets each status. Returns how many were done.
    """
    copied = np.int64(0)
    for index in range(len(ops)):
        status = _copy_one(caller, source, dest, ops[index])
        ops[index].status = np.int16(status)
        copied += status == GNTST_OKAY
    return copied


@kernel
def _copy_one(caller: int, source: End, dest: End, op: Any) -> np.int64:
    length, flags = np.int64(op.len), np.int64(op.flags)
    source_offset, dest_offset = np.int64(op.source.offset), np.int64(op.dest.offset)
    if max(source_offset, dest_offset) + length > XEN_PAGE_SIZE:
        return np.int64(GNTST_BAD_COPY_ARG)
    source_frame = _acquire(caller, source, op.source, flags & GNTCOPY_SOURCE_GREF, READ)
    if source_frame < 0:
        return source_frame
    status = _acquire(caller, dest, op.dest, flags & GNTCOPY_DEST_GREF, WRITE)
    if status >= 0:
        source_at = _address(source, source_frame) + source_offset
        dest_at = _address(dest, status) + dest_offset
        status = np.int64(GNTST_OKAY)
        if abs(source_at - dest_at) >= length:
            copy_bytes(dest_at, source_at, length)
        else:
            status = np.int64(GNTST_BAD_COPY_ARG)  # onto itself: memcpy's undefined case
        if flags & GNTCOPY_DEST_GREF:
            unpin(dest.grants, np.int64(op.dest.ref), WRITE)
    if flags & GNTCOPY_SOURCE_GREF:
        unpin(source.grants, np.int64(op.source.ref), READ)
    return status


@kernel
def _acquire(caller: int, end: End, named: Any, by_gref: int, access: int) -> np.int64:
    """The frame that `named` (GNTTAB_COPY_PTR) is, pinned if it is granted; or a GNTST error."""
    if by_gref:
        if not end.found:
            return np.int64(GNTST_BAD_DOMAIN)
        status = pin(end.grants, caller, np.int64(named.ref), access)
        if status != GNTST_OKAY:
            return np.int64(status)
        return np.int64(end.grants.active[np.int64(named.ref)].frame)
    if named.domid != DOMID_SELF:
        return np.int64(GNTST_PERMISSION_DENIED)
    if named.gmfn >= np.uint64(end.grants.table[0].nr_ram_frames):
        return np.int64(GNTST_BAD_PAGE)
    return np.int64(named.gmfn)


@kernel
def _address(end: End, frame: int) -> np.int64:
    return np.int64(end.ram.ctypes.data) + frame * XEN_PAGE_SIZE
