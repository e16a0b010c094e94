"""A wrapper that is to a store what a disk's own cache is to its platters: lost in a crash.

Owns: what has been written and is not flushed. A page cache outlives a process that is killed, so
without this a flush that does nothing would never be found. Whoever ends dom0, and when, needs to
do nothing for it: chance, from a seed, decides at each write what a crash before the next flush
would leave of it: all of it, as a cache may write back when it likes; the first of its sectors (it
is torn there); or nothing. What is left is in the store below at once, the rest is kept here.
"""

import contextlib
import random

import numpy as np

from backend.stores import Features, Store

WRITTEN_BACK, TORN = 0.25, 0.5  # of a write: below the first, all of it; below the second, a part


class VolatileStore:
    """`below`, from now on this one's, with a cache that is not written back in a crash.

    below: one that writes whole sectors, whenever this process is killed.
    """

    memory: np.ndarray | None = None

    def __init__(self, below: Store, seed: int) -> None:
        self.nr_sectors, self.sector_size = below.nr_sectors, below.sector_size
        has = below.features
        self.features = Features(True, True, *has[2:])
        self._below, self._random = below, random.Random(seed)
        self._kept: dict[int, np.ndarray] = {}  # by the store's own sector

    def read(self, offset: int, into: np.ndarray) -> None:
        """The bytes at `offset`, kept or not."""
        self._below.read(offset, into)
        if not self._kept:
            return
        for at, sector in self._sectors(offset, len(into)):
            if (kept := self._kept.get(sector)) is not None:
                into[at : at + self.sector_size] = kept

    def write(self, offset: int, data: np.ndarray) -> None:
        """Keep `data`, but for what chance writes back."""
        back = self._written_back(len(data) // self.sector_size) * self.sector_size
        if back:
            self._below.write(offset, data[:back])
        for at, sector in self._sectors(offset, len(data)):
            if at < back:
                self._kept.pop(sector, None)
            else:
                self._kept[sector] = data[at : at + self.sector_size].copy()

    def _written_back(self, nr_sectors: int) -> int:
        """How many sectors of a write a crash would leave."""
        chance = self._random.random()
        if chance < WRITTEN_BACK:
            return nr_sectors
        return self._random.randrange(nr_sectors + 1) if chance < TORN else 0

    def flush(self) -> None:
        """Write back all that is kept, and have it survive."""
        for sector in sorted(self._kept):
            self._below.write(sector * self.sector_size, self._kept[sector])
            del self._kept[sector]
        self._below.flush()

    def discard(self, offset: int, nr_bytes: int) -> None:
        """What is kept of it, too."""
        first, end = offset // self.sector_size, (offset + nr_bytes) // self.sector_size
        for sector in [sector for sector in self._kept if first <= sector < end]:
            del self._kept[sector]
        self._below.discard(offset, nr_bytes)

    def close(self) -> None:
        """A disk that is unplugged writes its cache back; errors are nobody's any more."""
        with contextlib.suppress(OSError):
            self.flush()
        self._below.close()

    def _sectors(self, offset: int, nr_bytes: int) -> list[tuple[int, int]]:
        """Where each sector is in the data, and its number."""
        first = offset // self.sector_size
        return [(at * self.sector_size, first + at) for at in range(nr_bytes // self.sector_size)]
