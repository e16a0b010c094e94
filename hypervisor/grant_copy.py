"""GNTTABOP_copy: the hypervisor copies between two pages, so that nobody maps anything.

Owns: the checks of one copy. Rules: a page is named by a gref of any domain that has granted it to
the caller, or by a frame of the caller's own (domid must then be DOMID_SELF). Both ends are pinned
before a byte moves, so the frame that was checked is the frame that is copied (XSA-500), and both
are released after. Nothing is flushed: nothing was mapped.
"""

from typing import Final, NamedTuple

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
from common.copying import address_of, copy_bytes
from hypervisor.domains import Domain, Domains
from hypervisor.grant_table import pin, unpin

NO_GREF: Final = -1


class _Page(NamedTuple):
    """One end of a copy: the frame's bytes, and the pin to release (NO_GREF: none)."""

    owner: Domain
    frame: int
    gref: int
    flags: int

    def address(self) -> int:
        return address_of(self.owner.ram) + self.frame * XEN_PAGE_SIZE

    def release(self) -> None:
        if self.gref != NO_GREF:
            unpin(self.owner.grants, self.gref, self.flags)


def copy_one(domains: Domains, caller: Domain, op: np.void) -> int:
    """Do one copy `op` (GNTTAB_COPY) for `caller`; returns its GNTST status."""
    length = int(op["len"])
    for end in ("source", "dest"):
        if int(op[end]["offset"]) + length > XEN_PAGE_SIZE:
            return GNTST_BAD_COPY_ARG
    flags = int(op["flags"])
    source = _acquire(domains, caller, op["source"], bool(flags & GNTCOPY_SOURCE_GREF), True)
    if isinstance(source, int):
        return source
    dest = _acquire(domains, caller, op["dest"], bool(flags & GNTCOPY_DEST_GREF), False)
    if isinstance(dest, int):
        source.release()
        return dest
    source_at = source.address() + int(op["source"]["offset"])
    dest_at = dest.address() + int(op["dest"]["offset"])
    if abs(source_at - dest_at) >= length:
        copy_bytes(dest_at, source_at, length)
        status = GNTST_OKAY
    else:
        status = GNTST_BAD_COPY_ARG  # one page onto itself: memcpy's undefined case
    dest.release()
    source.release()
    return status


def _acquire(
    domains: Domains, caller: Domain, end: np.void, by_gref: bool, readonly: bool
) -> _Page | int:
    """One end, pinned if it is granted; or the GNTST error."""
    domid = int(end["domid"])
    if not by_gref:
        if domid != DOMID_SELF:
            return GNTST_PERMISSION_DENIED
        frame = int(end["gmfn"])
        if frame >= caller.nr_ram_frames:
            return GNTST_BAD_PAGE
        return _Page(caller, frame, NO_GREF, 0)
    owner = domains.find(caller.domid if domid == DOMID_SELF else domid)
    if owner is None:
        return GNTST_BAD_DOMAIN
    gref, flags = int(end["ref"]), GNTMAP_HOST_MAP | (GNTMAP_READONLY if readonly else 0)
    status = int(pin(owner.grants, caller.domid, gref, flags))
    if status != GNTST_OKAY:
        return status
    return _Page(owner, int(owner.grants.active["frame"][gref]), gref, flags)
