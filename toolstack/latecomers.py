"""Guests that come to a running machine and leave it again, before its end.

Owns: who they are, and the order in which one comes and goes. The machine's loads and results do
not know them.
"""

import time
from typing import Final

from common.xenstore import XenStoreClient
from machine.plug import XVDA
from toolstack.birth import ANSWER_TIMEOUT_S, Builder, DomidTaken
from toolstack.guest_stats import GuestStats
from toolstack.supervisor import Supervisor
from toolstack.vbd_config import create_vbd, forget_domain

DOMID_FREE_TIMEOUT_S: Final = 10.0  # xenstored and dom0 let go of whoever had it
RETRY_S: Final = 0.002


class Latecomers:
    """store: the toolstack's; disk_mib: of each one's disk."""

    def __init__(
        self, builder: Builder, supervisor: Supervisor, store: XenStoreClient, disk_mib: int
    ) -> None:
        self._builder, self._supervisor = builder, supervisor
        self._store, self._disk_mib = store, disk_mib
        self.stats: dict[int, GuestStats] = {}

    def add(self, domid: int, attack: str = "") -> None:
        """Make, introduce and fork a guest with a disk; an honest one is Connected on return, one
        that is to `attack` (hostile/attacks.py) has said that it is up.

        Waits a while for a domid that is not free yet. Raises MachineError.
        """
        descriptors = self._made(domid)
        self.stats[domid] = self._builder.stats(domid)
        create_vbd(self._store, domid, self._disk_mib)
        name = f"guest-{domid}"
        self._builder.start_guest(domid, name, XVDA, descriptors, attack)
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
        del self.stats[domid]
        self._builder.forget(domid)
        return death

    def remove_all(self) -> None:
        """End whoever is still there."""
        for domid in list(self.stats):
            self.remove(domid)
