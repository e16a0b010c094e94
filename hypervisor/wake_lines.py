"""The pipes of `--events pipe`: made when a port is allocated, handed to its two ends.

Owns: the far end's two descriptors, between EVTCHNOP_alloc_unbound and EVTCHNOP_bind_interdomain.
Rules: a pipe each way, so that each end has descriptions of its own; the hypervisor keeps none of
what it has handed over. A guest can leave ports unbound: WAITING_MAX of them, each holding two
descriptors here.
"""

import os
from typing import Final

WAITING_MAX: Final = 16  # unbound ports of one domain, with `--events pipe`


class WakeLines:
    """The far ends that wait to be bound, by domid and port of the allocating end."""

    def __init__(self) -> None:
        self._waiting: dict[tuple[int, int], tuple[int, int]] = {}

    def room(self, domid: int) -> bool:
        """May `domid` have another unbound port?"""
        return sum(owner == domid for owner, _ in self._waiting) < WAITING_MAX

    def make(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Two ends, each (to read, to write). Raises OSError."""
        near_reads, far_writes = os.pipe()
        try:
            far_reads, near_writes = os.pipe()
        except OSError:
            os.close(near_reads)
            os.close(far_writes)
            raise
        return (near_reads, near_writes), (far_reads, far_writes)

    def keep(self, domid: int, port: int, far: tuple[int, int]) -> None:
        """`far` is for whoever binds to this new port."""
        self.close(domid, port)
        self._waiting[domid, port] = far

    def take(self, domid: int, port: int) -> tuple[int, int] | None:
        """The port is being bound: the far end's descriptors; None if they have been taken."""
        return self._waiting.pop((domid, port), None)

    def close(self, domid: int, port: int) -> None:
        """The port is closed: nobody will bind to it."""
        for fd in self._waiting.pop((domid, port), ()):
            os.close(fd)

    def forget(self, domid: int) -> None:
        """All ports of the domain are closed."""
        for owner, port in list(self._waiting):
            if owner == domid:
                self.close(owner, port)
