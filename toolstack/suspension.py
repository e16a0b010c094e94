"""Suspend and resume of a guest, as before and after a migration.

Owns: when either is done: a guest is told and does not answer, as it may be in the middle of a load
that goes on after both; the states of its disks in the store say it.
"""

import time
from collections.abc import Sequence
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
from toolstack.disks import Disk
from toolstack.failures import GuestFailed, MachineError
from toolstack.hold import SUSPENDED, TO_RESUME, TO_SUSPEND
from toolstack.supervisor import Supervisor

TIMEOUT_S: Final = 30.0
PAUSE_S: Final = 0.002  # between two looks into the store at first,
PAUSE_S_MAX: Final = 0.05  # and later


class Suspending:
    """An order: to suspend `guest`, which has these disks: they are closed; no new requests, and
    those on the rings are kept, not waited for. Nothing of it is granted or bound then.

    Raises MachineError. store: the toolstack's.
    """

    value: Any = None
    word, being, state = "suspend", TO_SUSPEND, CLOSED

    def __init__(
        self, supervisor: Supervisor, store: XenStoreClient, guest: str, disks: Sequence[Disk]
    ) -> None:
        self._supervisor, self._store, self._guest = supervisor, store, guest
        self._child = supervisor.children[guest]
        self._require()
        supervisor.send(guest, self.word)
        self._child.hold.begin(self.being)
        self._deadline = time.monotonic() + TIMEOUT_S
        self._next_s, self._pause_s = 0.0, PAUSE_S
        self._online = {}  # by the state that is waited for
        for disk in disks:
            front, back = (p(disk.domid, disk.device) for p in (frontend_path, backend_path))
            for path in (front, back):
                self._online[f"{path}/state"] = f"{back}/online"
        self._left = list(self._online)

    def look(self) -> bool:
        """See Order."""
        try:
            done = self._look()
        except BaseException:
            self._child.hold.end(self.being)
            raise
        if done:
            self._child.hold.end(self.being)
            self._finish()
        return done

    def _look(self) -> bool:
        if death := self._supervisor.death_of(self._guest):
            raise GuestFailed(death)
        if time.monotonic() < self._next_s:
            return False
        self._pause_s = min(self._pause_s * 1.5, PAUSE_S_MAX)
        self._next_s = time.monotonic() + self._pause_s
        while self._left and self._is_so(self._left[0]):
            self._left.pop(0)
        if self._left and time.monotonic() > self._deadline:
            raise MachineError(f"{self._left[0]} does not become {STATE_NAMES[self.state]}")
        return not self._left

    def _is_so(self, path: str) -> bool:
        """Also where there is no such disk any more."""
        there = self._store.read_or_none(path)
        return there is None or parse_state(there) == self.state

    def _require(self) -> None:
        """Raises MachineError unless it can be told so."""

    def _finish(self) -> None:
        self._child.hold.begin(SUSPENDED)


class Resuming(Suspending):
    """An order: all of it is granted and bound anew, and what was kept goes on. See Suspending."""

    word, being, state = "resume", TO_RESUME, CONNECTED

    def _is_so(self, path: str) -> bool:
        """Also of a disk that is to go, and does not begin again."""
        return super()._is_so(path) or self._store.read_or_none(self._online[path]) == b"0"

    def _require(self) -> None:
        self._child.hold.allow(self.word)
        self._child.hold.require(SUSPENDED)

    def _finish(self) -> None:
        self._child.hold.end(SUSPENDED)
