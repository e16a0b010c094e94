"""A guest's share of the hypervisor's time: one thread makes everybody's calls. The clock is handed
in.

Owns: what each guest has had lately. On Xen a guest's hypercall runs on its own vCPU's time; here
its calls are made by the thread that makes dom0's.
Rule: a guest that has had more than a burst, beyond a SHARE-th of the time that passes, waits with
its next call until that is so no more. Domain 0 is never charged.
"""

from typing import Final

SHARE: Final = 10  # one in so many nanoseconds
BURST_NS: Final = 2_000_000  # a handshake's calls and more


class Shares:
    """Times are in nanoseconds, of any clock that never goes back."""

    def __init__(self) -> None:
        self._debts: dict[int, tuple[int, int]] = {}  # the debt, and when it was that

    def charge(self, domid: int, used_ns: int, now_ns: int) -> int:
        """The guest had `used_ns` until now; how long its next call has to wait (0: not at all)."""
        debt, since = self._debts.get(domid, (0, now_ns))
        debt = max(0, debt - (now_ns - since) // SHARE) + used_ns
        self._debts[domid] = (debt, now_ns)
        return max(0, debt - BURST_NS) * SHARE

    def forget(self, domid: int) -> None:
        """The domain is gone: a later one of its number owes nothing."""
        self._debts.pop(domid, None)
