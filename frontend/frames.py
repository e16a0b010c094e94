"""Where a guest's disks have their frames and grants: how much of both a domain takes.

Owns: a domain's RAM (for each disk a ring, a pool and I/O buffers) and its grant table.
"""

from typing import Final

from common.abi import BLKIF_MAX_SEGMENTS_PER_REQUEST, BLKIF_RING_SIZE

POOL_PAGES: Final = BLKIF_RING_SIZE * BLKIF_MAX_SEGMENTS_PER_REQUEST
RESERVED_ENTRIES: Final = 8
ENTRIES_A_FRAME: Final = 512
GRANT_FRAMES_MIN: Final = 4  # Linux asks for this many at boot


def ram_frames(nr_disks: int, buffer_frames: int) -> int:
    """Of a guest; buffer_frames: of a disk."""
    return nr_disks * (1 + POOL_PAGES + buffer_frames)


def grant_frames(nr_disks: int) -> int:
    """Of a guest, 512 entries each."""
    entries = RESERVED_ENTRIES + nr_disks * (1 + POOL_PAGES)
    return max(GRANT_FRAMES_MIN, -(-entries // ENTRIES_A_FRAME))
