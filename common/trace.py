"""A trace of I/Os: what is done where and when, as the toolstack reads it and a guest replays it.

Owns: the form of an entry, and how many there may be.
"""

from typing import Final

import numpy as np

ENTRIES_MAX: Final = 1 << 20

# operation: BLKIF_OP_READ, _WRITE, _DISCARD, or _FLUSH_DISKCACHE, which is of no sectors; at_ns:
# since the trace began, never less than the entry before it.
TRACE: Final = np.dtype(
    [("at_ns", "<u8"), ("sector", "<u8"), ("nr_sectors", "<u4"), ("operation", "<u4")]
)
