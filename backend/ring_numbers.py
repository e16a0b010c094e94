"""dom0's rings by number, and where each counts.

Owns: which number is free, and whose each row of HOST's `backend` is (`common/machine_memory.py`).
Rule: counters outlive their ring, so that a disk that is connected again goes on with its own. Only
where no row is free is that of the disk taken which has been closed for the longest.
"""

import heapq

import numpy as np

from common.faults import LocalFault


class RingNumbers:
    """Numbers from 0 on, the lowest free one first. rows: BACKEND_RING; names: RING_NAME, whose
    each is, for who looks in; or None."""

    def __init__(self, rows: np.ndarray, names: np.ndarray | None = None) -> None:
        self._rows, self._names = rows, names
        self._free = list(range(len(rows)))
        self._closed = dict.fromkeys(np.flatnonzero(rows["domid"]).tolist())  # the oldest first
        self._row_of: dict[int, int] = {}  # by number

    def take(self, domid: int, device: int) -> tuple[int, np.ndarray]:
        """A number for a ring of that disk, and its BACKEND_COUNTERS (1,). Raises LocalFault."""
        if not self._free:
            raise LocalFault(f"more than {len(self._rows)} rings")
        number = heapq.heappop(self._free)
        self._row_of[number] = row = self._find(domid, device)
        if self._names is not None:
            self._names[number] = domid, device
        self._closed.pop(row, None)
        return number, self._rows["counters"][row : row + 1]

    def give_back(self, number: int) -> None:
        """The ring is no more."""
        heapq.heappush(self._free, number)
        self._closed[self._row_of.pop(number)] = None

    def _find(self, domid: int, device: int) -> int:
        rows = self._rows
        mine = (rows["domid"] == domid) & (rows["device"] == device)
        for those in (mine, rows["domid"] == 0):
            if those.any():
                row = int(np.argmax(those))
                break
        else:
            row = next(iter(self._closed))
            rows[row] = 0
        rows["domid"][row], rows["device"][row] = domid, device
        return row
