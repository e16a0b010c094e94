"""Where a guest's disks have their frames and grants, and how much of both a domain takes.

Owns: a guest's RAM, which its disks share out in the order of their numbers: for each the ring, the
pool of pages to bounce through, and buffers for I/Os; and the size of its grant table, which they
have in common.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from common.abi import (
    BLKIF_MAX_SEGMENTS_PER_REQUEST,
    BLKIF_RING_SIZE,
    GNTTAB_NR_RESERVED_ENTRIES,
    GRANT_ENTRY_V1,
    XEN_PAGE_SIZE,
)
from frontend.blkfront_info import Blkfront

POOL_PAGES: Final = BLKIF_RING_SIZE * BLKIF_MAX_SEGMENTS_PER_REQUEST
GRANT_FRAMES_MIN: Final = 4  # Linux asks for this many at boot
ENTRIES_A_FRAME: Final = XEN_PAGE_SIZE // GRANT_ENTRY_V1.itemsize


class DiskFrames(NamedTuple):
    """The first frames of a disk's ring, pool and I/O buffers, and of what is not its own."""

    ring: int
    pool: int
    buffers: int
    end: int


@dataclass(frozen=True)
class Domain:
    """What a disk has of its guest. ram: all its frames (u8); frames: which are the disk's;
    build(backend_domid, handle): a device on a fresh ring in them (`machine/front.py`).
    """

    domid: int
    ram: np.ndarray
    frames: DiskFrames
    build: Callable[[int, int], Blkfront]


def disk_frames(disk: int, buffer_frames: int, pool_pages: int = POOL_PAGES) -> DiskFrames:
    """Of the disk with that number; buffer_frames: each disk's."""
    ring = disk * (1 + pool_pages + buffer_frames)
    buffers = ring + 1 + pool_pages
    return DiskFrames(ring, ring + 1, buffers, buffers + buffer_frames)


def ram_frames(nr_disks: int, buffer_frames: int) -> int:
    """Of a guest; buffer_frames: each disk's."""
    return disk_frames(nr_disks, buffer_frames).ring


def grant_frames(nr_disks: int) -> int:
    """Of a guest, so that all its rings and pools can be granted at once."""
    entries = GNTTAB_NR_RESERVED_ENTRIES + nr_disks * (1 + POOL_PAGES)
    return max(GRANT_FRAMES_MIN, -(-entries // ENTRIES_A_FRAME))
