"""The words of a load's state, as compiled turns take them.

Owns: their form. What a plain load has comes first; the rest is of loads with a shape.
"""

from typing import Final

import numpy as np

BLOCK_TRIES: Final = 8  # a depth near the number of blocks finds most of them busy

# Words of `clock`; before them two of scratch.
NOW_NS: Final = 2
STALE: Final = 3  # NOW_NS is to be read anew
CLOCK_WORDS: Final = 4

NO_END: Final = 1 << 63
SHARES: Final = 1_000_000  # of a size among others: SIZES.below is out of so many

SIZES: Final = np.dtype([("sectors", "<u4"), ("below", "<u4")])  # below: its share, and all before

LOAD_STATE: Final = np.dtype(
    [
        ("random", "<u8"),  # xorshift64* state, never 0
        ("next_block", "<u8"),
        ("nr_blocks", "<u8"),
        ("first_sector", "<u8"),  # of the region
        ("ios_left", "<u8"),
        ("deadline_ns", "<u8"),
        ("block_sectors", "<u4"),
        ("read_percent", "<u4"),
        ("sequential", "<u4"),
        ("verify", "<u4"),
        ("disk", "<u4"),
        ("idle_ios", "<u4"),
        ("stop", "<u4"),
        ("counts", "<u4"),  # 0: I/Os are queued, and looked at when they are done, by somebody else
        ("real_time", "<u4"),  # 0: the driver sets NOW_NS
        ("writes_as", "<u4"),  # what is not a read is a write, or a discard
        ("fsync", "<u4"),  # writes from one flush to the next; 0: there are none
        ("unflushed", "<u4"),  # writes since the last
        ("flushing", "<u4"),  # one is on its way
        ("shaped", "<u4"),  # 0: nothing of what follows is used
        # Where: sectors from `first_sector` on; a place is `block_sectors` long, as is what `busy`
        # tells apart `unit_sectors`.
        ("region", "<u8"),
        ("place", "<u8"),  # the next sequential one
        ("unit_sectors", "<u4"),
        ("read_sizes", "<u4"),  # of `sizes`; the others are writes'
        ("spread", "<u8"),  # a rank's place is rank * spread, modulo nr_blocks
        ("distribution", "<u4"),
        # The I/O that comes next, once it can.
        ("drawn", "<u4"),
        ("reads", "<u4"),
        ("operation", "<u4"),
        ("sectors", "<u8"),
        ("sector", "<u8"),
        # When.
        ("due_ns", "<u8"),  # before this nothing more is queued; 0: it waits for no time
        ("not_before_ns", "<u8"),
        ("began_ns", "<u8"),
        ("ramped_ns", "<u8"),  # before this neither I/Os nor bytes are taken off what is left
        ("bytes_left", "<u8"),
        ("rate", "<u8", (2,)),  # a second, of reads and of others; 0: as many as can be
        ("paced", "<u8", (2,)),  # so many have been queued
        ("think_ns", "<u8"),  # after `think_ios`, which may be on their way together
        ("think_ios", "<u4"),
        ("begun", "<u4"),  # of these,
        ("ended", "<u4"),  # and done
        ("timed", "<u4"),  # is the trace replayed by its clock?
        ("entry", "<u8"),  # of the trace; the next
        ("loops_left", "<u8"),
        # Of the distribution: `frontend/load_shape.py`.
        ("skew", "<f8"),
        ("from_first", "<f8"),
        ("to_last", "<f8"),
        ("sure", "<f8"),
    ]
)

RANDOM, ZIPF, PARETO, REPLAY = range(4)  # of `distribution`
DISTRIBUTIONS: Final = {"random": RANDOM, "zipf": ZIPF, "pareto": PARETO}
