"""The machine's memory: each segment made, mapped here, and its descriptor kept for dom0.

Owns: the segments' descriptors, by domid and name: to be handed over at a domain's birth, and to
dom0 when it asks (`hypervisor/domctl.py` says for which).
"""

import os

import numpy as np

from common.abi import XEN_PAGE_SIZE
from common.machine_memory import MACHINE_SEGMENTS, whole_pages
from common.memory import create_segment, map_segment
from common.trace_log import STATS_BYTES
from hypervisor.domains import DomainMemory


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

    def make_domain(
        self, domid: int, ram_frames: int, grant_frames: int, counts: bool = True
    ) -> DomainMemory:
        """A new domain's; counts: it has something to count. Raises SharedMemoryError, OSError, and
        then there is nothing.
        """
        try:
            if counts:
                self.make(domid, "stats", STATS_BYTES)
            return DomainMemory(
                self.make(domid, "ram", ram_frames * XEN_PAGE_SIZE),
                self.make(domid, "grant", grant_frames * XEN_PAGE_SIZE),
                self.make(domid, "event", 2 * XEN_PAGE_SIZE),
            )
        except BaseException:
            self.forget(domid)
            raise

    def descriptor(self, domid: int, name: str) -> int | None:
        """Its descriptor, which stays ours, or None; `domid` is 0 for the machine's segments."""
        return self._descriptors.get((0 if name in MACHINE_SEGMENTS else domid, name))

    def forget(self, domid: int) -> None:
        """The domain is gone."""
        for key in [key for key in self._descriptors if key[0] == domid]:
            os.close(self._descriptors.pop(key))
