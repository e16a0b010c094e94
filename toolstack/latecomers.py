"""Guests that come to a running machine and leave it again, before its end.

Owns: who they are, and the order in which one comes and goes. The machine's loads and results do
not know them.
"""

import time
from typing import Final

from common.xenstore import XenStoreClient
from toolstack.birth import ANSWER_TIMEOUT_S, Builder, DomidTaken
from toolstack.disks import Disk, DiskSpec, disks_of
from toolstack.guest_stats import GuestStats
from toolstack.stores import Stores
from toolstack.supervisor import Supervisor
from toolstack.vbd_config import forget_domain, plug_in

DOMID_FREE_TIMEOUT_S: Final = 10.0  # xenstored and dom0 let go of whoever had it
RETRY_S: Final = 0.002


class Latecomers:
    """store: the toolstack's."""

    def __init__(
        self, builder: Builder, supervisor: Supervisor, store: XenStoreClient, stores: Stores
    ) -> None:
        self._builder, self._supervisor = builder, supervisor
        self._store, self._stores = store, stores
        self._disks: dict[int, list[Disk]] = {}
        self.stats: dict[int, GuestStats] = {}

    def add(self, domid: int, disk_mib: int, attack: str = "") -> None:
        """Make, introduce and fork a guest with a ram disk; an honest one is Connected on return,
        one that is to `attack` (hostile/attacks.py) has said that it is up.

        Waits a while for a domid that is not free yet. Raises MachineError.
        """
        descriptors = self._made(domid)
        self.stats[domid] = self._builder.stats(domid)
        disks = self._disks[domid] = disks_of(domid, [DiskSpec(target=f"ram:{disk_mib}m")])
        self._stores.give(disks)
        plug_in(self._store, disks)
        name = f"guest-{domid}"
        self._builder.start_guest(domid, name, disks, descriptors, attack=attack)
        self._supervisor.expect(name, ANSWER_TIMEOUT_S)
        if not attack:
            self._supervisor.send(name, "connect")
            self._supervisor.expect(name, ANSWER_TIMEOUT_S)

    def _made(self, domid: int) -> list[int]:
        deadline = time.monotonic() + DOMID_FREE_TIMEOUT_S
        while True:
            try:
                return self._builder.create_domain(domid)
            except DomidTaken:
                if time.monotonic() > deadline:
                    raise
                time.sleep(RETRY_S)

    def death_of(self, domid: int) -> str:
        """How it died, as far as has been seen; "" while it lives."""
        return self._supervisor.death_of(f"guest-{domid}")

    def remove(self, domid: int) -> str:
        """End a guest without asking it, and what the store has of it; how it had died before, or
        ""."""
        death = self._supervisor.end(f"guest-{domid}")
        forget_domain(self._store, domid)
        self._stores.forget(self._disks.pop(domid))
        del self.stats[domid]
        self._builder.forget(domid)
        return death

    def remove_all(self) -> None:
        """End whoever is still there."""
        for domid in list(self.stats):
            self.remove(domid)
