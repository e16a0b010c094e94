"""Builds a blkfront over memory that is given: of a guest's process, a simulated guest, a test."""

from typing import Any

import numpy as np

from common.abi import XEN_PAGE_SIZE
from common.arena import Arena
from common.copying import address_of
from common.event_channel import EventWords, event_words
from frontend.blkfront_info import Blkfront, new_blkfront
from frontend.grants import new_grants
from frontend.page_pool import new_pool
from frontend.vbd import NR_IOS, POOL_FRAME, POOL_PAGES, RING_FRAME, Domain


def build_front(
    arena: Arena,
    ram: np.ndarray,
    grant_frames: np.ndarray,
    counters: np.ndarray,
    events: EventWords,
    spin: np.ndarray,
    *,
    nr_ios: int,
    pool_pages: int = POOL_PAGES,
    **options: Any,
) -> Blkfront:
    """A device on a fresh ring in frame RING_FRAME of `ram` (u8). options: `new_blkfront`'s."""
    return new_blkfront(
        arena,
        ram[RING_FRAME * XEN_PAGE_SIZE :][:XEN_PAGE_SIZE],
        address_of(ram),
        new_grants(arena, grant_frames),
        new_pool(arena, POOL_FRAME, pool_pages),
        counters,
        events,
        spin,
        nr_ios=nr_ios,
        **options,
    )


def lay_out_buffers(dev: Blkfront, first_frame: int, frames_per_io: int) -> None:
    """Give each I/O so many frames, one after the other."""
    dev.ios["frame"] = first_frame + np.arange(len(dev.ios)) * frames_per_io


def channel_words(arena: Arena, event: np.ndarray, *, allocated_here: bool = True) -> EventWords:
    """One end's words of a channel whose allocating domain has the segment `event` (u8).

    The port is 0 until somebody sets it.
    """
    own, far = event[:XEN_PAGE_SIZE], event[XEN_PAGE_SIZE : 2 * XEN_PAGE_SIZE]
    if not allocated_here:
        own, far = far, own
    return EventWords(event_words(own)[0], *event_words(far), arena.array(1, np.int64))


def guest_domain(
    domid: int,
    ram: np.ndarray,
    grant: np.ndarray,
    event: np.ndarray,
    counters: np.ndarray,
    spin: np.ndarray,
    *,
    nr_ios: int = NR_IOS,
    notes_wakes: bool = False,
    arena: Arena | None = None,
) -> Domain:
    """What a guest's disk needs of it, on the guest's own segments (u8).

    arena: where its devices' state is to lie; each has one of its own, if there is none.
    """

    def build(backend_domid: int, handle: int) -> Blkfront:
        own = arena or Arena()
        return build_front(
            own,
            ram,
            grant,
            counters,
            channel_words(own, event),
            spin,
            nr_ios=nr_ios,
            backend_domid=backend_domid,
            handle=handle,
            notes_wakes=notes_wakes,
        )

    return Domain(domid, ram, build)
