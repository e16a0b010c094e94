"""A guest's disk for the user's Python: `frontend.block_device.BlockDevice`, asked from afar.

The bytes go over the guest's control pipe; the I/O itself is the guest's, through its ring.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np


class GuestDisk:
    """`size` bytes. Offsets and lengths are bytes, multiples of 512.

    Errors of the guest (a bad offset, an I/O error) arrive as MachineError, with its text.
    """

    def __init__(self, ask: Callable[..., Any], guest: str) -> None:
        self._ask, self._guest = ask, guest
        self.size = 0

    def read(self, offset: int, nbytes: int) -> bytes:
        """`nbytes` bytes at `offset`."""
        return self._ask(self._guest, "read", offset, nbytes)

    def write(self, offset: int, data: bytes) -> int:
        """Write `data` at `offset`; returns how many bytes that was."""
        return self._ask(self._guest, "write", offset, bytes(data))

    def read_many(self, offsets: Sequence[int] | np.ndarray, nbytes: int) -> np.ndarray:
        """`nbytes` bytes at each of `offsets`, in flight together: u8, shape (n, nbytes)."""
        return self._ask(self._guest, "read_many", np.asarray(offsets, np.int64), nbytes)

    def write_many(self, offsets: Sequence[int] | np.ndarray, data: np.ndarray) -> None:
        """Write row i of `data` (u8, shape (n, nbytes)) at offset i, in flight together."""
        self._ask(self._guest, "write_many", np.asarray(offsets, np.int64), data)

    def flush(self) -> None:
        """Return when everything written would survive."""
        self._ask(self._guest, "flush")
