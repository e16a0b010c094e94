"""A request's slot (Linux: `pending_req`): one request on its way, from TAKE to its answer.

Owns: what a slot holds, what kinds of requests there are, and the states that a slot goes through.
A ring has as many slots as it holds requests. Steps take a *group* of slots together: how many is
what batching means (`gather_max`). Groups follow each other, but a slot may stay at the store while
others come and go: several are in flight there, and each is answered when it is ready.
"""

from typing import Final

import numpy as np

# What a request asks for (REQUEST.kind): nothing that is done, if it is bad.
READ, WRITE, BARRIER, FLUSH, DISCARD, BAD = range(6)
KINDS: Final = ("READ", "WRITE", "BARRIER", "FLUSH", "DISCARD", "BAD")

# Where it is on its way (REQUEST.state).
FREE, TAKEN, MAPPING, IO, UNMAPPING, DONE = range(6)
STATES: Final = ("FREE", "TAKEN", "MAPPING", "IO", "UNMAPPING", "DONE")

# Which state follows which. Who asks for nothing that can be done is DONE at once; a page that is
# kept is neither mapped nor unmapped; of what was mapped some may have to be unmapped though the
# rest was refused.
AFTER: Final = {
    FREE: {TAKEN},
    TAKEN: {MAPPING, IO, DONE},
    MAPPING: {IO, UNMAPPING, DONE},
    IO: {UNMAPPING, DONE},
    UNMAPPING: {DONE},
    DONE: {FREE},
}

# What happens to a segment's page when its request is done (SEGMENT.kind).
FAILED: Final = 0  # not mapped: the hypervisor refused the grant
MISSING: Final = 1  # not mapped yet
KEPT: Final = 2  # in the tree, marked in flight
ONCE: Final = 3  # mapped for this request only
BOUNCED: Final = 4  # dom0's own: the hypervisor copies between it and the guest's

REQUEST: Final = np.dtype(
    [
        ("id", "<u8"),
        ("sector", "<u8"),
        ("nr_sectors", "<u8"),  # all segments', or those to discard
        ("operation", "<u4"),  # as it came, for the answer
        ("kind", "<u4"),
        ("nr_segments", "<u4"),
        ("status", "<i4"),  # BLKIF_RSP_*, or NOT_DONE
        ("state", "<u4"),
        ("job", "<u4"),  # which of its jobs is at the store (`backend/at_store.py`)
    ]
)

SEGMENT: Final = np.dtype(
    [
        ("gref", "<u4"),
        ("slot", "<i4"),  # of host addresses
        ("handle", "<u4"),
        ("node", "<i4"),
        ("kind", "<u4"),
        ("first_sect", "<u2"),
        ("nr_sectors", "<u2"),
    ]
)
