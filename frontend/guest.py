"""A guest's process: attach, shake hands, then do what the toolstack asks over the control pipe.

Owns: the guest's sockets and its main loop. One thread; everything per request is compiled.

Control messages are tuples, `(command, *arguments)`; each is answered `("ok", result)` or
`("error", text)`. Commands: connect, load (LoadPlan), stop, read, write, read_many, write_many,
flush, disk, disconnect, exit.
"""

import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

import numpy as np

from common import xenbus
from common.abi import XEN_PAGE_SIZE
from common.hypercall import HypercallError, Hypercalls
from common.machine_memory import MachineMemory, SegmentRefused, stats_of
from common.process import begin_process
from common.spinning import new_spin
from common.xenstore import XenStoreClient, XenStoreError
from frontend.block_device import BlockDevice
from frontend.driver import DeviceBroken, Driver
from frontend.load import LoadPlan, new_load, run
from frontend.pattern import UNKNOWN
from frontend.vbd import BUFFER_FRAME, NR_IOS, FrontendVbd

CONNECT_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class GuestConfig:
    """What a guest is told when it is built."""

    run_dir: str
    store_path: str
    domid: int
    device: int
    persistent: bool
    adaptive_spin: bool


class GuestError(Exception):
    """What was asked cannot be done; the text goes to the user."""


class Guest:
    """One guest domain; `serve` runs until told to exit."""

    def __init__(self, config: GuestConfig, control: Connection) -> None:
        self._config, self._control = config, control
        self._store = XenStoreClient(config.store_path)
        self._memory = MachineMemory(config.run_dir, config.domid)
        self._hypercalls = Hypercalls(config.run_dir, config.domid)
        self._latency = stats_of(self._memory.segment("stats", config.domid))["latency"][0]
        self._vbd = FrontendVbd(
            self._store,
            self._hypercalls,
            self._memory,
            config.run_dir,
            config.domid,
            config.device,
            config.persistent,
        )
        self._driver: Driver | None = None
        self._device: BlockDevice | None = None
        self._versions = np.zeros(0, np.uint32)
        self._stop_load: Callable[[], None] | None = None
        self._deferred: deque[tuple[Any, ...]] = deque()  # came during a load, answered after it
        self._exiting = False

    def serve(self) -> None:
        """Say that we are up, then answer commands, and the store's events between them."""
        self._control.send(("ok", None))
        while not self._exiting:
            ready = wait([self._control, self._store.fileno()])
            if self._store.fileno() in ready:
                self._handle_store()
            if self._control in ready:
                self._answer(self._control.recv())
            while self._deferred:
                self._answer(self._deferred.popleft())

    def _answer(self, message: tuple[Any, ...]) -> None:
        try:
            result = getattr(self, f"command_{message[0]}")(*message[1:])
        except (GuestError, OSError, ValueError, DeviceBroken) as error:
            if isinstance(error, DeviceBroken):
                self._vbd.fail(str(error))
            self._control.send(("error", f"{error}"))
        else:
            self._control.send(("ok", result))

    def _handle_store(self) -> None:
        self._store.events()
        self._vbd.handle_store()

    def command_connect(self) -> dict[str, Any]:
        """Shake hands until Connected."""
        deadline = time.monotonic() + CONNECT_TIMEOUT_S
        self._vbd.handle_store()
        while self._vbd.state != xenbus.CONNECTED:
            if time.monotonic() > deadline or self._vbd.state == xenbus.CLOSED:
                raise GuestError(
                    f"domain {self._config.domid}: the disk is"
                    f" {xenbus.STATE_NAMES[self._vbd.state]} and not Connected"
                )
            if wait([self._store.fileno()], 0.5):
                self._handle_store()
        dev, channel, disk = self._vbd.dev, self._vbd.channel, self._vbd.disk
        assert dev is not None and channel is not None and disk is not None
        spin = new_spin(self._config.adaptive_spin)
        self._driver = Driver(dev, channel, spin)
        self._versions = np.zeros(disk.nr_sectors, np.uint32)
        self._device = BlockDevice(
            self._driver, disk.nr_sectors, self._vbd.buffers(), BUFFER_FRAME, self._forget
        )
        return {"size": self._device.size, "backend_persistent": disk.backend_persistent}

    def command_load(self, plan: LoadPlan) -> None:
        """Run a load to its end, or until `stop` comes."""
        driver, _ = self._connected()
        frames = -(-plan.bs // XEN_PAGE_SIZE)
        room = len(self._vbd.buffers()) // XEN_PAGE_SIZE
        if plan.iodepth > NR_IOS or plan.iodepth * frames > room:
            raise GuestError(
                f"iodepth {plan.iodepth} x bs {plan.bs} needs {plan.iodepth * frames} frames of I/O"
                f" buffers and at most {NR_IOS} I/Os; this guest has {room} frames"
            )
        dev = driver.dev
        dev.ios["frame"][: plan.iodepth] = BUFFER_FRAME + np.arange(plan.iodepth) * frames
        job = new_load(
            plan, dev, self._versions, self._latency, self._config.domid, time.monotonic_ns()
        )

        def stop() -> None:
            job.load["stop"] = 1

        self._stop_load = stop
        try:
            driver.run(
                lambda: int(run(dev, job, *driver.event_args, driver.spin)),
                self._between_slices,
            )
        finally:
            self._stop_load = None

    def _between_slices(self) -> None:
        while self._control.poll():
            message = self._control.recv()
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

    def command_read_many(self, offsets: np.ndarray, nbytes: int) -> np.ndarray:
        """BlockDevice.read_many."""
        return self._connected()[1].read_many(offsets, nbytes)

    def command_write_many(self, offsets: np.ndarray, data: np.ndarray) -> None:
        """BlockDevice.write_many."""
        self._connected()[1].write_many(offsets, data)

    def command_flush(self) -> None:
        """BlockDevice.flush."""
        self._connected()[1].flush()

    def command_disconnect(self) -> int:
        """Close the disk; returns how many grants could not be ended (0 unless dom0 misbehaves)."""
        if self._vbd.state == xenbus.CONNECTED:
            self._vbd.detach()
        deadline = time.monotonic() + CONNECT_TIMEOUT_S
        while self._vbd.state != xenbus.CLOSED:
            if time.monotonic() > deadline:
                raise GuestError(f"domain {self._config.domid}: the backend does not let go")
            if wait([self._store.fileno()], 0.5):
                self._handle_store()
        self._driver = self._device = None
        return self._vbd.stuck_grants

    def command_exit(self) -> None:
        """End the process once this is answered."""
        self._exiting = True

    def _connected(self) -> tuple[Driver, BlockDevice]:
        if self._driver is None or self._device is None or self._vbd.state != xenbus.CONNECTED:
            raise GuestError(f"domain {self._config.domid}: the disk is not connected")
        return self._driver, self._device

    def _forget(self, sector: int, nr_sectors: int) -> None:
        """A user wrote here: no load knows what it holds."""
        self._versions[sector : sector + nr_sectors] = UNKNOWN


def main(config: GuestConfig, control: Connection) -> None:
    """The process's entry; an error that ends it is told on the control pipe first."""
    begin_process(f"gl-guest-{config.domid}")
    logging.basicConfig(level=logging.WARNING, format=f"domain {config.domid}: %(message)s")
    try:
        Guest(config, control).serve()
    except (XenStoreError, HypercallError, SegmentRefused, OSError, EOFError) as error:
        with contextlib.suppress(OSError):  # the supervisor is gone: this process goes with it
            control.send(("error", f"domain {config.domid}: {error}"))
        raise SystemExit(1) from error
