"""Where a segment's bytes are reached in dom0, and what is remembered of who has reached them."""

from typing import Final

import numpy as np

from backend.blkback import Blkback
from common.abi import SECTOR_SIZE
from common.compiled import kernel

ACCESSED_WORDS: Final = 4  # 256 CPUs a maptrack handle


@kernel
def page_address(dev: Blkback, slot: int, at: int) -> np.int64:
    """Where the first byte of a segment is reached."""
    segment = dev.segments[slot, at]
    return np.int64(dev.page_table[segment.slot]) + np.int64(segment.first_sect) * SECTOR_SIZE


@kernel
def touch(dev: Blkback, slot: int, at: int) -> None:
    """Mark a mapping as accessed by this worker's CPU, as a page-table walk would."""
    if dev.back[0].copies:  # dom0's own page
        return
    cpu, handle = np.int64(dev.back[0].cpu), np.int64(dev.segments[slot, at].handle)
    dev.accessed[handle * ACCESSED_WORDS + (cpu >> 6)] |= np.uint64(1) << np.uint64(cpu & 63)
