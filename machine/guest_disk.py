"""One disk of a guest's process: its end of the handshake and, from Connected on, its ring.

Owns: what the guest's loads know of the disk's contents, and what is told of it when it fails.
"""

import logging
import time
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from common import xenbus
from common.abi import SECTOR_SIZE, XEN_PAGE_SIZE
from common.arena import Arena
from common.control import CommandError
from common.copying import address_of
from common.event_channel import EventChannel
from common.trace import ENTRIES_MAX, TRACE
from frontend.blkfront_info import NOT_SENT
from frontend.block_device import PIECE_BYTES, BlockDevice
from frontend.driver import Driver
from frontend.journal import (
    Journal,
    begin_flush,
    certain_versions,
    end_flush,
    forget,
    journal_bytes,
    lose,
    new_journal,
)
from frontend.judge import FOUND, judge, new_judgement
from frontend.load import Load, LoadPlan, new_load
from frontend.nbd_export import Export, export_load, new_export
from frontend.pattern import UNKNOWN, disk_name
from frontend.state_file import state_arrays
from frontend.vbd import NR_IOS
from machine.front_disk import FrontDisk

HELLO_MS: Final = 20  # the backend is Connected: its hello is on the way


class GuestDisk:
    """Disk `number` of guest `domid`, whose rings `driver` runs.

    counters, latency: its FRONTEND_COUNTERS (1,) and histogram (u64) of the guest's `stats`;
    fresh: nobody has written to it yet; state: its state file (u8), if it has one; device: for
    users, once it is Connected.
    """

    def __init__(
        self,
        domid: int,
        number: int,
        vbd: FrontDisk,
        driver: Driver,
        counters: np.ndarray,
        latency: np.ndarray,
        fresh: bool,
        state: np.ndarray | None,
    ) -> None:
        self.number, self.vbd = number, vbd
        self._fresh, self._state = fresh, state
        self._journal: Journal | None = None
        self.device: BlockDevice | None = None
        self._domid, self._driver = domid, driver
        self._counters, self._latency = counters, latency
        self._versions = np.zeros(0, np.uint32)
        self._name = disk_name(domid, number)  # in what is written on it
        self._trace: list[bytes] = []
        self._failed = 0  # I/Os, with the device
        self._told_of_flushes = False
        self._broken_because = ""
        self._channel: EventChannel | None = None  # of the ring that is used
        vbd.when_stopped(self._stop)

    @property
    def at_rest(self) -> bool:
        """It waits for no answer of the store's."""
        return not self.vbd.awaited

    def use(self, keep_going: Callable[[], None]) -> dict[str, Any]:
        """It is Connected: from now on it can be used. What the toolstack is told of it.

        keep_going: see Driver.run.
        """
        dev, channel, disk = self.vbd.dev, self.vbd.channel, self.vbd.disk
        assert dev is not None and channel is not None and disk is not None
        self._channel = channel
        self._driver.attach(self.number, dev, channel)
        self._remember(disk.nr_sectors)
        self.device = BlockDevice(
            self._driver,
            self.number,
            disk,
            self.vbd.buffers(),
            self.vbd.first_buffer,
            self._forget,
            keep_going,
        )
        return {
            "size": self.device.size,
            "backend_persistent": disk.backend_persistent,
            "read_only": disk.read_only,
            "sector_size": disk.sector_size,
        }

    def resized(self) -> int:
        """Its bytes, if its backend has announced another size since it was last asked; else 0.
        What had been beyond the end is not known from now on, whatever comes there later."""
        disk = self.vbd.disk
        if self.device is None or disk is None or not self.vbd.usable:
            return 0
        if disk.nr_sectors * SECTOR_SIZE == self.device.size:
            return 0
        self.device.follow(disk)
        self._versions[disk.nr_sectors :] = UNKNOWN
        return self.device.size

    def _know_all(self) -> None:
        """What is known of a disk that has grown; no load runs on it."""
        grown = self.connected().size // SECTOR_SIZE - len(self._versions)
        if grown and self._journal is None:
            more = np.full(max(grown, 0), UNKNOWN, np.uint32)
            self._versions = np.concatenate([self._versions, more])[: grown + len(self._versions)]

    def _stop(self) -> None:
        """There is no ring, for now or for good."""
        self._driver.suspend(self.number)
        if self._journal is not None:
            lose(self._journal)

    def goes_on(self) -> bool:
        """False while it waits for another ring; one that has come is used from now on."""
        channel, disk = self.vbd.channel, self.vbd.disk
        if self.vbd.kept:
            return False
        if not self.vbd.usable or self.device is None or channel is self._channel:
            return True
        assert channel is not None and disk is not None
        if not self.vbd.far_end_shows(HELLO_MS):
            return False
        self._channel = channel
        self._driver.go_on(self.number, channel)
        self.device.follow(disk)
        return True

    def _remember(self, nr_sectors: int) -> None:
        """What is known of what it holds. Raises CommandError."""
        if self._state is None:
            self._versions = np.full(nr_sectors, 0 if self._fresh else UNKNOWN, np.uint32)
            return
        try:
            flushed, issued = state_arrays(self._state, nr_sectors)
        except ValueError as error:
            raise self.told(str(error)) from None
        self._journal = new_journal(Arena(journal_bytes(nr_sectors)), flushed, issued)
        self._versions = certain_versions(self._journal)

    def connected(self) -> BlockDevice:
        """The disk, to be used. Raises CommandError."""
        if self.device is None or not self.vbd.usable:
            raise self.told(f"not Connected but {self.state()}")
        return self.device

    def job(self, plan: LoadPlan) -> Load:
        """A load on it, its buffers touched. Raises CommandError, or ValueError, if it cannot be
        run."""
        if self.connected().read_only and plan.reads_of_100 < 100:
            raise self.told(f"the disk is read-only, and {plan.rw} writes")
        if plan.bs % (size := self.connected().sector_size):
            raise self.told(f"bs {plan.bs} is no multiple of {size}, the disk's sector size")
        frames = -(-plan.bs // XEN_PAGE_SIZE)
        room = len(self.vbd.buffers()) // XEN_PAGE_SIZE
        if plan.iodepth > NR_IOS or plan.iodepth * frames > room:
            raise self.told(
                f"iodepth {plan.iodepth} x bs {plan.bs} needs {plan.iodepth * frames} frames of"
                f" I/O buffers and at most {NR_IOS} I/Os; this disk has {room} frames"
            )
        self._know_all()
        trace = np.frombuffer(b"".join(self._trace), TRACE) if plan.replay else None
        self._trace.clear()
        self.vbd.buffers()[: plan.iodepth * frames * XEN_PAGE_SIZE : XEN_PAGE_SIZE] = 0
        dev = self._driver.dev(self.number)
        dev.ios["frame"][: plan.iodepth] = self.vbd.first_buffer + np.arange(plan.iodepth) * frames
        now_ns = time.monotonic_ns()
        known = self._versions, self._latency, self._name, now_ns
        return new_load(Arena(), plan, dev, *known, kept=self._journal, trace=trace)

    def export(self, arena: Arena) -> tuple[Export, Load]:
        """Of all that is known of it, for clients; and its ring's job. Raises CommandError."""
        self._know_all()
        disk, dev = self.vbd.disk, self._driver.dev(self.number)
        assert disk is not None
        frames = self.vbd.first_buffer, len(self.vbd.buffers()) // XEN_PAGE_SIZE
        nr_sectors = min(len(self._versions), disk.nr_sectors)  # it may have been resized
        export = new_export(disk, nr_sectors, dev.ios, *frames)
        return export, export_load(arena, self._versions, self._journal)

    def add_to_trace(self, entries: bytes) -> None:
        """More of what the next load on it replays: TRACE. Raises CommandError."""
        self._trace.append(entries)
        if sum(map(len, self._trace)) > ENTRIES_MAX * TRACE.itemsize:
            self._trace.clear()
            raise self.told(f"a trace of more than {ENTRIES_MAX} entries")

    def flush(self) -> None:
        """BlockDevice.flush, which the journal knows of."""
        device, okay = self.connected(), False
        if self._journal is not None:
            begin_flush(self._journal)
        try:
            device.flush()
            okay = bool(self._driver.dev(self.number).front["flushes_as"][0] != NOT_SENT)
        finally:
            if self._journal is not None:
                end_flush(self._journal, okay)
        self.tell_of_flushes()

    def judged(self, sector: int, nr_sectors: int) -> dict[str, Any]:
        """What these sectors hold, by the journal: FOUND's fields, and `named`, OUTSIDE's of the
        first that lie outside. Raises CommandError."""
        device, journal = self.connected(), self._journal
        if journal is None:
            raise self.told("it has no state file")
        judgement = new_judgement(Arena(1 << 16))
        step = PIECE_BYTES // SECTOR_SIZE
        for at in range(sector, end := min(sector + nr_sectors, len(journal.issued)), step):
            nr = min(step, end - at)
            if not journal.issued[at : at + nr].any():
                continue
            data = np.frombuffer(device.read(at * SECTOR_SIZE, nr * SECTOR_SIZE), np.uint8)
            given = self._name, at, nr, journal.flushed, journal.issued
            judge(judgement, address_of(data), *given)
        found = {name: int(judgement.found[name][0]) for name in FOUND.names or ()}
        named = judgement.outside[: found["outside"]].tolist()
        return {**found, "named": [list(each) for each in named]}

    def versions(
        self, sector: int, nr_sectors: int, told: bytes = b"", domid: int = 0, number: int = 0
    ) -> bytes:
        """What loads know of these sectors (`frontend/pattern.py`). told: what they are to know of
        them from now on, which disk `number` of `domid` has written."""
        if told:
            self._know_all()
            self._versions[sector : sector + nr_sectors] = np.frombuffer(told, np.uint32)
            self._name = disk_name(domid, number)
        known = self._versions[sector : sector + nr_sectors]
        more = np.full(nr_sectors - len(known), UNKNOWN, np.uint32)  # what has grown since
        return b"" if told else known.tobytes() + more.tobytes()

    def tell_of_flushes(self) -> None:
        """Say, once, if flushes were reported done that were none."""
        if not self._told_of_flushes and self._driver.dev(self.number).front["unflushed"][0]:
            self._told_of_flushes = True
            what = "its backend does not flush: a flush is reported done, and is none"
            logging.warning("%s", self.told(what))

    def give_up(self, broken_because: str = "") -> None:
        """It can be used no more, and what is in flight has failed. broken_because: how its backend
        broke the ring, if it did: the disk is closed for that."""
        self._failed = self.vbd.in_flight()
        self._counters["io_errors"] += np.uint64(self._failed)
        self._broken_because = broken_because
        if broken_because:
            self.vbd.fail(broken_because)

    def failure(self) -> str:
        """What is told of a disk that was given up; at rest, that says why it is closed."""
        why = self._broken_because or self.state()
        return str(self.told(f"{why}: {self._failed} I/Os in flight have failed"))

    def told(self, what: str) -> CommandError:
        """What the toolstack is told of it."""
        return CommandError(f"domain {self._domid}: {self.vbd.name}: {what}")

    def state(self) -> str:
        """The disk's state, and why it is closed, if it is."""
        why = f", as {self.vbd.closed_because}" if self.vbd.closed_because else ""
        return xenbus.STATE_NAMES[self.vbd.state] + why

    def _forget(self, sector: int, nr_sectors: int) -> None:
        """A user writes here: no load knows what it holds."""
        self._versions[sector : sector + nr_sectors] = UNKNOWN
        if self._journal is not None:
            forget(self._journal, sector, nr_sectors)
