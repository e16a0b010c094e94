"""What a machine's toolstack does with a guest as a whole: pause, unpause, suspend, resume.

Owns: which order each word is, and who waits for it in a process that holds its machine itself.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final

from common.xenstore import XenStoreClient
from toolstack.disk import Guest
from toolstack.disks import Disk
from toolstack.failures import GuestFailed
from toolstack.orders import EVERY_S, Order
from toolstack.pausing import Pausing, Unpausing
from toolstack.supervisor import Supervisor
from toolstack.suspension import Resuming, Suspending

WORDS: Final = ("pause", "unpause", "suspend", "resume")


class Life:
    """Of guest `domid` with these disks. store: the toolstack's; blamed: what fails in it because
    something has died is told as that death."""

    def __init__(
        self,
        supervisor: Supervisor,
        store: XenStoreClient,
        blamed: Callable[[], AbstractContextManager[None]],
        domid: int,
        disks: Sequence[Disk],
    ) -> None:
        self._supervisor, self._store, self._blamed = supervisor, store, blamed
        self._name, self._disks = f"guest-{domid}", disks

    def begin(self, word: str) -> Order:
        """The order, one of WORDS, has begun. Raises GuestFailed, MachineError."""
        child = self._supervisor.children[self._name]
        if child.death:
            raise GuestFailed(child.death)
        if word in ("pause", "unpause"):
            return Pausing(child) if word == "pause" else Unpausing(child)
        order = Suspending if word == "suspend" else Resuming
        return order(self._supervisor, self._store, self._name, self._disks)

    def do(self, word: str) -> None:
        """Begin it, and wait until it is done. Raises GuestFailed, MachineError."""
        with self._blamed():
            order = self.begin(word)
            while not order.look():
                self._supervisor.check()
                time.sleep(EVERY_S)


class LivingGuest(Guest):
    """A guest whose machine is held by this process."""

    def __init__(
        self, ask: Callable[..., Any], disks: Sequence[Disk], sizes: Sequence[int], life: Life
    ) -> None:
        super().__init__(ask, disks, sizes)
        self._life = life
        self.begin = life.begin

    def pause(self) -> None:
        """Its process does not run on return (docs/lives.md)."""
        self._life.do("pause")

    def unpause(self) -> None:
        """It goes on."""
        self._life.do("unpause")

    def suspend(self) -> None:
        """Its disks are closed: no new requests, and those on the rings are kept, not waited for.

        Nothing of the guest is granted or bound on return. Raises MachineError.
        """
        self._life.do("suspend")

    def resume(self) -> None:
        """All is granted and bound anew, and what was kept goes on. Raises MachineError."""
        self._life.do("resume")
