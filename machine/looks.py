"""dom0's looks at its disks: whose turn it is, how many are on their way, and a disk's seat.

Owns: that one guest's storm costs the others a look between two of theirs, and that a look whose
answer is slow holds up its own disk alone. Times come from `time.monotonic_ns`.
"""

import time
from collections.abc import Callable
from typing import Final

from backend.due import Due, Key
from backend.plug import Plug
from backend.store_jobs import LaterStore
from backend.stores import Store
from backend.vbd import BackendVbd
from common.handshake import Event, Intent, Look
from common.shares import Shares
from machine.seat import Hands, Seat, Storing

LOOKS_BURST_NS: Final = 300_000_000  # ten handshakes and more
LOOK_NS: Final = 600_000  # what a look costs here and in xenstored, besides what follows from it
LOOKS_MAX: Final = 8  # on their way at a time: the rest have their turns


class Looks:
    """What is due, and what its guests have had of dom0's time."""

    def __init__(self) -> None:
        self._due, self._shares = Due(), Shares(LOOKS_BURST_NS)
        self._under_way = 0

    def add(self, key: Key) -> None:
        """Have `key` looked at, when it is its turn."""
        self._due.add(key)

    def hurry(self, domid: int) -> None:
        """What is due is not the guest's own doing: it need not wait."""
        self._due.hurry(domid)

    def pause_ms(self) -> int | None:
        """How long until a look may be taken; None: not before something comes."""
        if self._under_way >= LOOKS_MAX:
            return None
        pause_ns = self._due.pause_ns(time.monotonic_ns())
        return None if pause_ns is None else -(-pause_ns // 1_000_000)

    def take(self) -> Key | None:
        """Whose turn it is, if anybody's; it is charged for."""
        if self._under_way >= LOOKS_MAX or (key := self._due.take(time.monotonic_ns())) is None:
            return None
        self.charge(key, LOOK_NS)
        return key

    def begin(self) -> None:
        """A look is on its way."""
        self._under_way += 1

    def end(self) -> None:
        """It is answered."""
        self._under_way -= 1

    def charge(self, key: Key, used_ns: int) -> None:
        """Its guest has had so much of our time."""
        now_ns = time.monotonic_ns()
        if rest_ns := self._shares.charge(key[0], used_ns, now_ns):
            self._due.rest(key[0], now_ns + rest_ns)

    def forget(self, domid: int) -> None:
        """The guest has no disk any more."""
        self._shares.forget(domid)


class DiskSeat(Seat):
    """One disk of dom0's. plug: what it was begun with; dropped: it is dom0's no more; at_rest:
    told of it whenever it waits for nothing.
    """

    vbd: BackendVbd

    def __init__(
        self,
        looks: Looks,
        key: Key,
        plug: Plug,
        disk: Store | LaterStore,
        vbd: BackendVbd,
        store: Storing,
        hands: Hands,
        at_rest: Callable[["DiskSeat"], None],
    ) -> None:
        super().__init__(vbd, store, hands)
        self.key, self.plug, self.disk = key, plug, disk
        self.dropped = False
        self._looks, self._at_rest = looks, at_rest
        self._wanted: Look | None = None  # taken when it is its turn

    def tell(self, event: Event) -> None:
        """As any seat; the time is its guest's."""
        if self.dropped:
            return
        began_ns = time.thread_time_ns()  # what others have of the CPU is not the guest's to pay
        super().tell(event)
        self._looks.charge(self.key, time.thread_time_ns() - began_ns)
        if not self.vbd.awaited:
            self._at_rest(self)

    def do(self, intent: Intent) -> None:
        """As any seat, but for a look."""
        if isinstance(intent, Look):
            self._wanted = intent
            self._looks.add(self.key)
        else:
            super().do(intent)

    def take_look(self) -> None:
        """It is its turn, if it wants one."""
        wanted, self._wanted = self._wanted, None
        if wanted is not None:
            self._looks.begin()
            super().do(wanted)

    def _looked(self, number: int, values: dict[str, bytes] | None) -> None:
        self._looks.end()
        super()._looked(number, values)
