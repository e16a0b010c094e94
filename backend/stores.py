"""What a virtual disk's bytes are kept in: a handful of callbacks, and memory where there is some.

A store with `memory` is read and written by compiled copies straight between guest pages and it;
any other has its callbacks called, once a segment, from the ring's thread. A store raises OSError
for what it cannot do, and the guest's request is answered ERROR.
"""

import mmap
from typing import Protocol

import numpy as np

from common.abi import SECTOR_SIZE


class Store(Protocol):
    """`nr_sectors` of 512 bytes; `memory`, u8 of all bytes, or None if only the callbacks serve."""

    nr_sectors: int
    memory: np.ndarray | None

    def read(self, offset: int, into: np.ndarray) -> None:
        """Fill `into` (u8) with the bytes at `offset`."""

    def write(self, offset: int, data: np.ndarray) -> None:
        """Put `data` (u8) at `offset`."""

    def flush(self) -> None:
        """Return when everything written so far would survive."""

    def close(self) -> None:
        """Give up what the store holds."""


class RamStore:
    """A ramdisk: dom0's own memory, zeroed, taken from the host page by page as it is used.

    huge_pages: pages of 2 MiB, where there are some; for a disk that is used all over, and soon.
    """

    def __init__(self, nr_sectors: int, huge_pages: bool = True) -> None:
        if nr_sectors < 1:
            raise ValueError(f"nr_sectors: {nr_sectors} is not at least 1")
        self.nr_sectors = nr_sectors
        self._map = mmap.mmap(-1, nr_sectors * SECTOR_SIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if huge_pages and hasattr(mmap, "MADV_HUGEPAGE"):
            # Random blocks of a large disk miss the TLB each time; 2-MiB pages miss it less.
            self._map.madvise(mmap.MADV_HUGEPAGE)
        self.memory: np.ndarray | None = np.frombuffer(self._map, np.uint8)

    def read(self, offset: int, into: np.ndarray) -> None:
        """Fill `into` with the bytes at `offset`."""
        assert self.memory is not None
        into[:] = self.memory[offset : offset + len(into)]

    def write(self, offset: int, data: np.ndarray) -> None:
        """Put `data` at `offset`."""
        assert self.memory is not None
        self.memory[offset : offset + len(data)] = data

    def flush(self) -> None:
        """Nothing to do: a ramdisk survives nothing."""

    def close(self) -> None:
        """Give the memory back at once: a view of it may live until Python's collector comes by."""
        self.memory = None
        self._map.madvise(mmap.MADV_DONTNEED)
