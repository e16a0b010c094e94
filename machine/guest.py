"""A guest's process: born with what it may hold, sealed, then it does what the toolstack asks.

Owns: the guest's main loop, `_pass_time`, and `_turn`, the one place that looks at control
connection and store.
One thread for all disks; everything per request is compiled. Any number of loads run, on different
disks (`machine/guest_loads.py`). What is asked while a command is carried out is answered after it;
the loads, the store and the disks' ends go on.

Commands, with disks by number: connect, export, those of `machine/disk_commands.py`, disconnect,
exit. Their form is `common/control.py`'s.
Not answered are ("load", id, jobs: each a disk and LoadPlan's fields) and ("stop", id), of a load
or an export; the end of either is told: ("ended", id, why it failed or None). Nor are ("nbd", disk)
with the sockets of clients of an exported one, and suspend and resume, of all disks: the store says
when they are done. A disk's new size is told, too: ("size", disk, bytes).
"""

import functools
import logging
import math
import select
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final, TypeVar

from common import xenbus
from common.control import CommandError, CommandTable, Control, Message, answer
from common.faults import PeerFault
from common.handshake import Resume, Stirred, Suspend
from common.xenstore import XenStoreClient
from frontend.block_device import BlockDevice
from frontend.driver import Driver
from frontend.load import LoadPlan
from machine.disk_commands import DiskCommands
from machine.front_disk import FAR_END_S
from machine.guest_disk import GuestDisk
from machine.guest_disks import GuestDisks, all_of
from machine.guest_export import GuestExports
from machine.guest_loads import GuestLoads
from machine.seat import Timers

CONNECT_TIMEOUT_S: Final = 30.0
UNMAP_TIMEOUT_S: Final = 10.0  # of a backend, once this end is Closed
LOOK_S: Final = 0.02  # a sleep, while a disk waits for another ring

REFUSED: Final = (CommandError, OSError, ValueError, TypeError)  # what was asked cannot be done

T = TypeVar("T")


class Guest:
    """One guest domain; `serve` runs until told to exit. timers: of all its `disks`; poller: the
    driver's."""

    def __init__(
        self,
        control: Control,
        store: XenStoreClient,
        disks: GuestDisks,
        driver: Driver,
        timers: Timers,
        poller: Any,
    ) -> None:
        self._control, self._store = control, store
        self._disks, self._driver, self._timers = disks, driver, timers
        self._loads = GuestLoads(disks, driver)
        self._used: GuestDisk | None = None  # by a command
        self._deferred: deque[Message] = deque()  # came during an I/O, answered after it
        self._exiting = False
        self._poller = select.poll()
        for end in (control, store):
            self._poller.register(end, select.POLLIN)
        self._exports = GuestExports(driver, self._poller, poller)
        disks.busy = lambda disk: disk is self._used or self._is_used(disk)
        self._commands: CommandTable = {
            name.removeprefix("command_"): self._translated(getattr(owner, name))
            for owner in (self, DiskCommands(self._use, self._disk))
            for name in dir(owner)
            if name.startswith("command_")
        }

    def serve(self) -> None:
        """Say that we are up, then answer commands, and the store's events between them."""
        self._control.send("ok", None)
        while not self._exiting:
            self._pass_time(None)
            while self._deferred and not self._exiting:
                self._obey(self._deferred.popleft())
            for number, why in (*self._loads.ended(), *self._exports.ended()):
                self._control.send("ended", number, why)

    def _obey(self, message: Message) -> None:
        if message[0] == "load":
            self._begin_load(*message[1:])
        elif message[0] == "stop":
            self._loads.stop(*message[1:])
            self._exports.stop(*message[1:])
        else:
            answer(self._control, message, self._commands)

    def _pass_time(self, timeout_s: float | None) -> None:
        """A slice of the loads that run, or a sleep until something comes (None: as long as that
        takes); and what has come."""
        if self._driver.running:
            self._driver.turn(self._between_slices)
        else:
            self._turn(self._loads.pause_s(timeout_s))

    def _turn(self, timeout_s: float | None) -> None:
        """Sleep until something comes (None: as long as that takes), and take it in."""
        for pause_s in (self._timers.pause_s(), self._disks.pause_s):
            if timeout_s != 0 and pause_s is not None:
                timeout_s = pause_s if timeout_s is None else min(timeout_s, pause_s)
        timeout_ms = None if timeout_s is None else math.ceil(timeout_s * 1000)
        ready = {fd for fd, _ in self._poller.poll(timeout_ms)}
        if self._control.fileno() in ready:
            self._take(*self._control.receive_with_descriptors())
        self._exports.look(ready)
        if self._store.fileno() in ready:
            self._disks.take_events()
            for disk in self._disks.values():
                if nbytes := disk.resized():
                    self._control.send("size", disk.number, nbytes)
        self._timers.ring()
        self._disks.look_after(self._between_slices_of_a_command)

    def _take(self, message: Message, fds: list[int]) -> None:
        """suspend and resume are told and not asked: what runs goes on through both."""
        if message[0] == "nbd":
            self._exports.let_in(message[1], fds)
        elif message[0] in ("suspend", "resume"):
            for disk in self._disks.values():
                disk.vbd.tell(Suspend() if message[0] == "suspend" else Resume())
        else:
            self._deferred.append(message)

    def _await(self, holds: Callable[[], bool], timeout_s: float) -> bool:
        """Go on until `holds`; False if that takes too long."""
        deadline = time.monotonic() + timeout_s
        while not holds():
            if (left := deadline - time.monotonic()) <= 0:
                return False
            self._pass_time(left)
            self._heed_exit()
        return True

    def _heed_exit(self) -> None:
        """What else is asked while a command is carried out has time."""
        if any(word == "exit" for word, *_ in self._deferred):
            raise SystemExit(0)

    def _translated(self, command: Callable[..., Any]) -> Callable[..., Any]:
        """`command`, with its failures as what they are to the toolstack."""

        @functools.wraps(command)  # whose signature `answer` checks
        def translated(*arguments: Any) -> Any:
            try:
                return command(*arguments)
            except REFUSED as error:
                raise CommandError(str(error)) from error

        return translated

    def command_connect(self) -> list[dict[str, Any]]:
        """Shake hands until all disks that the guest was born with are Connected; what each is."""
        ends, born = (xenbus.CONNECTED, xenbus.CLOSED), self._disks.born
        for disk in born:
            disk.vbd.tell(Stirred())
        self._await(
            lambda: all(disk.at_rest and disk.vbd.state in ends for disk in born),
            CONNECT_TIMEOUT_S,
        )
        self._disks.require_born()
        self._await_far_ends()
        self._disks.require_born()
        told = [disk.use(self._between_slices_of_a_command) for disk in born]
        born.clear()  # from now on they go as any
        return told

    def _await_far_ends(self) -> None:
        """Until the backends can be woken."""
        born = self._disks.born
        fds = [disk.vbd.channel.carrier.fileno() for disk in born if disk.vbd.channel]
        for fd in fds:
            self._poller.register(fd, select.POLLIN)
        self._await(
            lambda: all(not disk.vbd.usable or disk.vbd.far_end_shows() for disk in born),
            FAR_END_S,
        )
        for fd in fds:
            self._poller.unregister(fd)
        for disk in born:
            if disk.vbd.usable and not disk.vbd.far_end_shows():
                what = "the backend's end of its event channel is not there"
                logging.warning("%s", disk.told(what))

    def _begin_load(self, load: int, jobs: list[tuple[int, dict[str, Any]]]) -> None:
        """Begin to run jobs on disks, all at once, to their ends, or until `stop` comes. A disk
        that fails fails its own job only; which did is told when all have ended."""
        try:
            plans = {self._disk(number).number: LoadPlan(**plan) for number, plan in jobs}
            if len(plans) < len(jobs):
                raise CommandError("a disk has one load at a time")
            for number in plans:
                if self._disks[number] in self._exports:
                    raise self._disks[number].told("it is exported, and has one user at a time")
                self._await_ring(number)
            self._loads.begin(load, plans)
        except REFUSED as error:
            self._control.send("ended", load, str(error))

    def _between_slices(self) -> None:
        self._turn(0)
        self._loads.look_after_disks()
        self._exports.look_after()

    def _between_slices_of_a_command(self) -> None:
        self._between_slices()
        self._heed_exit()

    def _failure(self, disk: GuestDisk) -> CommandError:
        """What is told when it has failed: once it is at rest, it knows why."""
        self._await(lambda: disk.at_rest, CONNECT_TIMEOUT_S)
        return CommandError(disk.failure())

    def command_export(self, export: int, disk: int) -> dict[str, Any]:
        """Serve a disk's clients, who come by `nbd`, until `stop`; what they are told of it."""
        found = self._disk(disk)
        self._require_unused(found)
        self._await_ring(disk)
        return self._exports.begin(export, found)

    def _is_used(self, disk: GuestDisk) -> bool:
        return disk in self._loads or disk in self._exports

    def _require_unused(self, disk: GuestDisk) -> None:
        if disk in self._loads:
            raise disk.told("it has a load: a disk does one thing at a time")
        if disk in self._exports:
            raise disk.told("it is exported: a disk does one thing at a time")

    def _await_ring(self, number: int) -> None:
        """Until the disk has a ring, if it waits for another, or has come just now."""
        late_at = time.monotonic() + CONNECT_TIMEOUT_S
        while self._disks.is_coming(self._disk(number)) and time.monotonic() < late_at:
            self._pass_time(LOOK_S)
            self._heed_exit()
        while not self._disk(number).goes_on():
            self._pass_time(LOOK_S)
            self._heed_exit()

    def _use(self, number: int, do: Callable[[BlockDevice], T]) -> T:
        self._require_unused(disk := self._disk(number))
        self._await_ring(number)
        if not disk.vbd.usable:
            self._await(lambda: disk.at_rest, CONNECT_TIMEOUT_S)
        self._used = disk
        try:
            return do(disk.connected())
        except PeerFault as fault:
            raise self._failure(disk) from fault
        finally:
            self._used = None

    def _disk(self, number: int) -> GuestDisk:
        return self._disks.numbered(number)

    def command_disconnect(self) -> int:
        """Close all disks; how many grants could not be ended (0 unless dom0 misbehaves)."""
        disks = list(self._disks.values())
        for disk in disks:
            disk.vbd.detach()
            disk.device = None
        if not self._await(
            lambda: all(disk.vbd.state == xenbus.CLOSED for disk in disks), CONNECT_TIMEOUT_S
        ):
            kept = [disk for disk in disks if disk.vbd.state != xenbus.CLOSED]
            raise all_of(disk.told("the backend does not let go") for disk in kept)
        self._await(
            lambda: all(disk.at_rest and disk.vbd.finished for disk in disks),
            UNMAP_TIMEOUT_S,
        )
        for disk in disks:
            if stuck := disk.vbd.stuck_grants:
                what = f"{stuck} pages stay granted: the backend has them mapped"
                logging.warning("%s", disk.told(what))
        return sum(disk.vbd.stuck_grants for disk in disks)

    def command_exit(self) -> None:
        """End the process once this is answered."""
        self._exiting = True
