"""Whether there is room for a request: a slot, pages of the disk's pool, and entries of the grant
table, which a guest's disks have in common. Sans-I/O.

Owns: which disk waits when the entries do not go round, and for how long.
Rules
1. What has found no room with anything of its disk's on the ring waits for its answers, which bring
   slots, pages and entries back.
2. With nothing on the ring, pages never come. Entries may, while anything of the guest's is in
   flight; if nothing is, they never will.
3. One disk is first at a time, and until it has its entries no other takes any: a large request is
   not passed over for ever by small ones.
4. Who waits for entries has no answer to wake it: whoever serves the guest's rings asks `may_go_on`
   of each, after another's turn.
"""

from typing import Final

import numpy as np

from common import ring
from common.compiled import kernel, part
from frontend.blkfront_info import PER_REQUEST, Blkfront
from frontend.page_pool import ungranted_ahead

ROOM: Final = 0
LATER: Final = 1
NEVER: Final = 2


@part
def room_for(dev: Blkfront, nr_segments: int) -> int:
    """ROOM for a request of so many segments; LATER, if there may be; or NEVER."""
    front, grants = dev.front[0], dev.grants.list[0]
    bounce = front.grant_mode != PER_REQUEST
    if ring.free_requests(dev.half) == 0 or (bounce and dev.pool.list[0].free < nr_segments):
        return LATER if front.outstanding > 0 else _end_wait(dev, NEVER)
    wanted = ungranted_ahead(dev.pool, nr_segments) if bounce else np.int64(nr_segments)
    if wanted == 0 or (wanted <= grants.free and not _gives_way(dev)):
        return _end_wait(dev, ROOM)
    if front.outstanding > 0:
        return LATER
    if grants.in_flight == 0 and not _gives_way(dev):
        return _end_wait(dev, NEVER)
    _wait(dev, wanted)
    return LATER


@part
def _number(dev: Blkfront) -> np.uint32:
    """Which disk it is, from 1 on."""
    return np.uint32(dev.front[0].handle + np.uint32(1))


@part
def _gives_way(dev: Blkfront) -> bool:
    """Is another disk first?"""
    first = dev.grants.list[0].first
    return first != 0 and first != _number(dev)


@part
def _wait(dev: Blkfront, wanted: int) -> None:
    grants = dev.grants.list[0]
    if dev.front[0].wanted == 0:
        grants.waiting += np.uint32(1)
    dev.front[0].wanted = np.uint32(wanted)
    if grants.first == 0:
        grants.first = _number(dev)


@part
def _end_wait(dev: Blkfront, found: int) -> int:
    """It is known what there is, `found`: the disk waits no longer, if it did."""
    grants = dev.grants.list[0]
    if dev.front[0].wanted > 0:
        grants.waiting -= np.uint32(1)
        dev.front[0].wanted = np.uint32(0)
        if grants.first == _number(dev):
            grants.first = np.uint32(0)
    return found


@part
def may_go_on(dev: Blkfront) -> bool:
    """Does the disk wait, and would it find room now, or none for ever, or that it is first?"""
    grants, wanted = dev.grants.list[0], dev.front[0].wanted
    if wanted == 0 or _gives_way(dev):
        return False
    return grants.first == 0 or grants.free >= wanted or grants.in_flight == 0


@kernel
def abandon(dev: Blkfront) -> None:
    """The device is used no more: what it has on the ring is not in flight, and it waits for
    nothing.
    """
    dev.grants.list[0].in_flight -= dev.front[0].outstanding
    dev.front[0].outstanding = np.uint32(0)
    _end_wait(dev, NEVER)
