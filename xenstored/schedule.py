"""Who is served next: a pure core, whose clock is handed in.

Owns: which clients wait to be served, and the time that each domain has been served lately.
Rules: domain 0 goes first; while guests wait it stops after DOM0_SPELL_NS for one turn of a guest,
so that none of its own loops starves them. Of the guests the one with the least *debt* is next, of
equal ones who has waited longest. A debt is the time a domain was served for, and a SHARE-th of the
time that passes is paid off: a guest within its tenth of a CPU owes nothing and waits for nobody's
storm; one that is over it waits while others are not. One that owes DEBT_MAX_NS *rests* until it
owes less, whether others want to be served or not: they want the CPU, and what a guest writes keeps
dom0 busy, too.
The clients of one domain take turns.
"""

from collections.abc import Hashable
from typing import Final, Generic, TypeVar

from common.abi import DOMID_0

SHARE: Final = 10  # of one CPU, a guest's: one in so many nanoseconds
DEBT_MAX_NS: Final = 100_000_000
DOM0_SPELL_NS: Final = 20_000_000

Client = TypeVar("Client", bound=Hashable)


class Schedule(Generic[Client]):
    """The clients that wait. Times are in nanoseconds, of any clock that never goes back."""

    def __init__(self) -> None:
        self._waiting: dict[int, dict[Client, None]] = {}  # by domid, in the order they came
        self._debts: dict[int, tuple[int, int]] = {}  # the debt, and when it was that
        self._spell_ns = 0  # domain 0's, while guests waited

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, domid: int, client: Client) -> None:
        """`client` has something to be served; adding it twice is fine."""
        self._waiting.setdefault(domid, {})[client] = None

    def remove(self, domid: int, client: Client) -> None:
        """`client` has nothing to be served, or is gone."""
        clients = self._waiting.get(domid, {})
        clients.pop(client, None)
        if not clients:
            self._waiting.pop(domid, None)

    def forget(self, domid: int) -> None:
        """The domain is gone: a later one of its number owes nothing."""
        self._waiting.pop(domid, None)
        self._debts.pop(domid, None)

    def next(self, now_ns: int) -> tuple[int, Client] | None:
        """Who is served now, with its domid; it waits no longer. None: nobody that may be."""
        guests = [domid for domid in self._waiting if not self.rests(domid, now_ns)]
        guests = [domid for domid in guests if domid != DOMID_0]
        if not guests:
            self._spell_ns = 0
        if DOMID_0 in self._waiting and self._spell_ns < DOM0_SPELL_NS:
            domid = DOMID_0
        elif guests:
            self._spell_ns = 0
            domid = min(guests, key=lambda guest: self.debt(guest, now_ns))  # the first of equals
        else:
            return None
        client = next(iter(self._waiting[domid]))
        self.remove(domid, client)
        if domid in self._waiting:  # its other clients: behind the domains that have waited
            self._waiting[domid] = self._waiting.pop(domid)
        return domid, client

    def charge(self, domid: int, used_ns: int, now_ns: int) -> None:
        """The domain has been served for `used_ns`, until now."""
        if domid == DOMID_0:
            if any(waiting != DOMID_0 for waiting in self._waiting):
                self._spell_ns += used_ns
            return
        self._debts[domid] = (self.debt(domid, now_ns) + used_ns, now_ns)

    def rests(self, domid: int, now_ns: int) -> bool:
        """Does the domain owe too much to be served now?"""
        return self.debt(domid, now_ns) >= DEBT_MAX_NS

    def pause_ns(self, now_ns: int) -> int | None:
        """How long until one of those that wait may be served: 0 is now, None: nobody waits."""
        if not self._waiting:
            return None
        least = min(self.debt(domid, now_ns) for domid in self._waiting)
        return 0 if least < DEBT_MAX_NS else (least - DEBT_MAX_NS + 1) * SHARE

    def debt(self, domid: int, now_ns: int) -> int:
        """What the guest has had and not paid off yet."""
        debt, since = self._debts.get(domid, (0, now_ns))
        return max(0, debt - (now_ns - since) // SHARE)
