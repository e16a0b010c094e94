"""The segments a machine is made of, what is where in them, and how a process gets hold of one.

Owns: the layout of the shared segments that are not Xen's own, and the client of the hypervisor's
memory service: a process asks, over the unix socket that *is* its domain, for a segment, and gets a
file descriptor. No segment has a name that could be left behind.

Segments of each domain: `ram` (its frames), `grant` (grant-table frames: domain and hypervisor
only), `event` (shared-info page, then the far ends' words), `stats` (what the guest counts).
Segments of the machine: `host` (what hypervisor and dom0 count, and the CPUs' state),
`accessed` (four u64 a maptrack handle), `gate` (dom0's posted hypercalls).
"""

import os
import socket
import time
from typing import Final

import numpy as np

from common.abi import XEN_PAGE_SIZE
from common.counters import (
    BACKEND_COUNTERS,
    CPU_COUNTERS,
    FRONTEND_COUNTERS,
    HYPERVISOR_COUNTERS,
)
from common.histogram import BUCKETS
from common.memory import Segment

GUESTS_MAX: Final = 64
CPUS_MAX: Final = 256
MAPTRACK_HANDLES_MAX: Final = 1024 * 256  # Xen's default: 1,024 frames of 256 entries

DOMAIN_SEGMENTS: Final = ("ram", "grant", "event", "stats")
MACHINE_SEGMENTS: Final = ("host", "accessed", "gate")

REQUEST: Final = np.dtype([("domid", "<u2"), ("pad", "<u2"), ("segment", "S12")])
GRANTED: Final = b"+"
REFUSED: Final = b"-"

STATS: Final = np.dtype(
    [("counters", FRONTEND_COUNTERS), ("latency", "<u8", (BUCKETS,))],
)

HOST: Final = np.dtype(
    [
        ("hypervisor", HYPERVISOR_COUNTERS, (GUESTS_MAX + 1,)),
        ("backend", BACKEND_COUNTERS, (GUESTS_MAX + 1,)),
        ("cpus", CPU_COUNTERS, (CPUS_MAX,)),
        ("dirty", "<u4", (CPUS_MAX,)),
        ("running", "<u4", (CPUS_MAX,)),
    ]
)


def whole_pages(nbytes: int) -> int:
    """`nbytes` rounded up to whole pages."""
    return -(-nbytes // XEN_PAGE_SIZE) * XEN_PAGE_SIZE


def memory_address(run_dir: str, domid: int) -> str:
    """The unix socket of a domain's memory service."""
    return os.path.join(run_dir, f"memory-{domid}")


def stats_of(segment: Segment) -> np.ndarray:
    """The STATS record, shape (1,), of a `stats` segment."""
    return segment.bytes[: STATS.itemsize].view(STATS)


def host_of(segment: Segment) -> np.ndarray:
    """The HOST record, shape (1,), of the `host` segment."""
    return segment.bytes[: HOST.itemsize].view(HOST)


class SegmentRefused(Exception):
    """A segment was asked for and refused."""


class MachineMemory:
    """This process's view of the machine's segments, as domain `domid`; each is mapped once."""

    def __init__(self, run_dir: str, domid: int) -> None:
        self._address = memory_address(run_dir, domid)
        self._segments: dict[tuple[int, str], Segment] = {}

    def segment(self, name: str, domid: int = 0) -> Segment:
        """The segment `name`, of domain `domid` where it is a domain's.

        Raises SegmentRefused if this domain may not have it, or there is none.
        """
        key = (domid, name)
        if key not in self._segments:
            self._segments[key] = Segment(self._request(name, domid))
        return self._segments[key]

    def _request(self, name: str, domid: int) -> int:
        request = np.zeros(1, REQUEST)
        request["domid"], request["segment"] = domid, name.encode()
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
            connection.settimeout(10)
            connection.connect(self._address)
            connection.send(request.tobytes())
            answer, fds, _, _ = socket.recv_fds(connection, 1, 1)
        if answer != GRANTED or len(fds) != 1:
            raise SegmentRefused(f"segment '{name}' of domain {domid} was refused")
        os.set_inheritable(fds[0], False)
        return fds[0]

    def forget(self, domid: int) -> None:
        """Give up the segments of a domain that is gone."""
        for key in [key for key in self._segments if key[0] == domid]:
            self._segments.pop(key).close()


def wait_for_socket(path: str, timeout_s: float) -> bool:
    """Has the socket `path` appeared within `timeout_s`?"""
    deadline = time.monotonic() + timeout_s
    while not os.path.exists(path):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.002)
    return True
