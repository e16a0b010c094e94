"""A guest's process: born with what it may hold, sealed, then it does what the toolstack asks.

Owns: the guest's main loop. One thread; everything per request is compiled. While a load runs it
looks at its control connection and at its store between slices, and sleeps on both.

Commands: connect, load (LoadPlan's fields), stop, read, write, read_many, write_many, flush,
disconnect, exit; see `common/control.py` for their form.
"""

import contextlib
import functools
import logging
import select
import socket
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from common import xenbus
from common.abi import XEN_PAGE_SIZE
from common.control import CommandError, CommandTable, Control, ControlLost, Message, answer
from common.hypercall import Hypercalls
from common.machine_memory import stats_of
from common.memory import map_segment
from common.spinning import new_spin
from common.wakeups import Events
from common.xenstore import XenStoreClient
from frontend.block_device import BlockDevice
from frontend.driver import DeviceBroken, Driver
from frontend.last_words import LogToControl, last_words
from frontend.load import LoadPlan, new_load, run
from frontend.pattern import UNKNOWN
from frontend.seal import seal
from frontend.vbd import BUFFER_FRAME, NR_IOS, Domain, FrontendVbd

CONNECT_TIMEOUT_S: Final = 30.0
UNMAP_TIMEOUT_S: Final = 10.0  # of a backend, once this end is Closed
RETRY_S: Final = 0.1  # between two tries to end access to what is still mapped


@dataclass(frozen=True)
class GuestConfig:
    """What a guest is told when it is built."""

    domid: int
    device: int
    persistent: bool
    adaptive_spin: bool
    events: Events
    events_dir: str
    threads: int = 1  # see common/spinning.py


class Guest:
    """One guest domain; `serve` runs until told to exit.

    latency: u64, the histogram in its `stats`.
    """

    def __init__(
        self,
        config: GuestConfig,
        control: Control,
        store: XenStoreClient,
        domain: Domain,
        latency: np.ndarray,
    ) -> None:
        self._config, self._control, self._store = config, control, store
        self._latency, self._counters = latency, domain.counters
        self._vbd = FrontendVbd(store, domain, config.device, config.persistent)
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
            stuck = self._vbd.stuck_grants
            ready = self._ready(RETRY_S if stuck else None)
            if stuck and not ready:
                self._vbd.end_accesses()
            if self._store.fileno() in ready:
                self._handle_store()
            if self._control.fileno() in ready and (message := self._control.receive(0)):
                answer(self._control, message, self._commands)
            while self._deferred and not self._exiting:
                answer(self._control, self._deferred.popleft(), self._commands)

    def _ready(self, timeout_s: float | None) -> set[int]:
        """Which of control and store have something to read."""
        return {fd for fd, _ in self._poller.poll(None if timeout_s is None else timeout_s * 1000)}

    def _translated(self, command: Callable[..., Any]) -> Callable[..., Any]:
        """`command`, with its failures as what they are to the toolstack."""

        @functools.wraps(command)  # whose signature `answer` checks
        def translated(*arguments: Any) -> Any:
            try:
                return command(*arguments)
            except DeviceBroken as error:
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

    def _handle_store(self) -> None:
        self._store.events()
        self._vbd.handle_store()

    def command_connect(self) -> dict[str, Any]:
        """Shake hands until Connected."""
        deadline = time.monotonic() + CONNECT_TIMEOUT_S
        self._vbd.handle_store()
        while self._vbd.state != xenbus.CONNECTED:
            if time.monotonic() > deadline or self._vbd.state == xenbus.CLOSED:
                raise self._told(f"not Connected but {self._state()}")
            if self._store.fileno() in self._ready(0.5):
                self._handle_store()
        dev, channel, disk = self._vbd.dev, self._vbd.channel, self._vbd.disk
        assert dev is not None and channel is not None and disk is not None
        spin = new_spin(self._config.adaptive_spin, self._config.threads)
        self._driver = Driver(dev, channel, spin)
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
        job = new_load(
            load, dev, self._versions, self._latency, self._config.domid, time.monotonic_ns()
        )

        def stop() -> None:
            job.load["stop"] = 1

        self._stop_load = stop
        try:
            driver.run(
                lambda: int(run(dev, job, *driver.event_args, driver.spin)),
                self._between_slices,
                self._others(),
            )
        finally:
            self._stop_load = None

    def _between_slices(self) -> None:
        ready = self._ready(0)
        if self._store.fileno() in ready:
            self._handle_store()
            if self._vbd.state != xenbus.CONNECTED:
                raise self._told(f"{self._state()}: {self._fail_io()}")
        if self._control.fileno() in ready and (message := self._control.receive(0)):
            if message[0] == "exit":
                raise SystemExit(0)
            if message[0] == "stop" and self._stop_load is not None:
                self._stop_load()
            self._deferred.append(message)

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
        deadline = time.monotonic() + CONNECT_TIMEOUT_S
        while self._vbd.state != xenbus.CLOSED:
            if time.monotonic() > deadline:
                raise self._told("the backend does not let go")
            if self._store.fileno() in self._ready(0.5):
                self._handle_store()
        self._driver = self._device = None
        deadline = time.monotonic() + UNMAP_TIMEOUT_S
        while self._vbd.stuck_grants and time.monotonic() < deadline:
            self._store.wait_event(RETRY_S)
            self._vbd.handle_store()
        if stuck := self._vbd.stuck_grants:
            logging.warning(
                "%s", self._told(f"{stuck} pages stay granted: the backend has them mapped")
            )
        return self._vbd.stuck_grants

    def command_exit(self) -> None:
        """End the process once this is answered."""
        self._exiting = True

    def _connected(self) -> tuple[Driver, BlockDevice]:
        if self._driver is None or self._device is None or self._vbd.state != xenbus.CONNECTED:
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
        domain = Domain(
            settings.domid,
            Hypercalls(hypercalls),
            ram,
            grant,
            event,
            record["counters"],
            settings.events,
            settings.events_dir,
        )
        Guest(settings, control, client, domain, record["latency"][0]).serve()
