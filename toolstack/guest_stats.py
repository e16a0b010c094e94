"""What is believed of what a guest counts: its `stats` are its own memory, to write anything in.

Owns: the check of one reading against the one before. Counters only grow, and no faster than can
be; a guest whose figures do otherwise keeps the last that were sound, and is a suspect from then
on, which every result says.
"""

from typing import Final, NamedTuple

import numpy as np

from common.machine_memory import DISKS_MAX, STATS

GROWTH_MAX: Final = 1 << 48  # of any word between two readings: bytes, at 100 GB/s, in an hour


class Reading(NamedTuple):
    """counters: FRONTEND_COUNTERS (disks,); latency: u64 (disks, len(OPERATIONS), BUCKETS):
    copies."""

    counters: np.ndarray
    latency: np.ndarray


class GuestStats:
    """The stats of one guest: `record` is STATS (1,), shared with it; only its first `disks` are
    looked at."""

    def __init__(self, record: np.ndarray, disks: int = DISKS_MAX) -> None:
        self._record, self._disks, self._words = record, 0, 0
        self._believed = np.zeros(0, np.uint64)
        self.suspect = False
        self.widen(disks)

    def widen(self, disks: int) -> None:
        """As many are looked at from now on, at least."""
        self._disks = max(disks, self._disks)
        latencies = STATS["latency"].itemsize // DISKS_MAX * self._disks  # the first come first
        self._words = (STATS.fields["latency"][1] + latencies) // 8  # type: ignore[index]
        self._believed = np.concatenate(
            [self._believed, np.zeros(self._words - len(self._believed), np.uint64)]
        )

    def read(self) -> Reading:
        """The guest's figures as they stand, or as they last stood soundly."""
        words = self._record.view(np.uint64)[
            : self._words
        ].copy()  # once: it may change while we look
        grown = words - self._believed  # wraps where a word has shrunk
        if (grown > np.uint64(GROWTH_MAX)).any():
            self.suspect = True
        if not self.suspect:
            self._believed = words
        believed = np.zeros(1, STATS)
        believed.view(np.uint64)[: self._words] = self._believed
        disks = slice(self._disks)
        return Reading(believed["counters"][0, disks].copy(), believed["latency"][0, disks].copy())
