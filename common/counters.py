"""What is counted, by whom, under which name: plain u64 words in shared memory, one writer each.

Owns: the dtypes of the counter blocks. The writer adds with plain stores; a reader may look at any
moment and sees each word whole. `toolstack/results.py` is where they become results.
"""

from typing import Final

import numpy as np


def _block(*names: str) -> np.dtype[np.void]:
    return np.dtype([(name, "<u8") for name in names])


# Written by a guest's blkfront and its load.
FRONTEND_COUNTERS: Final = _block(
    "ios",  # what the load asked for; one may take several requests
    "requests",
    "segments",
    "bytes_read",
    "bytes_written",
    "io_errors",
    "verify_errors",
    "grants_issued",
    "grant_end_attempts",
    "grants_ended",
    "bytes_copied_by_guest",
    "notify_to_back",
    "waits",  # times it blocked on its event channel
    "flush_requests",  # of `requests`, those that are a flush or a barrier
    "discard_requests",
    "bytes_discarded",
)

# A load's latencies are counted by what was done: a histogram for each.
OPERATIONS: Final = ("read", "write", "trim")
READS, WRITES, TRIMS = range(len(OPERATIONS))

# Written by the dom0 thread that serves a ring, for each.
BACKEND_COUNTERS: Final = _block(
    "requests",
    "segments",
    "bad_requests",  # answered EOPNOTSUPP or ERROR without being tried
    "io_errors",  # answered ERROR after a grant or the store refused
    "overflow_segments",  # mapped for one request only, though grants persist
    "persistent_now",
    "persistent_max",
    "notify_to_front",
    "waits",
    "map_ops",  # with the three below: what the hypervisor counts of the ring's I/O
    "unmap_ops",
    "copy_ops",
    "hypercalls",
    "flush_requests",  # FLUSH_DISKCACHE and WRITE_BARRIER
    "discard_requests",
    "store_flushes",  # jobs that a store without memory was given: what it was told to flush
    "store_discards",
)

# Written by the hypervisor, for the domain whose grants were concerned.
HYPERVISOR_COUNTERS: Final = _block(
    "hypercalls",  # grant-table hypercalls, however many operations each held
    "map_ops",
    "unmap_ops",
    "copy_ops",
    "failed_ops",
    "flushes",
    "flush_entries",
    "ipis",
    "flush_lock_waits",
    "grants_mapped",  # maptrack entries in use now: a level, not a sum
)

# Written by the hypervisor, for each worker CPU.
CPU_COUNTERS: Final = _block(
    "ipis_sent", "ipis_received", "flushes", "flush_entries", "flush_lock_waits"
)

# Levels, which stand as they are where sums are subtracted.
LEVELS: Final = frozenset({"persistent_now", "persistent_max", "grants_mapped"})
