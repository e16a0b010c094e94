"""The disks that a guest's process has: those it is born with, and those that come and go.

Owns: the watch on the guest's own `device/vbd`, and which disk has which place in its RAM. A
directory that appears there, with a `backend` and the `state` 1, is a disk, as it is to Linux's
xenbus; one whose directory is gone ends as one whose backend is gone, and leaves its place once
nothing of it is granted any more.
Rules
1. What an event names is looked at, and nobody waits for the answer: loads on other disks go on.
2. A disk's number is its vdev's, from xvda = 0 on: it is the same for the toolstack, which need not
   be asked.
3. One that has come is used from when its backend can be woken.
"""

import heapq
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Final, NamedTuple

from common.control import CommandError, one_line
from common.handshake import Stirred
from common.machine_memory import DISKS_MAX
from common.xenbus import (
    CLOSED,
    INITIALISING,
    XVD_MAJOR,
    disk_name,
    frontend_path,
    parse_number,
    parse_state,
)
from common.xenstore import XenStoreClient, XenStoreError
from common.xenstore_exchange import Talk
from common.xenstore_talks import ask, directory, look, watch, write_if_there
from frontend.driver import Driver
from machine.guest_disk import GuestDisk

DEVICES: Final = "devices"  # the token of the watch on all of them; a disk's own is "backend-..."
COMING_MS: Final = 2  # between two looks whether a backend can be woken
DEVICE_MAX: Final = 0xFFFFFFFF


class Place(NamedTuple):
    """Of a disk: which part of the guest's RAM, its number, device, and its backend's directory."""

    which: int
    number: int
    device: int
    backend: str


def number_of(device: int) -> int | None:
    """A whole disk's, xvda..xvdp; None of any other device."""
    whole = device >> 8 == XVD_MAJOR and not device & 0xF
    return (device >> 4) & 0xF if whole and (device >> 4) & 0xF < DISKS_MAX else None


class GuestDisks(Mapping[int, GuestDisk]):
    """By number. places: how many there is room for; make: a disk in its place, whose handshake
    begins; busy: does anybody use it?
    """

    def __init__(
        self,
        domid: int,
        places: int,
        store: XenStoreClient,
        driver: Driver,
        make: Callable[[Place], GuestDisk],
    ) -> None:
        self.busy: Callable[[GuestDisk], bool] = lambda _: False
        self._root = f"/local/domain/{domid}/device/vbd"
        self._domid, self._store, self._driver, self._make = domid, store, driver, make
        self._disks: dict[int, GuestDisk] = {}
        self._free, self._taken = list(range(places)), dict[int, Place]()  # by number
        self._coming, self._looked_at = set[int](), set[int]()  # by number
        # Devices, with the disk that was there when the look began and said more than Initialising.
        self._looking = dict[int, GuestDisk | None]()
        self._again = set[int]()  # devices
        self._refused = set[int]()  # devices that have no place
        self.born: list[GuestDisk] = []
        self.missing: list[str] = []  # of those it was to be born with

    def __getitem__(self, number: int) -> GuestDisk:
        return self._disks[number]

    def __iter__(self) -> Iterator[int]:
        return iter(list(self._disks))

    def __len__(self) -> int:
        return len(self._disks)

    def numbered(self, number: object) -> GuestDisk:
        """The disk of that number. Raises CommandError if there is none, or none any more."""
        if isinstance(number, int) and number in self._disks:
            return self._disks[number]
        if number not in range(DISKS_MAX):
            raise CommandError(f"disk {one_line(number)} is not one of 0..{DISKS_MAX - 1}")
        name = disk_name(XVD_MAJOR << 8 | int(str(number)) << 4)
        raise CommandError(f"domain {self._domid}: {name}: not Connected: there is no such disk")

    def begin(self, devices: list[int]) -> None:
        """Have the disks that the guest is born with, and from now on those that come."""
        for device in devices:
            path, number = frontend_path(self._domid, device), number_of(device)
            assert number is not None
            backend = self._store.read_or_none(f"{path}/backend")
            if backend is None:
                self.missing.append(disk_name(device))
            else:
                self.born.append(self._add(number, device, backend))
        self._store.hold(ask(watch(self._root, DEVICES)), lambda _: None)

    def require_born(self) -> None:
        """Raises CommandError that names those that the guest was born with and cannot use."""
        failed = [disk for disk in self.born if not disk.vbd.usable]
        told = [disk.told(f"not Connected but {disk.state()}") for disk in failed]
        gone = [f"{name}: it was gone before this guest was born" for name in self.missing]
        if told or gone:
            raise all_of([*told, *gone])

    def take_events(self) -> None:
        """The store has something for the guest."""
        self._store.receive(0)
        events = self._store.events()
        tokens = {token for _, token in events}
        for disk in list(self._disks.values()):
            if disk.vbd.token in tokens:
                disk.vbd.tell(Stirred())
        for path in dict.fromkeys(path for path, token in events if token == DEVICES):
            self._heed(path)

    def look_after(self, keep_going: Callable[[], None]) -> None:
        """Use those that have come, and let those go that have gone. keep_going: see Driver.run."""
        for number in list(self._coming):
            disk = self._disks[number]
            if disk.vbd.state == CLOSED:
                self._coming.discard(number)
            elif disk.vbd.usable and disk.at_rest and disk.vbd.far_end_shows():
                self._coming.discard(number)
                disk.use(keep_going)
        self._driver.nap_ms = COMING_MS if self.pause_s is not None else None
        for number, disk in list(self._disks.items()):
            if not self._has_ended(disk):
                self._looked_at.discard(number)
            elif number not in self._looked_at:
                self._looked_at.add(number)
                self._look(self._taken[number].device)

    def _has_ended(self, disk: GuestDisk) -> bool:
        if not disk.vbd.finished or not disk.at_rest or self.busy(disk):
            return False
        return disk.number not in self._driver.running

    @property
    def pause_s(self) -> float | None:
        """How long may be slept; None: as long as nothing comes."""
        usable = any(self._disks[number].vbd.usable for number in self._coming)
        return COMING_MS / 1000 if usable else None

    def is_coming(self, disk: GuestDisk) -> bool:
        """Is it still to be Connected?"""
        return disk.number in self._coming and self._disks.get(disk.number) is disk

    # --- the directory ------------------------------------------------------------------------

    def _heed(self, path: str) -> None:
        """Something has changed at `path`: what its own disk writes there is nothing new."""
        name, _, key = path.removeprefix(self._root).removeprefix("/").partition("/")
        if not name:
            self._list()
            return
        device = parse_number(name.encode("latin-1"), DEVICE_MAX)
        if device is not None and (not key or number_of(device) not in self._disks):
            self._look(device)

    def _list(self) -> None:
        self._store.hold(_names(self._root), self._listed)

    def _listed(self, names: list[str]) -> None:
        for name in names:
            self._heed(f"{self._root}/{name}")
        for place in self._taken.values():
            if str(place.device) not in names:
                self._look(place.device)

    def _look(self, device: int) -> None:
        if device in self._looking:
            self._again.add(device)
            return
        disk = self._disks.get(number) if (number := number_of(device)) is not None else None
        said = disk is not None and disk.at_rest and disk.vbd.state != INITIALISING
        self._looking[device] = disk if said else None
        path = frontend_path(self._domid, device)
        paths = [f"{path}/backend", f"{path}/state"]
        self._store.hold(look(paths), partial(self._seen, device))

    def _seen(self, device: int, values: dict[str, bytes] | None) -> None:
        said = self._looking.pop(device)
        if values is not None:
            self._act_on(device, values, said)
        if device in self._again or values is None:
            self._again.discard(device)
            self._look(device)

    def _act_on(self, device: int, values: dict[str, bytes], said: GuestDisk | None) -> None:
        path, number = frontend_path(self._domid, device), number_of(device)
        state, backend = values.get(f"{path}/state"), values.get(f"{path}/backend")
        begins = backend is not None and parse_state(state) == INITIALISING
        if number in self._disks:
            disk = self._disks[number]
            made_anew = begins and said is disk
            if state is not None and not made_anew:
                return
            if not self._has_ended(disk):
                disk.vbd.lose_directory()
                return
            self._drop(number)
        if begins and backend is not None:
            self._arrive(number, device, backend)
        elif state is None:
            self._refused.discard(device)

    def _arrive(self, number: int | None, device: int, backend: bytes) -> None:
        if number is not None and self._free:
            self._add(number, device, backend)
            self._coming.add(number)
        elif device not in self._refused:
            self._refused.add(device)
            taken = f"no room for another disk: all {len(self._taken)} places are taken"
            why = taken if number is not None else "no disk of xvda..xvdp"
            logging.warning("domain %d: %s: %s", self._domid, disk_name(device), why)
            path = frontend_path(self._domid, device)
            self._store.hold(write_if_there(path, {"error": why}), lambda _: None)

    def _add(self, number: int, device: int, backend: bytes) -> GuestDisk:
        place = Place(heapq.heappop(self._free), number, device, backend.decode("latin-1"))
        self._taken[number] = place
        self._disks[number] = disk = self._make(place)
        return disk

    def _drop(self, number: int) -> None:
        del self._disks[number]
        heapq.heappush(self._free, self._taken.pop(number).which)
        self._driver.detach(number)
        self._coming.discard(number)
        self._looked_at.discard(number)
        if self._refused:  # who found no room may now
            self._refused.clear()
            self._list()


def all_of(failures: Iterable[object]) -> CommandError:
    """Several failures as one."""
    return CommandError("; ".join(map(str, failures)))


def _names(path: str) -> Talk[list[str]]:
    """Right under `path`; none, if we may not look there, or there is no such node."""
    try:
        return (yield from directory(path))
    except XenStoreError as error:
        if error.name not in ("ENOENT", "EACCES"):
            raise
        return []
