"""The segments a machine is made of, and what is where in those that are not Xen's own.

Owns: the layout of `stats` and `host`, and dom0's way to get hold of a segment: it asks the
hypervisor (`Hypercalls.get_memory`), which answers with a descriptor. No segment has a name that
could be left behind. A guest is born with its own mapped, and asks for nothing.

Segments of each domain: `ram` (its frames), `grant` (grant-table frames: domain and hypervisor
only), `event` (shared-info page, then the far ends' words), `stats` (what the guest counts).
Segments of the machine: `host` (what hypervisor and dom0 count, and the CPUs' state), `accessed`
(four u64 a maptrack handle), `gate` (dom0's posted hypercalls), `trace` (`common/trace_log.py`).
"""

import os
from typing import Final

import numpy as np

from common.abi import XEN_PAGE_SIZE
from common.counters import (
    BACKEND_COUNTERS,
    CPU_COUNTERS,
    FRONTEND_COUNTERS,
    HYPERVISOR_COUNTERS,
    OPERATIONS,
)
from common.histogram import BUCKETS
from common.hypercall import Hypercalls
from common.memory import map_segment

GUESTS_MAX: Final = 64
DISKS_MAX: Final = 16  # of a guest
RINGS_MAX: Final = GUESTS_MAX * DISKS_MAX
CPUS_MAX: Final = 256
MAPTRACK_HANDLES_MAX: Final = 1024 * 256  # Xen's default: 1,024 frames of 256 entries

DOMAIN_SEGMENTS: Final = ("ram", "grant", "event", "stats")  # in this order at a domain's birth
MACHINE_SEGMENTS: Final = ("host", "accessed", "gate", "trace")

# What a guest counts, by disk number.
STATS: Final = np.dtype(
    [
        ("counters", FRONTEND_COUNTERS, (DISKS_MAX,)),
        ("latency", "<u8", (DISKS_MAX, len(OPERATIONS), BUCKETS)),
    ],
)

# A row of dom0's rings; domid 0: it is free.
BACKEND_RING: Final = np.dtype(
    [("domid", "<u4"), ("device", "<u4"), ("counters", BACKEND_COUNTERS)]
)

HOST: Final = np.dtype(
    [
        ("hypervisor", HYPERVISOR_COUNTERS, (GUESTS_MAX + 1,)),
        ("backend", BACKEND_RING, (RINGS_MAX,)),
        ("cpus", CPU_COUNTERS, (CPUS_MAX,)),
        ("dirty", "<u4", (CPUS_MAX,)),
        ("running", "<u4", (CPUS_MAX,)),
    ]
)


def whole_pages(nbytes: int) -> int:
    """`nbytes` rounded up to whole pages."""
    return -(-nbytes // XEN_PAGE_SIZE) * XEN_PAGE_SIZE


def stats_of(segment: np.ndarray) -> np.ndarray:
    """The STATS record, shape (1,), of a `stats` segment (u8)."""
    return segment[: STATS.itemsize].view(STATS)


def host_of(segment: np.ndarray) -> np.ndarray:
    """The HOST record, shape (1,), of the `host` segment (u8)."""
    return segment[: HOST.itemsize].view(HOST)


def backend_ring(host: np.void, domid: int, device: int) -> np.ndarray | None:
    """What dom0 counts for a disk's ring: BACKEND_COUNTERS (1,), a view; None if it never had one.

    host: the HOST record.
    """
    rows = host["backend"]
    (found,) = np.nonzero((rows["domid"] == domid) & (rows["device"] == device))
    return rows["counters"][found[0] : found[0] + 1] if domid and len(found) else None


def backend_sum(host: np.void, domid: int) -> np.ndarray:
    """What dom0 counts for all rings of a guest together: BACKEND_COUNTERS (1,), a copy.

    Of `persistent_max`, the largest tree, it is the largest.
    """
    rows = host["backend"]
    counters, together = rows["counters"][rows["domid"] == domid], np.zeros(1, BACKEND_COUNTERS)
    for name in BACKEND_COUNTERS.names or ():
        over = np.max if name == "persistent_max" else np.sum
        together[name] = over(counters[name], initial=0)
    return together


class MachineMemory:
    """dom0's view of the machine's segments; each is asked for, and mapped, once."""

    def __init__(self, hypercalls: Hypercalls) -> None:
        self._hypercalls = hypercalls
        self._mapped: dict[tuple[int, str], np.ndarray] = {}
        self._descriptors: dict[tuple[int, str], int] = {}

    def segment(self, name: str, domid: int = 0) -> np.ndarray:
        """All of segment `name` (u8), of domain `domid` where it is a domain's.

        Raises HypercallError if there is no such domain or segment.
        """
        key = (domid, name)
        if key not in self._mapped:
            self._mapped[key] = map_segment(self._hypercalls.get_memory(domid, name))
        return self._mapped[key]

    def descriptor(self, name: str, domid: int) -> int:
        """The same, to map single frames of. Stays open until `forget`."""
        key = (domid, name)
        if key not in self._descriptors:
            self._descriptors[key] = self._hypercalls.get_memory(domid, name)
        return self._descriptors[key]

    def forget(self, domid: int) -> None:
        """Give up the segments of a domain that is gone; a mapping goes with its last view."""
        for key in [key for key in self._mapped if key[0] == domid]:
            del self._mapped[key]
        for key in [key for key in self._descriptors if key[0] == domid]:
            os.close(self._descriptors.pop(key))
