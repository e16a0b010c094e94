"""Builds a blkfront over memory that is given: a guest's process's, a simulated guest's, a test's.

Owns: where in a guest's RAM its disk has what.
"""

from typing import Final

import numpy as np

from common.abi import BLKIF_MAX_SEGMENTS_PER_REQUEST, BLKIF_RING_SIZE, XEN_PAGE_SIZE
from common.arena import Arena
from common.copying import address_of
from common.event_channel import EventWords
from frontend.blkfront_info import Blkfront, new_blkfront
from frontend.grants import new_grants
from frontend.page_pool import new_pool

# The guest's RAM: the ring, the pool, and the rest for I/O buffers.
RING_FRAME: Final = 0
POOL_FRAME: Final = 1
POOL_PAGES: Final = BLKIF_RING_SIZE * BLKIF_MAX_SEGMENTS_PER_REQUEST
BUFFER_FRAME: Final = POOL_FRAME + POOL_PAGES


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
    **options: int,
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
