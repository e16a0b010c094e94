"""The machine's memory: each segment made, mapped here, and its descriptor kept for dom0.

Owns: the segments' descriptors, by domid and name: to be handed over at a domain's birth, and to
dom0 when it asks (`hypervisor/domctl.py` says for which).
"""

import os

import numpy as np

from common.machine_memory import MACHINE_SEGMENTS, whole_pages
from common.memory import create_segment, map_segment


class Segments:
    """All segments of the machine `topology_id`."""

    def __init__(self, topology_id: str) -> None:
        self._topology_id = topology_id
        self._descriptors: dict[tuple[int, str], int] = {}

    def make(self, domid: int, name: str, nbytes: int) -> np.ndarray:
        """A new zeroed segment, mapped: u8, whole pages. Raises SharedMemoryError."""
        fd = create_segment(f"grantlab-{self._topology_id}-{domid}-{name}", whole_pages(nbytes))
        self._descriptors[domid, name] = fd
        return map_segment(os.dup(fd))

    def descriptor(self, domid: int, name: str) -> int | None:
        """Its descriptor, which stays ours, or None; `domid` is 0 for the machine's segments."""
        return self._descriptors.get((0 if name in MACHINE_SEGMENTS else domid, name))

    def forget(self, domid: int) -> None:
        """The domain is gone."""
        for key in [key for key in self._descriptors if key[0] == domid]:
            os.close(self._descriptors.pop(key))
