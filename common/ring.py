"""The shared ring of Xen's `io/ring.h`: both halves, one code.

Owns: the four index words of `blkif_sring` and each end's private indices.
Rules
1. Only the frontend initialises the shared page (`SHARED_RING_INIT`).
2. A half writes its own producer and its own event word, and never trusts the other's: a peer's
   producer that runs ahead of what can be outstanding is RING_BROKEN.
3. Each function here has one access to shared memory, and is one phase (`common/steps.py`).
4. All arithmetic is u32.
Never knows: what is in the slots, or how a notification travels.

Memory: `words` is the ring's pages as a 1-d u32 array, `qwords` the same as u64; `half` is a
one-element array of RING_HALF. The front produces requests and consumes responses; the back the
other way round: `own` and `peer` name the two producers by their word.
"""

from typing import Final

import numpy as np

from common.abi import BLKIF_REQUEST, SRING_HEADER_SIZE, XEN_PAGE_SIZE, blkif_ring_size
from common.arena import Arena
from common.atomics import fence, load_acquire, store_release
from common.compiled import kernel
from common.u32 import u32_add, u32_sub

# Word offsets in blkif_sring; each producer's event word follows it.
REQ: Final = 0  # req_prod, req_event
RSP: Final = 2  # rsp_prod, rsp_event
EVENT: Final = 1

RING_BROKEN: Final = -1

RING_HALF: Final = np.dtype(
    [
        ("prod_pvt", "<u4"),  # produced by us, maybe not yet published
        ("cons", "<u4"),  # consumed by us
        ("published", "<u4"),  # our producer as last published
        ("unchecked", "<u4"),  # our producer when we last decided about a notification
        ("nr_ents", "<u4"),
    ]
)

SLOT_QWORDS: Final = BLKIF_REQUEST.itemsize // 8
HEADER_QWORDS: Final = SRING_HEADER_SIZE // 8


def nr_ents_of(ring_page: np.ndarray) -> int:
    """Slots of a ring in `ring_page` (u8, whole pages)."""
    return blkif_ring_size(len(ring_page) // XEN_PAGE_SIZE)


def new_half(arena: Arena, nr_ents: int, start: int = 0) -> np.ndarray:
    """The private indices of one end, at `start`, as a one-element RING_HALF array."""
    half = arena.array(1, RING_HALF)
    half["nr_ents"] = nr_ents
    begin_half(half, start)
    return half


def begin_half(half: np.ndarray, start: int) -> None:
    """Nothing has been produced or consumed yet."""
    for name in ("prod_pvt", "cons", "published", "unchecked"):
        half[name] = np.uint32(start)


def attach_half(arena: Arena, words: np.ndarray, nr_ents: int, own: int) -> np.ndarray:
    """The private indices of an end that takes over a live ring, at what it last published.

    A backend starts from `rsp_prod`: requests pushed before it connected are still to be done.
    """
    return new_half(arena, nr_ents, int(load_acquire(words, own)))


@kernel
def shared_ring_init(words: np.ndarray, start: int) -> None:
    """SHARED_RING_INIT: producers at `start` (0 in life), events one ahead, the rest zero."""
    words[:] = 0
    store_release(words, REQ, u32_add(start, 0))
    store_release(words, RSP, u32_add(start, 0))
    store_release(words, REQ + EVENT, u32_add(start, 1))
    store_release(words, RSP + EVENT, u32_add(start, 1))


@kernel
def slot(half: np.ndarray, index: int) -> np.int64:
    """Where the slot of a free-running `index` starts in `qwords` (RING_GET_REQUEST)."""
    masked = np.int64(index) & (np.int64(half[0].nr_ents) - 1)
    return HEADER_QWORDS + masked * SLOT_QWORDS


@kernel
def free_requests(half: np.ndarray) -> np.int64:
    """Slots the front may still fill (RING_FREE_REQUESTS)."""
    used = u32_sub(half[0].prod_pvt, half[0].cons)
    return np.int64(half[0].nr_ents) - np.int64(used)


@kernel
def unconsumed(words: np.ndarray, half: np.ndarray, peer: int, limit: int) -> np.int64:
    """CONSUME: entries the peer has published and we have not taken, or RING_BROKEN.

    `limit` is the most that can honestly be outstanding: `nr_ents` for the back's requests,
    what it has asked for the front's responses (RING_REQUEST_PROD_OVERFLOW).
    """
    ahead = np.int64(u32_sub(load_acquire(words, peer), half[0].cons))
    if ahead > limit:
        return np.int64(RING_BROKEN)
    return ahead


@kernel
def publish(words: np.ndarray, half: np.ndarray, own: int) -> None:
    """PUBLISH: let the peer see everything produced so far (RING_PUSH_*)."""
    half[0].published = half[0].prod_pvt
    store_release(words, own, half[0].prod_pvt)


@kernel
def check_notify(words: np.ndarray, half: np.ndarray, own: int) -> bool:
    """CHECK_NOTIFY: did what was published pass the event the peer armed?

    The fence pairs with the one in `arm`: either we see the armed event or the peer's
    recheck sees our producer; without it both could miss, and the peer sleeps for ever.
    """
    fence()
    new = half[0].published
    old = half[0].unchecked
    half[0].unchecked = new
    event = load_acquire(words, own + EVENT)
    return u32_sub(new, event) < u32_sub(new, old)


@kernel
def arm(words: np.ndarray, half: np.ndarray, peer: int) -> None:
    """ARM: ask for a notification at the next entry (RING_FINAL_CHECK_FOR_*).

    The caller must look again (`unconsumed`) before it sleeps.
    """
    store_release(words, peer + EVENT, u32_add(half[0].cons, 1))
    fence()


@kernel
def under_way(half: np.ndarray, peer: int) -> np.int64:
    """Requests that have been produced, or taken, and not been answered."""
    ahead, behind = half[0].prod_pvt, half[0].cons
    return np.int64(u32_sub(ahead, behind) if peer == RSP else u32_sub(behind, ahead))


@kernel
def answered(half: np.ndarray, peer: int) -> int:
    """Responses so far, taken or produced: a u32 that wraps."""
    return half[0].cons if peer == RSP else half[0].prod_pvt
