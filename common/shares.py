"""A guest's share of a thread's time, where one thread does what all guests ask for. The clock is
handed in.

Owns: what each guest has had lately. On Xen a guest's hypercall runs on its own vCPU's time, and
blkback's work for it is scheduled by dom0's kernel; here one thread makes everybody's calls, and
one does all handshakes.
Rule: a guest that has had more than a burst, beyond a SHARE-th of the time that passes, waits until
that is so no more, whether anybody else wants the time or not: it is not the only one on the CPUs.
"""

from typing import Final

SHARE: Final = 10  # one in so many nanoseconds


class Shares:
    """burst_ns: what is free, to who has not had any lately. Times are in nanoseconds, of any clock
    that never goes back."""

    def __init__(self, burst_ns: int) -> None:
        self._burst_ns = burst_ns
        self._debts: dict[int, tuple[int, int]] = {}  # the debt, and when it was that

    def charge(self, domid: int, used_ns: int, now_ns: int) -> int:
        """The guest had `used_ns` until now; how long it has to wait for more (0: not at all)."""
        debt, since = self._debts.get(domid, (0, now_ns))
        debt = max(0, debt - (now_ns - since) // SHARE) + used_ns
        self._debts[domid] = (debt, now_ns)
        return max(0, debt - self._burst_ns) * SHARE

    def forget(self, domid: int) -> None:
        """The domain is gone: a later one of its number owes nothing."""
        self._debts.pop(domid, None)
