"""What is believed of what a guest counts: its `stats` are its own memory, to write anything in.

Owns: the check of one reading against the one before. Counters only grow, and no faster than can
be; a guest whose figures do otherwise keeps the last that were sound, and is a suspect from then
on, which every result says.
"""

from typing import Final, NamedTuple

import numpy as np

from common.histogram import BUCKETS
from common.machine_memory import STATS

GROWTH_MAX: Final = 1 << 48  # of any word between two readings: bytes, at 100 GB/s, in an hour


class Reading(NamedTuple):
    """counters: FRONTEND_COUNTERS (disks,); latency: u64 (disks, BUCKETS): copies."""

    counters: np.ndarray
    latency: np.ndarray


class GuestStats:
    """The stats of one guest: `record` is STATS (1,), shared with it."""

    def __init__(self, record: np.ndarray) -> None:
        self._record = record
        self._believed = np.zeros(STATS.itemsize // 8, np.uint64)
        self.suspect = False

    def read(self) -> Reading:
        """The guest's figures as they stand, or as they last stood soundly."""
        words = self._record.view(np.uint64).copy()  # once: it may change while we look
        grown = words - self._believed  # wraps where a word has shrunk
        if (grown > np.uint64(GROWTH_MAX)).any():
            self.suspect = True
        if not self.suspect:
            self._believed = words
        believed = self._believed.copy().view(STATS)
        return Reading(
            believed["counters"].reshape(-1).copy(), believed["latency"].reshape(-1, BUCKETS).copy()
        )
