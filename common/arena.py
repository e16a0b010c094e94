"""Memory that a machine's protocol state lies in, so that a snapshot of it is one copy.

Owns: where each array is in it. Who builds a core (`machine/`) carves all of its state from one
arena: a process for its own side, the simulator and the tests for a whole machine. Nothing is given
back: an arena lives as long as what it holds.
"""

import mmap
from typing import Final

import numpy as np
from numpy.typing import DTypeLike

MAP_NORESERVE: Final = 0x4000  # Python's mmap has it since 3.13 only
RESERVED_BYTES: Final = 1 << 30  # of addresses; the host gives memory page by page, as it is used
LINE_BYTES: Final = 64  # no two arrays share a cache line


class Arena:
    """Zeroed memory for at most `nbytes` of arrays."""

    def __init__(self, nbytes: int = RESERVED_BYTES) -> None:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE
        self._memory = np.frombuffer(mmap.mmap(-1, nbytes, flags), np.uint8)
        self._used = 0

    def array(self, shape: int | tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
        """A new zeroed array, aligned to a cache line. Raises MemoryError if it does not fit."""
        dtype = np.dtype(dtype)
        nbytes = int(np.prod(shape)) * dtype.itemsize
        start, end = self._used, self._used + nbytes
        if end > len(self._memory):
            raise MemoryError(f"{nbytes} bytes do not fit: {start} of {len(self._memory)} are used")
        self._used = -(-end // LINE_BYTES) * LINE_BYTES
        return self._memory[start:end].view(dtype).reshape(shape)

    def holds(self, array: np.ndarray) -> bool:
        """Does `array` lie in it?"""
        at = array.ctypes.data - self._memory.ctypes.data
        return 0 <= at < self._used

    def snapshot(self) -> np.ndarray:
        """A copy of everything in it: u8."""
        return self._memory[: self._used].copy()

    def restore(self, snapshot: np.ndarray) -> None:
        """Make everything again as it was. No array may have been made since."""
        assert len(snapshot) == self._used, "the snapshot is of fewer arrays"
        self._memory[: self._used] = snapshot
