"""A guest's process: born with what it may hold, sealed, then it does what the toolstack asks.

Owns: the guest's main loop, `_turn`: the one place that looks at control connection and store.
One thread for all disks; everything per request is compiled. While loads run, or a command is
waited for, that loop goes on between slices, and what is asked meanwhile is answered afterwards.

Commands, with disks by number: connect, load (of jobs, each a disk and LoadPlan's fields), stop,
read, write, read_many, write_many, flush, discard, judge, versions, disconnect, exit. Their form
is `common/control.py`'s.
"""

import functools
import logging
import math
import select
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, TypeVar

import numpy as np

from common import xenbus
from common.control import CommandError, CommandTable, Control, Message, answer
from common.faults import PeerFault
from common.handshake import Stirred
from common.xenstore import XenStoreClient
from frontend.block_device import BlockDevice
from frontend.driver import Driver
from frontend.load import LoadPlan
from machine.front_disk import FAR_END_S, take_events
from machine.guest_disk import GuestDisk
from machine.seat import Timers

CONNECT_TIMEOUT_S: Final = 30.0
UNMAP_TIMEOUT_S: Final = 10.0  # of a backend, once this end is Closed

T = TypeVar("T")


class Guest:
    """One guest domain; `serve` runs until told to exit. timers: of all its `disks`."""

    def __init__(
        self,
        control: Control,
        store: XenStoreClient,
        disks: Sequence[GuestDisk],
        driver: Driver,
        timers: Timers,
    ) -> None:
        self._control, self._store = control, store
        self._disks, self._driver, self._timers = disks, driver, timers
        self._stop_loads: Callable[[], None] | None = None
        self._deferred: deque[Message] = deque()  # came during an I/O, answered after it
        self._exiting = False
        self._poller = select.poll()
        for end in (control, store):
            self._poller.register(end, select.POLLIN)
        self._commands: CommandTable = {
            name.removeprefix("command_"): self._translated(getattr(self, name))
            for name in dir(self)
            if name.startswith("command_")
        }

    def serve(self) -> None:
        """Say that we are up, then answer commands, and the store's events between them."""
        self._control.send("ok", None)
        while not self._exiting:
            self._turn(None)
            while self._deferred and not self._exiting:
                answer(self._control, self._deferred.popleft(), self._commands)

    def _turn(self, timeout_s: float | None) -> None:
        """Sleep until something comes (None: as long as that takes), and take it in."""
        if timeout_s != 0 and (pause_s := self._timers.pause_s()) is not None:
            timeout_s = pause_s if timeout_s is None else min(timeout_s, pause_s)
        timeout_ms = None if timeout_s is None else math.ceil(timeout_s * 1000)
        ready = {fd for fd, _ in self._poller.poll(timeout_ms)}
        if self._control.fileno() in ready and (message := self._control.receive(0)):
            self._deferred.append(message)
        if self._store.fileno() in ready:
            take_events(self._store, [disk.vbd for disk in self._disks])
        self._timers.ring()

    def _meanwhile(self, timeout_s: float) -> None:
        """The same, while a command is carried out: what ends it is heeded, the rest has time."""
        heard = len(self._deferred)
        self._turn(timeout_s)
        for word, *_ in list(self._deferred)[heard:]:
            if word == "exit":
                raise SystemExit(0)
            if word == "stop" and self._stop_loads is not None:
                self._stop_loads()

    def _await(self, holds: Callable[[], bool], timeout_s: float) -> bool:
        """Go on until `holds`; False if that takes too long."""
        deadline = time.monotonic() + timeout_s
        while not holds():
            if (left := deadline - time.monotonic()) <= 0:
                return False
            self._meanwhile(left)
        return True

    def _translated(self, command: Callable[..., Any]) -> Callable[..., Any]:
        """`command`, with its failures as what they are to the toolstack."""

        @functools.wraps(command)  # whose signature `answer` checks
        def translated(*arguments: Any) -> Any:
            try:
                return command(*arguments)
            except (OSError, ValueError, TypeError) as error:
                raise CommandError(str(error)) from error

        return translated

    def command_connect(self) -> list[dict[str, Any]]:
        """Shake hands until all disks are Connected; what each is."""
        ends = (xenbus.CONNECTED, xenbus.CLOSED)
        for disk in self._disks:
            disk.vbd.tell(Stirred())
        self._await(
            lambda: all(disk.at_rest and disk.vbd.state in ends for disk in self._disks),
            CONNECT_TIMEOUT_S,
        )
        self._require_usable()
        self._await_far_ends()
        self._require_usable()
        return [disk.use(self._between_slices) for disk in self._disks]

    def _require_usable(self) -> None:
        if failed := [disk for disk in self._disks if not disk.vbd.usable]:
            raise _all_of(disk.told(f"not Connected but {disk.state()}") for disk in failed)

    def _await_far_ends(self) -> None:
        """Until the backends can be woken."""
        fds = [disk.vbd.channel.carrier.fileno() for disk in self._disks if disk.vbd.channel]
        for fd in fds:
            self._poller.register(fd, select.POLLIN)
        self._await(
            lambda: all(not disk.vbd.usable or disk.vbd.far_end_shows() for disk in self._disks),
            FAR_END_S,
        )
        for fd in fds:
            self._poller.unregister(fd)
        for disk in self._disks:
            if disk.vbd.usable and not disk.vbd.far_end_shows():
                what = "the backend's end of its event channel is not there"
                logging.warning("%s", disk.told(what))

    def command_load(self, jobs: list[tuple[int, dict[str, Any]]]) -> None:
        """Run loads on disks, all at once, to their ends, or until `stop` comes. A disk that fails
        fails its own load only; which did is told when all have ended."""
        loads = {number: self._disk(number).job(LoadPlan(**plan)) for number, plan in jobs}
        if len(loads) < len(jobs):
            raise CommandError("a disk has one load at a time")

        def stop() -> None:
            for load in loads.values():
                load.load["stop"] = 1

        self._stop_loads = stop
        try:
            failed = self._driver.run(loads, self._between_slices)
        finally:
            self._stop_loads = None
            for number in loads:
                self._disks[number].tell_of_flushes()
        if failed:
            raise self._failure(failed)

    def _between_slices(self) -> None:
        self._meanwhile(0)
        for number, why in self._driver.failed.items():
            if self._disks[number].vbd.usable:
                self._disks[number].give_up(why)
        for number in self._driver.running:
            if not self._disks[number].vbd.usable:
                self._disks[number].give_up()
                self._driver.fail(number, "it is closed")

    def _failure(self, failed: Iterable[int]) -> CommandError:
        """What is told when these have failed: once they are at rest, they know why."""
        disks = [self._disks[number] for number in failed]
        self._await(lambda: all(disk.at_rest for disk in disks), CONNECT_TIMEOUT_S)
        return _all_of(disk.failure() for disk in disks)

    def command_stop(self) -> None:
        """A stop that comes when no load runs has nothing to do."""

    def command_read(self, disk: int, offset: int, nbytes: int) -> bytes:
        """BlockDevice.read."""
        return self._use(disk, lambda device: device.read(offset, nbytes))

    def command_write(self, disk: int, offset: int, data: bytes) -> int:
        """BlockDevice.write."""
        return self._use(disk, lambda device: device.write(offset, data))

    def command_read_many(self, disk: int, offsets: list[int], nbytes: int) -> bytes:
        """BlockDevice.read_many, row after row."""
        return self._use(disk, lambda device: device.read_many(offsets, nbytes).tobytes())

    def command_write_many(self, disk: int, offsets: list[int], data: bytes) -> None:
        """BlockDevice.write_many, row after row."""
        rows = np.frombuffer(data, np.uint8).reshape(len(offsets), -1)
        self._use(disk, lambda device: device.write_many(offsets, rows))

    def command_flush(self, disk: int) -> None:
        """BlockDevice.flush."""
        self._use(disk, lambda _: self._disk(disk).flush())

    def command_discard(self, disk: int, offset: int, nbytes: int, secure: bool) -> None:
        """BlockDevice.discard."""
        self._use(disk, lambda device: device.discard(offset, nbytes, secure))

    def command_judge(self, disk: int, sector: int, nr_sectors: int) -> dict[str, Any]:
        """GuestDisk.judged."""
        return self._use(disk, lambda _: self._disk(disk).judged(sector, nr_sectors))

    def command_versions(self, disk: int, *arguments: Any) -> bytes:
        """GuestDisk.versions."""
        return self._disk(disk).versions(*arguments)

    def _use(self, number: int, do: Callable[[BlockDevice], T]) -> T:
        if not (disk := self._disk(number)).vbd.usable:
            self._await(lambda: disk.at_rest, CONNECT_TIMEOUT_S)
        try:
            return do(disk.connected())
        except PeerFault as fault:
            raise self._failure([number]) from fault

    def _disk(self, number: int) -> GuestDisk:
        if number not in range(len(self._disks)):
            raise CommandError(f"there is no disk {number}: this guest has {len(self._disks)}")
        return self._disks[number]

    def command_disconnect(self) -> int:
        """Close all disks; how many grants could not be ended (0 unless dom0 misbehaves)."""
        for disk in self._disks:
            disk.vbd.detach()
            disk.device = None
        if not self._await(
            lambda: all(disk.vbd.state == xenbus.CLOSED for disk in self._disks), CONNECT_TIMEOUT_S
        ):
            kept = [disk for disk in self._disks if disk.vbd.state != xenbus.CLOSED]
            raise _all_of(disk.told("the backend does not let go") for disk in kept)
        self._await(
            lambda: all(disk.at_rest and disk.vbd.finished for disk in self._disks),
            UNMAP_TIMEOUT_S,
        )
        for disk in self._disks:
            if stuck := disk.vbd.stuck_grants:
                what = f"{stuck} pages stay granted: the backend has them mapped"
                logging.warning("%s", disk.told(what))
        return sum(disk.vbd.stuck_grants for disk in self._disks)

    def command_exit(self) -> None:
        """End the process once this is answered."""
        self._exiting = True


def _all_of(failures: Iterable[object]) -> CommandError:
    return CommandError("; ".join(map(str, failures)))
