"""dom0's process: a backend for every virtual disk that the toolstack writes into the store.

Owns: the watch on `backend/vbd`, and the disks. What an event names is looked at, a disk at a time
and in turn (`backend/due.py`), and never all there is.
The main thread does the handshakes, in one loop over control, store and the rings' ends, and waits
for no answer: a disk whose answer is slow waits for it alone. Each vCPU that has rings has a
thread, all in one address space, so that unmapping a page really shoots down the others' TLBs.
"""

import itertools
import logging
import os
import queue
import select
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from backend.due import Key
from backend.plug import DEVICE_MAX, NEEDED, Plug, parse_name, read_plug, resize_store
from backend.stores import RamStores
from backend.vbd import BackendVbd
from common.abi import DOMID_FIRST_RESERVED
from common.control import CommandError, Control
from common.faults import LocalFault, PeerFault
from common.handshake import Leave, Resized, Stirred
from common.hypercall import Hypercalls
from common.machine_memory import MachineMemory
from common.xenbus import CONNECTED, INITIALISING, backend_path, frontend_path
from common.xenstore import XenStoreClient
from common.xenstore_talks import Outcome, ask, children, look, unwatch, watch, write_if_there
from machine.connection import BackendOptions, Connection
from machine.dom0_control import Dom0Control
from machine.looks import DiskSeat, Looks
from machine.openings import Openings
from machine.places import Places

BACKEND_ROOT: Final = "/local/domain/0/backend/vbd"
TOOLSTACK: Final = "toolstack"  # the token of the watch there; a disk's own is "domid/device"
DOMID_MAX: Final = DOMID_FIRST_RESERVED - 1

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Dom0Config:
    """What dom0 is told when it is built. run_dir: where ZeroMQ's sockets of guests are."""

    run_dir: str
    store_path: str
    options: BackendOptions


class Dom0:
    """The driver domain: all virtual disks, by frontend domid and device number."""

    def __init__(self, config: Dom0Config, control: Control, hypercalls: Hypercalls) -> None:
        self._config, self._control = config, control
        self._store = XenStoreClient(config.store_path, reply_timeout_s=None)
        self._looks = Looks()
        self._memory = MachineMemory(hypercalls)
        self._exiting = False
        self._places = Places(hypercalls, self._memory, config.run_dir, config.options)
        self._rams = RamStores()
        self._commands = Dom0Control(
            control, self._rams, self._begin_to_follow, self._exit, self._kept, self._resize
        )
        self._seats: dict[Key, DiskSeat] = {}
        self._reading: dict[Key, bool] = {}  # what a new disk needs; whether to read it again
        self._numbers = itertools.count(1)
        # A vCPU's thread has something called here; the main thread owns the store.
        self._reports: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._openings = Openings(self._rams, self._report, self._looks.add)
        self._reported = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._poller = select.poll()
        for end in (control, self._store, self._reported):
            self._poller.register(end, select.POLLIN)

    def serve(self) -> None:
        """Say that we are up; follow the store from when we are told to, until told to exit."""
        self._control.send("ok", None)
        while not self._exiting:
            self._turn()

    def _begin_to_follow(self) -> None:
        """The memory of all disks that there may be is given: the first event comes at once."""
        self._store.hold(ask(watch(BACKEND_ROOT, TOOLSTACK)), lambda _: None)

    def _turn(self) -> None:
        """What has come, and one look: so no event waits for all of them."""
        ready = {fd for fd, _ in self._poller.poll(self._looks.pause_ms())}
        if self._reported in ready:
            self._take_reports()
        if self._store.fileno() in ready:
            self._take_events()
        if self._control.fileno() in ready:
            self._commands.obey()
        self._have_a_look()

    def _kept(self, domid: int, device: int, first: int) -> list[bytes] | None:
        seat = self._seats.get((domid, device))
        connection = seat.hands if seat is not None else None
        return connection.kept(first) if isinstance(connection, Connection) else None

    def _resize(self, domid: int, device: int, nr_sectors: int) -> None:
        seat = self._seats.get((domid, device))
        if seat is None or seat.vbd.state != CONNECTED or not isinstance(seat.hands, Connection):
            raise CommandError(f"vbd {domid}/{device} is not Connected")
        resize_store(seat.disk, nr_sectors)
        seat.hands.resize(nr_sectors)
        seat.tell(Resized(nr_sectors))

    def _exit(self) -> None:
        """Let go of every disk; what that takes is awaited here as everything is."""
        for seat in list(self._seats.values()):
            seat.tell(Leave())
        while any(seat.vbd.serving or seat.vbd.mapped for seat in self._seats.values()):
            self._turn()
        self._places.close()
        self._openings.close()
        self._rams.close()
        self._exiting = True

    # --- what there is to look at -----------------------------------------------------------

    def _take_events(self) -> None:
        self._store.receive(0)
        for path, token in self._store.events():
            if token == TOOLSTACK:
                self._heed_toolstack(path)
            else:
                domid, _, device = token.partition("/")
                self._stir((int(domid), int(device)))  # the token is ours

    def _heed_toolstack(self, path: str) -> None:
        """Something has changed under BACKEND_ROOT: what is due is what `path` names."""
        inside = path.removeprefix(f"{BACKEND_ROOT}/")
        names = inside.split("/") if inside != path else []
        if len(names) < 2:
            self._list(names[0] if names else "")
            return
        domid, device = parse_name(names[0], DOMID_MAX), parse_name(names[1], DEVICE_MAX)
        if not domid or device is None:
            return  # no disk of anybody's
        seat = self._seats.get((domid, device))
        changed = names[2] if len(names) > 2 else ""
        if not changed:  # all of it was made, or removed, and the guest does neither
            self._looks.hurry(domid)
        begins = seat is None or seat.vbd.state == INITIALISING
        if begins or changed in ("", "state", "online"):
            self._stir((domid, device))

    def _list(self, only: str) -> None:
        """Everything there is, and everything there was; of one domain, or of all ("")."""
        for key in list(self._seats):
            if only in ("", str(key[0])):
                self._stir(key)
        if only:
            self._store.hold(children(f"{BACKEND_ROOT}/{only}"), partial(self._listed, f"{only}/"))
        else:
            self._store.hold(children(BACKEND_ROOT), partial(self._listed, ""))

    def _listed(self, above: str, names: list[str]) -> None:
        for name in names:
            self._heed_toolstack(f"{BACKEND_ROOT}/{above}{name}")

    def _stir(self, key: Key) -> None:
        """Have the disk `key` looked at."""
        seat = self._seats.get(key)
        if key in self._reading:
            self._reading[key] = True
        elif seat is None:
            self._looks.add(key)
        if seat is not None:
            seat.tell(Stirred())

    def _take_reports(self) -> None:
        os.eventfd_read(self._reported)
        while not self._reports.empty():
            self._reports.get()()

    def _report(self, call: Callable[[], None]) -> None:
        self._reports.put(call)
        os.eventfd_write(self._reported, 1)

    def _have_a_look(self) -> None:
        """At one disk, if one is due whose guest has not had too much of our time."""
        if (key := self._looks.take()) is None:
            return
        seat = self._seats.get(key)
        if seat is not None and seat.vbd.state != INITIALISING:
            seat.take_look()
        elif key not in self._reading:
            self._looks.begin()
            self._reading[key] = False
            paths = [f"{backend_path(*key)}/{name}" for name in (*NEEDED, "error")]
            self._store.hold(look(paths), partial(self._read, key))

    # --- beginnings and ends ----------------------------------------------------------------

    def _read(self, key: Key, values: dict[str, bytes] | None) -> None:
        """What a disk that is not begun, or has promised nothing yet, needs: begin it, or go on."""
        self._looks.end()
        path = backend_path(*key)
        if self._reading.pop(key) or values is None:
            self._looks.add(key)
        if values is None:
            return
        seat = self._seats.get(key)
        if seat is not None and seat.vbd.state != INITIALISING:
            return
        entries = {name.removeprefix(f"{path}/"): value for name, value in values.items()}
        try:
            plug = read_plug(entries, *key)
            if seat is not None and plug == seat.plug:
                seat.take_look()
                return
            if seat is not None:  # nothing has been promised of it yet
                self._drop(key)
            if plug is not None:
                self._begin(key, plug)
            else:
                self._openings.forget(key)
        except (LocalFault, PeerFault) as fault:
            if seat is not None and key in self._seats:
                self._drop(key)
            if entries.get("error") != str(fault).encode():
                log.warning("vbd %d/%d: %s", *key, fault)
                self._store.hold(
                    write_if_there(path, {"error": fault}), partial(self._error_written, key)
                )

    def _error_written(self, key: Key, outcome: Outcome) -> None:
        if outcome == "again":
            self._looks.add(key)

    def _begin(self, key: Key, plug: Plug) -> None:
        """Its store is opened, now or meanwhile: then it is looked at once more."""
        if (disk := self._openings.take(key, plug)) is None:
            return
        options, stall = self._config.options, partial(self._tell_stall, key)
        hands = Connection(
            self._places.take(key), disk, options, self._report, plug.read_only, stall
        )
        vbd = BackendVbd(
            *key,
            disk.nr_sectors,
            options.persistent,
            self._numbers,
            plug.read_only,
            disk.features,
            disk.sector_size,
        )
        self._seats[key] = DiskSeat(
            self._looks,
            key,
            plug,
            disk,
            vbd,
            self._store,
            hands,
            self._drop_if_finished,
        )
        # Its first event comes at once.
        self._store.hold(ask(watch(*self._watch_of(key))), lambda _: None)

    def _tell_stall(self, key: Key, seconds: int) -> None:
        """The store of a disk has been silent for so long; 0: it is so no more."""
        if seconds:
            log.warning("vbd %d/%d: its store has stalled for %d s", *key, seconds)
        else:
            log.warning("vbd %d/%d: its store answers again", *key)
        written, gone = ({"stalled": seconds}, ()) if seconds else ({}, ("stalled",))
        talk = write_if_there(backend_path(*key), written, gone, whole=False)
        self._store.hold(talk, lambda _: None)

    @staticmethod
    def _watch_of(key: Key) -> tuple[str, str]:
        domid, device = key
        return f"{frontend_path(domid, device)}/state", f"{domid}/{device}"

    def _drop_if_finished(self, seat: DiskSeat) -> None:
        if seat.vbd.finished and not seat.dropped:
            self._drop(seat.key)
            self._looks.add(seat.key)  # something else may be there by now

    def _drop(self, key: Key) -> None:
        seat = self._seats.pop(key)
        seat.dropped = True
        seat.disk.close()
        self._store.hold(ask(unwatch(*self._watch_of(key))), lambda _: None)
        if not any(domid == key[0] for domid, _ in self._seats):
            self._memory.forget(key[0])
            self._looks.forget(key[0])
