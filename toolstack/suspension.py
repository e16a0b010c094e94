"""Suspend and resume of a guest, as before and after a migration.

Owns: when either is done: a guest is told and does not answer, as it may be in the middle of a load
that goes on after both; the states of its disks in the store say it.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final

from common.xenbus import (
    CLOSED,
    CONNECTED,
    STATE_NAMES,
    backend_path,
    frontend_path,
    parse_state,
)
from common.xenstore import XenStoreClient
from toolstack.disk import Guest
from toolstack.disks import Disk
from toolstack.failures import GuestFailed, MachineError
from toolstack.supervisor import Supervisor

TIMEOUT_S: Final = 30.0
LOOK_S: Final = 0.002


class Suspension:
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

    def suspend(self) -> None:
        """Its disks are closed: no new requests, and those on the rings are kept, not waited for.

        Nothing of the guest is granted or bound on return. Raises MachineError.
        """
        self._tell("suspend", CLOSED)

    def resume(self) -> None:
        """All is granted and bound anew, and what was kept goes on. Raises MachineError."""
        self._tell("resume", CONNECTED)

    def _tell(self, word: str, state: int) -> None:
        with self._blamed():
            self._supervisor.send(self._name, word)
            deadline = time.monotonic() + TIMEOUT_S
            for disk in self._disks:
                for path in (frontend_path, backend_path):
                    self._await(f"{path(disk.domid, disk.device)}/state", state, deadline)

    def _await(self, path: str, state: int, deadline: float) -> None:
        while not self._store.exists(path) or parse_state(self._store.read(path)) != state:
            self._supervisor.check()
            if death := self._supervisor.death_of(self._name):
                raise GuestFailed(death)
            if time.monotonic() > deadline:
                raise MachineError(f"{path} does not become {STATE_NAMES[state]}")
            time.sleep(LOOK_S)


class SuspendableGuest(Guest):
    """A guest whose machine is held by this process."""

    def __init__(
        self,
        ask: Callable[..., Any],
        domid: int,
        disks: Sequence[Disk],
        sizes: Sequence[int],
        suspension: Suspension,
    ) -> None:
        super().__init__(ask, domid, disks, sizes)
        self.suspend, self.resume = suspension.suspend, suspension.resume
