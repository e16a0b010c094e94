"""A disk on its way into a running guest, or out of it: the sequence that `xl` goes through.

Owns: what is written to the store and what is waited for there, each as an order and a look, so
that who has other things to do waits for nothing; until when it may take; and what is undone.
Source: libxl's `device_addrm` and `libxl__initiate_device_generic_remove`.
    in   both directories in one transaction, state 1; then both ends Connected
    out  the backend's `online` 0 and `state` 5; then its `state` 6; then both directories go.
         Forced, the frontend's directory goes first, and no guest is asked.
Rules
1. A guest that does not answer holds up nobody: after PLUG_TIMEOUT_S the disk that was to come is
   taken away again, and one that was to go stays as it is, told to go.
2. What failed on its way in leaves nothing.
"""

import itertools
import time
from typing import Any, Final

from common.abi import SECTOR_SIZE
from common.xenbus import (
    CLOSED,
    CLOSING,
    CONNECTED,
    INITIALISING,
    STATE_NAMES,
    UNKNOWN,
    backend_path,
    frontend_path,
    parse_number,
    parse_state,
    shown,
)
from common.xenstore import XenStoreClient
from common.xenstore_talks import Outcome, ask, look, unwatch, watch
from machine.plug import Plugged, ask_to_unplug, forget_disk, plug_new
from toolstack.disks import device_of
from toolstack.failures import GuestFailed, MachineError

PLUG_TIMEOUT_S: Final = 10.0  # libxl's LIBXL_DESTROY_TIMEOUT
UNDO_TIMEOUT_S: Final = 1.0  # of a guest that was to have it: it may have seen it
AGAIN_MAX: Final = 50  # transactions of it that somebody else's writing may spoil
SECTORS_MAX: Final = (1 << 60) // SECTOR_SIZE

_serials = itertools.count(1)


class Plugging:
    """Disk `vdev` of guest `domid` on its way. ended: it has arrived, or it has failed and all is
    undone; failure: why; size: its bytes, once it has arrived.
    """

    def __init__(self, store: XenStoreClient, domid: int, vdev: str) -> None:
        self.domid, self.vdev, self.token = domid, vdev, f"plug-{next(_serials)}"
        self.device = device_of(vdev)
        self.late_at = time.monotonic() + PLUG_TIMEOUT_S
        self.ended, self.failure, self.size = False, "", 0
        self._guest_died = False
        self._store = store
        self._front, self._back = (
            frontend_path(domid, self.device),
            backend_path(domid, self.device),
        )
        self._looking, self._again, self._ending = False, False, False
        self._again_left = AGAIN_MAX
        self._watched: list[tuple[str, str]] = []
        self._states = INITIALISING, INITIALISING

    def __str__(self) -> str:
        return f"guest {self.domid}'s {self.vdev}"

    @property
    def place(self) -> tuple[int, str]:
        """Whose it is, and its vdev."""
        return self.domid, self.vdev

    @property
    def value(self) -> dict[str, Any]:
        """What is told of it once it has ended well."""
        return {"vdev": self.vdev, "size": self.size}

    def look(self) -> bool:
        """See Order: what goes on in the store is looked at with the machine's other disks'."""
        if self.ended and self.failure:
            raise self.error()
        return self.ended

    def guest_died(self, how: str) -> None:
        """It will not be, or go."""
        self._guest_died = True
        self.fail(how)

    def error(self) -> MachineError:
        """What its failure is."""
        return (GuestFailed if self._guest_died else MachineError)(self.failure)

    def stir(self) -> None:
        """Something has changed in its directories."""
        if self._ending or self._looking:
            self._again = True
            return
        self._looking, self._again = True, False
        paths = [f"{self._back}/{key}" for key in ("state", "error", "sectors")]
        paths += [f"{self._front}/{key}" for key in ("state", "error")]
        self._store.hold(look(paths), self._seen)

    def look_at_clock(self) -> None:
        """It may have taken too long."""
        if not self._ending and time.monotonic() >= self.late_at:
            self.fail(self.late())

    def late(self) -> str:
        """What is said of it then."""
        raise NotImplementedError

    def fail(self, why: str) -> None:
        """It cannot be."""
        raise NotImplementedError

    def judge(self, values: dict[str, bytes]) -> None:
        """What is there now."""
        raise NotImplementedError

    def _begin_to_watch(self) -> None:
        """Each watch brings an event at once."""
        for path in (self._back, self._front):
            self._watched.append((path, self.token))
            self._store.hold(ask(watch(path, self.token)), lambda _: None)

    def _seen(self, values: dict[str, bytes] | None) -> None:
        self._looking = False
        if self._ending:
            return
        if self._again or (values is None and self._whole()):
            self.stir()
        if values is not None:
            back, front = values.get(f"{self._back}/state"), values.get(f"{self._front}/state")
            self._states = parse_state(back), parse_state(front)
            self.judge(values)

    def _whole(self) -> bool:
        """May another transaction be tried? Its guest could spoil any number of them."""
        self._again_left -= 1
        return self._again_left > 0

    def _has_ended(self) -> None:
        self._ending = True
        for each in self._watched:
            self._store.hold(ask(unwatch(*each)), lambda _: None)
        self._watched.clear()
        self.ended = True

    def _take_away(self) -> None:
        """Both directories; then it has ended."""
        self._ending = True
        talk = forget_disk(self.domid, self.device, self._whole())
        self._store.hold(talk, self._taken_away)

    def _taken_away(self, outcome: Outcome) -> None:
        if outcome == "again":
            self._take_away()
        else:
            self._has_ended()

    def _ends(self) -> str:
        back, front = (STATE_NAMES[state] for state in self._states)
        return f"its frontend is {front}, its backend {back}"


class Attaching(Plugging):
    """One that is to come: `target` as `backend/plug.py` reads it."""

    def __init__(
        self, store: XenStoreClient, domid: int, vdev: str, target: str, read_only: bool
    ) -> None:
        super().__init__(store, domid, vdev)
        self._target, self._read_only = target, read_only
        self._plug()

    def _plug(self) -> None:
        talk = plug_new(self.domid, self._target, self.device, self._read_only)
        self._store.hold(talk, self._plugged)

    def _plugged(self, outcome: Plugged) -> None:
        if outcome == "again" and not self.failure:
            self._plug()
        elif outcome == "again":
            self._has_ended()
        elif outcome == "there":
            self.failure = f"{self} is there already"
            self._has_ended()
        else:
            self._begin_to_watch()
            if self.failure:
                self._undo()

    def look_at_clock(self) -> None:
        """See Plugging."""
        if not self.failure:
            super().look_at_clock()
        elif not self._ending and time.monotonic() >= self.late_at:
            self._take_away()

    def judge(self, values: dict[str, bytes]) -> None:
        """Has it arrived, or will it never?"""
        back, front = self._states
        if self.failure:
            if back in (UNKNOWN, CLOSED) or (back == CLOSING and front in (UNKNOWN, CLOSED)):
                self._take_away()
            return
        theirs, its = (values.get(f"{path}/error") for path in (self._back, self._front))
        if (back, front) == (CONNECTED, CONNECTED):
            sectors = parse_number(values.get(f"{self._back}/sectors"), SECTORS_MAX)
            self.size = (sectors or 0) * SECTOR_SIZE
            self._has_ended()
        elif back == UNKNOWN:
            self.fail(f"{self} was taken away while it was to come")
        elif theirs is not None and back in (INITIALISING, CLOSING, CLOSED):
            self.fail(f"{self} cannot be: {theirs.decode('latin-1')}")
        elif its is not None or front in (CLOSING, CLOSED):
            why = f": {shown(its)}" if its is not None else ""
            self.fail(f"{self} is not taken{why}: {self._ends()}")

    def late(self) -> str:
        """See Plugging."""
        return f"{self} is not Connected within {PLUG_TIMEOUT_S:g} s: {self._ends()}"

    def fail(self, why: str) -> None:
        """Take away what is there of it."""
        if self.failure:
            return
        self.failure, self.late_at = why, time.monotonic() + UNDO_TIMEOUT_S
        if self._watched:  # else its directories are being written
            self._undo()

    def _undo(self) -> None:
        """As one that is to go: who has seen it lets go of it."""
        talk = ask_to_unplug(self.domid, self.device, force=False, whole=self._whole())
        self._store.hold(talk, lambda outcome: self._undo() if outcome == "again" else self.stir())


class Detaching(Plugging):
    """One that is to go. force: whether its guest lets go of it or not."""

    def __init__(self, store: XenStoreClient, domid: int, vdev: str, force: bool) -> None:
        super().__init__(store, domid, vdev)
        self._force = force
        self._unplug()

    def _unplug(self) -> None:
        talk = ask_to_unplug(self.domid, self.device, self._force, self._whole())
        self._store.hold(talk, self._asked)

    def _asked(self, outcome: Outcome) -> None:
        if self._ending:
            return
        if outcome == "again":
            self._unplug()
        elif outcome == "gone":
            self.fail(f"{self} is not there")
        else:
            self._begin_to_watch()

    def judge(self, values: dict[str, bytes]) -> None:
        """Has its backend let go?"""
        if self._states[0] in (CLOSED, UNKNOWN):
            self._take_away()

    def late(self) -> str:
        """See Plugging."""
        advice = "" if self._force else "; --force takes it away"
        return f"{self} is not let go within {PLUG_TIMEOUT_S:g} s: {self._ends()}{advice}"

    def fail(self, why: str) -> None:
        """It stays, told to go; one that is forced goes from the store even so."""
        if not self._ending:
            self.failure = why
            if self._force and self._watched:
                self._take_away()
            else:
                self._has_ended()
