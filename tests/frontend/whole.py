"""Nothing lost, nothing twice: each gref, page and id of a blkfront is free or held, once."""

from collections.abc import Iterator

import numpy as np

from common.abi import GNTTAB_NR_RESERVED_ENTRIES
from common.steps import STEP
from frontend import steps
from frontend.blkfront_info import NONE, PER_REQUEST, Blkfront
from frontend.grants import NO_GREF, Grants
from frontend.page_pool import NO_PAGE, PagePool

PREPARING = (steps.PREPARE, steps.GRANT_ACCESS, steps.COPY_IN, steps.PUT)
TAKEN_FOR = (steps.GRANT_ACCESS, steps.COPY_IN)  # a segment that has its page, and waits for more


def walk(head: int, links: np.ndarray, end: int) -> list[int]:
    """A linked list's elements; it may be no longer than there are links."""
    found = []
    while head != end:
        assert len(found) < len(links), "the free list goes round"
        found.append(head)
        head = int(links[head])
    return found


def free_grefs(grants: Grants) -> list[int]:
    """The free list, as long as it says it is; a free entry permits nothing."""
    free = walk(int(grants.list["head"][0]), grants.next, NO_GREF)
    assert len(free) == grants.list["free"][0]
    assert not grants.entries.view(np.uint64)[free].astype(np.uint32).any()
    return free


def free_pages(pool: PagePool) -> list[int]:
    """The free pages, the next one to be taken first."""
    free = walk(int(pool.list["head"][0]), pool.pages["next"], NO_PAGE)
    assert len(free) == pool.list["free"][0]
    assert pool.list["tail"][0] == (free[-1] if free else NO_PAGE)
    return free


def check_whole(dev: Blkfront, *others: int) -> None:
    """Between any two phases. `others`: grefs that were granted past blkfront, as the ring's is."""
    used = np.flatnonzero(dev.shadow["used"]).tolist()
    ids = walk(int(dev.front["free_id"][0]), dev.shadow["next"], NONE) + used
    assert sorted(ids) == list(range(len(dev.shadow)))
    assert dev.front["outstanding"][0] == len(used) - (dev.turn[STEP] in PREPARING)

    pages = free_pages(dev.pool) + list(_held(dev, used, "page", NO_PAGE))
    assert sorted(pages) == list(range(len(dev.pool.pages)))

    grefs = free_grefs(dev.grants) + list(others)
    grefs += dev.pool.pages["gref"][dev.pool.pages["gref"] != NO_GREF].tolist()
    if dev.front["grant_mode"][0] == PER_REQUEST:
        grefs += _held(dev, used, "gref", NO_GREF)
    assert sorted(grefs) == list(range(GNTTAB_NR_RESERVED_ENTRIES, len(dev.grants.next)))


def _held(dev: Blkfront, used: list[int], what: str, nothing: int) -> Iterator[int]:
    """What the segments of requests in flight hold; of one that is being prepared, those so far."""
    for ident in used:
        nr_segments = int(dev.shadow["nr_segments"][ident])
        if dev.turn[STEP] in PREPARING and ident == dev.front["ident"][0]:
            nr_segments = int(dev.front["at"][0])
            nr_segments += what == "page" and dev.turn[STEP] in TAKEN_FOR
        for held in dev.segments[ident, :nr_segments][what].tolist():
            if held != nothing:
                yield held
