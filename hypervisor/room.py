"""A domid's part of the arena: what one domain of it had, the next one has again.

An arena gives nothing back, and domains come and go.
"""

from typing import Protocol

import numpy as np
from numpy.typing import DTypeLike


class Carver(Protocol):
    """Where arrays are had from: an arena, or a room in one."""

    def array(self, shape: int | tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
        """A new zeroed array."""


class Room:
    """The arrays of one domid, the same ones in the same order for each domain that has it."""

    def __init__(self, arena: Carver) -> None:
        self._arena = arena
        self._blocks: list[np.ndarray] = []
        self._taken = 0

    def empty(self) -> None:
        """The domain is gone: all arrays are to be had again."""
        self._taken = 0

    def array(self, shape: int | tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
        """A zeroed array, where that of the last domain was if it was as large."""
        dtype = np.dtype(dtype)
        nbytes = int(np.prod(shape)) * dtype.itemsize
        block = self._block(self._taken, nbytes)
        self._taken += 1
        return block[:nbytes].view(dtype).reshape(shape)

    def _block(self, at: int, nbytes: int) -> np.ndarray:
        if at < len(self._blocks) and len(self._blocks[at]) >= nbytes:
            self._blocks[at][:nbytes] = 0
        else:
            # Powers of two: however its domains grow, they leave no more behind than they have.
            block = self._arena.array(1 << max(0, nbytes - 1).bit_length(), np.uint8)
            self._blocks[at : at + 1] = [block]
        return self._blocks[at]
