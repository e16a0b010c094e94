"""dom0's end of one disk without dom0: the real driver and hands, driven by a test."""

import itertools
import queue
from collections.abc import Callable

from backend.stores import RamStore
from backend.vbd import BackendVbd
from common.handshake import Event, Leave, Stirred
from common.xenstore import XenStoreClient
from machine.connection import BackendOptions, Connection, Place
from machine.seat import Seat

ENDS_S = 120.0  # a ring; its thread may have to compile


class BackDisk(BackendVbd):
    """`reports`: what the ring's thread has to say, for the test to call or to keep back."""

    def __init__(
        self, store: XenStoreClient, place: Place, disk: RamStore, options: BackendOptions
    ) -> None:
        numbers = itertools.count(1)
        super().__init__(place.domid, place.device, disk.nr_sectors, options.persistent, numbers)
        self.reports: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._store, self._disk = store, disk
        hands = Connection(place, disk, options, self.reports.put)
        self._seat = Seat(self, store, hands)
        self._watch = (f"{self.other}/state", f"{place.domid}/{place.device}")
        store.watch(*self._watch)

    def settle(self, event: Event | None = None) -> None:
        """Take every step that is due, after `event` if there is one."""
        self._seat.tell(event or Stirred())
        self.finish()

    def finish(self) -> None:
        """Go on with what has begun until it waits for nothing."""
        while self.awaited:
            if self.awaited == self.serving:
                self.reports.get(timeout=ENDS_S)()
            else:
                self._store.receive(None)

    def close(self) -> None:
        """dom0 forgets this disk."""
        self.settle(Leave())
        self._store.unwatch(*self._watch)
        self._disk.close()
