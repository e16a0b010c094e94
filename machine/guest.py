"""A guest's process: born with what it may hold, sealed, then it does what the toolstack asks.

Owns: the guest's main loop, `_turn`: the one place that looks at control connection and store.
One thread; everything per request is compiled. While a load runs, or a command is waited for, that
loop goes on between slices, and what is asked meanwhile is answered afterwards.

Commands: connect, load (LoadPlan's fields), stop, read, write, read_many, write_many, flush,
disconnect, exit; see `common/control.py` for their form.
"""

import contextlib
import functools
import logging
import math
import select
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from common import xenbus
from common.abi import XEN_PAGE_SIZE
from common.arena import Arena
from common.control import CommandError, CommandTable, Control, ControlLost, Message, answer
from common.faults import PeerFault
from common.handshake import Stirred
from common.hypercall import Hypercalls
from common.machine_memory import stats_of
from common.memory import map_segment
from common.spinning import new_spin
from common.xenstore import XenStoreClient
from frontend.block_device import BlockDevice
from frontend.driver import Driver
from frontend.load import LoadPlan, new_load
from frontend.pattern import UNKNOWN
from frontend.seal import seal
from frontend.vbd import BUFFER_FRAME, NR_IOS, Domain
from machine.front import guest_domain
from machine.front_disk import FAR_END_S, FrontDisk, Line
from machine.guest_config import GuestConfig
from machine.last_words import LogToControl, last_words

CONNECT_TIMEOUT_S: Final = 30.0
UNMAP_TIMEOUT_S: Final = 10.0  # of a backend, once this end is Closed


class Guest:
    """One guest domain; `serve` runs until told to exit.

    counters, latency: FRONTEND_COUNTERS (1,) and the histogram (u64) in its `stats`.
    """

    def __init__(
        self,
        config: GuestConfig,
        control: Control,
        store: XenStoreClient,
        domain: Domain,
        line: Line,
        counters: np.ndarray,
        latency: np.ndarray,
    ) -> None:
        self._config, self._control, self._store = config, control, store
        self._latency, self._counters = latency, counters
        self._vbd = FrontDisk(store, domain, line, config.device, config.persistent)
        self._driver: Driver | None = None
        self._device: BlockDevice | None = None
        self._versions = np.zeros(0, np.uint32)
        self._stop_load: Callable[[], None] | None = None
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
        if timeout_s != 0 and (pause_s := self._vbd.timers.pause_s()) is not None:
            timeout_s = pause_s if timeout_s is None else min(timeout_s, pause_s)
        timeout_ms = None if timeout_s is None else math.ceil(timeout_s * 1000)
        ready = {fd for fd, _ in self._poller.poll(timeout_ms)}
        if self._control.fileno() in ready and (message := self._control.receive(0)):
            self._deferred.append(message)
        if self._store.fileno() in ready:
            self._vbd.take_events()
        self._vbd.timers.ring()

    def _meanwhile(self, timeout_s: float) -> None:
        """The same, while a command is carried out: what ends it is heeded, the rest has time."""
        heard = len(self._deferred)
        self._turn(timeout_s)
        for word, *_ in list(self._deferred)[heard:]:
            if word == "exit":
                raise SystemExit(0)
            if word == "stop" and self._stop_load is not None:
                self._stop_load()

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
            except PeerFault as error:
                failed = self._fail_io()
                self._vbd.fail(str(error))
                raise self._told(f"{error}: {failed}") from error
            except (OSError, ValueError, TypeError) as error:
                raise CommandError(str(error)) from error

        return translated

    def _told(self, what: str) -> CommandError:
        """What the toolstack is told of this guest's disk."""
        return CommandError(f"domain {self._config.domid}: {self._vbd.name}: {what}")

    def _fail_io(self) -> str:
        """The disk is closed for good: what is in flight has failed. Says how much that is."""
        failed = self._vbd.in_flight()
        self._counters["io_errors"] += np.uint64(failed)
        return f"{failed} I/Os in flight have failed"

    def command_connect(self) -> dict[str, Any]:
        """Shake hands until Connected."""
        ends = (xenbus.CONNECTED, xenbus.CLOSED)
        self._vbd.tell(Stirred())
        self._await(lambda: self._at_rest() and self._vbd.state in ends, CONNECT_TIMEOUT_S)
        dev, channel, disk = self._vbd.dev, self._vbd.channel, self._vbd.disk
        if not self._vbd.usable or dev is None or channel is None or disk is None:
            raise self._told(f"not Connected but {self._state()}")
        self._await_far_end(channel.carrier.fileno())
        self._driver = Driver(dev, channel)
        self._versions = np.zeros(disk.nr_sectors, np.uint32)
        self._device = BlockDevice(
            self._driver,
            disk.nr_sectors,
            self._vbd.buffers(),
            BUFFER_FRAME,
            self._forget,
            self._between_slices,
            self._others(),
        )
        return {"size": self._device.size, "backend_persistent": disk.backend_persistent}

    def _await_far_end(self, fd: int) -> None:
        """Until the backend can be woken. `fd`: the channel's."""
        self._poller.register(fd, select.POLLIN)
        shows = self._await(lambda: not self._vbd.usable or self._vbd.far_end_shows(), FAR_END_S)
        self._poller.unregister(fd)
        if not self._vbd.usable:
            self._connected()  # says why it is not
        if not shows:
            logging.warning("%s", self._told("the backend's end of its event channel is not there"))

    def _others(self) -> tuple[int, int]:
        return self._control.fileno(), self._store.fileno()

    def command_load(self, plan: dict[str, Any]) -> None:
        """Run a load to its end, or until `stop` comes."""
        driver, _ = self._connected()
        load = LoadPlan(**plan)
        frames = -(-load.bs // XEN_PAGE_SIZE)
        room = len(self._vbd.buffers()) // XEN_PAGE_SIZE
        if load.iodepth > NR_IOS or load.iodepth * frames > room:
            raise CommandError(
                f"iodepth {load.iodepth} x bs {load.bs} needs {load.iodepth * frames} frames of I/O"
                f" buffers and at most {NR_IOS} I/Os; this guest has {room} frames"
            )
        dev = driver.dev
        dev.ios["frame"][: load.iodepth] = BUFFER_FRAME + np.arange(load.iodepth) * frames
        disk = self._config.domid
        job = new_load(Arena(), load, dev, self._versions, self._latency, disk, time.monotonic_ns())

        def stop() -> None:
            job.load["stop"] = 1

        self._stop_load = stop
        try:
            driver.run(job, self._between_slices, self._others())
        finally:
            self._stop_load = None

    def _between_slices(self) -> None:
        self._meanwhile(0)
        if not self._vbd.usable:
            self._await(self._at_rest, CONNECT_TIMEOUT_S)
            raise self._told(f"{self._state()}: {self._fail_io()}")

    def _at_rest(self) -> bool:
        return not self._vbd.awaited

    def command_stop(self) -> None:
        """A stop that comes when no load runs has nothing to do."""

    def command_read(self, offset: int, nbytes: int) -> bytes:
        """BlockDevice.read."""
        return self._connected()[1].read(offset, nbytes)

    def command_write(self, offset: int, data: bytes) -> int:
        """BlockDevice.write."""
        return self._connected()[1].write(offset, data)

    def command_read_many(self, offsets: list[int], nbytes: int) -> bytes:
        """BlockDevice.read_many, row after row."""
        return self._connected()[1].read_many(offsets, nbytes).tobytes()

    def command_write_many(self, offsets: list[int], data: bytes) -> None:
        """BlockDevice.write_many, row after row."""
        rows = np.frombuffer(data, np.uint8).reshape(len(offsets), -1)
        self._connected()[1].write_many(offsets, rows)

    def command_flush(self) -> None:
        """BlockDevice.flush."""
        self._connected()[1].flush()

    def command_disconnect(self) -> int:
        """Close the disk; returns how many grants could not be ended (0 unless dom0 misbehaves)."""
        self._vbd.detach()
        if not self._await(lambda: self._vbd.state == xenbus.CLOSED, CONNECT_TIMEOUT_S):
            raise self._told("the backend does not let go")
        self._driver = self._device = None
        self._await(lambda: self._at_rest() and self._vbd.finished, UNMAP_TIMEOUT_S)
        if stuck := self._vbd.stuck_grants:
            logging.warning(
                "%s", self._told(f"{stuck} pages stay granted: the backend has them mapped")
            )
        return self._vbd.stuck_grants

    def command_exit(self) -> None:
        """End the process once this is answered."""
        self._exiting = True

    def _connected(self) -> tuple[Driver, BlockDevice]:
        if self._driver is None or self._device is None or not self._vbd.usable:
            self._await(self._at_rest, CONNECT_TIMEOUT_S)
            raise self._told(f"not Connected but {self._state()}")
        return self._driver, self._device

    def _state(self) -> str:
        """The disk's state, and why it is closed, if it is."""
        why = f", as {self._vbd.closed_because}" if self._vbd.closed_because else ""
        return xenbus.STATE_NAMES[self._vbd.state] + why

    def _forget(self, sector: int, nr_sectors: int) -> None:
        """A user wrote here: no load knows what it holds."""
        self._versions[sector : sector + nr_sectors] = UNKNOWN


def main(config: dict[str, Any], descriptors: list[int]) -> None:
    """The process's entry. descriptors: control, hypercalls, store, then its four segments
    (common.machine_memory.DOMAIN_SEGMENTS), of which it keeps the mappings."""
    settings = GuestConfig(**config)
    control = Control.of_descriptor(descriptors[0])
    logging.basicConfig(level=logging.WARNING, handlers=[LogToControl(control)])
    with contextlib.suppress(ControlLost), last_words(control, settings.domid):
        hypercalls, store = (socket.socket(fileno=fd) for fd in descriptors[1:3])
        ram, grant, event, stats = (map_segment(fd) for fd in descriptors[3:])
        client = XenStoreClient(store)
        if unsealed := seal(settings.events):
            logging.warning("not sealed: %s", unsealed)
        record = stats_of(stats)
        spin, counters = new_spin(settings.adaptive_spin, settings.threads), record["counters"]
        domain = guest_domain(settings.domid, ram, grant, event, counters, spin)
        line = Line(Hypercalls(hypercalls), event, settings.events, settings.events_dir)
        Guest(settings, control, client, domain, line, counters, record["latency"][0]).serve()
