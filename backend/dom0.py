"""dom0's process: a backend for every virtual disk that the toolstack writes into the store.

Owns: the watch on `backend/vbd`, the devices, which vCPU each ring's thread runs on.
The main thread does the handshakes; each ring has a thread of its own, all in one address space, so
that unmapping a page really shoots down the TLBs of the others.
"""

import logging
import os
import queue
import select
import socket
import sys
import threading
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from backend.ring_thread import Vcpu
from backend.stores import RamStore
from backend.vbd import BackendOptions, BackendVbd
from common.abi import SECTOR_SIZE
from common.control import Control, answer
from common.hypercall import HypercallError, Hypercalls
from common.machine_memory import MachineMemory, host_of
from common.xenstore import XenStoreClient, XenStoreError

BACKEND_ROOT: Final = "/local/domain/0/backend/vbd"
SWITCH_INTERVAL_S: Final = 1e-4  # a thread that wakes must not wait 5 ms for the interpreter

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
        self._config, self._control, self._hypercalls = config, control, hypercalls
        self._store = XenStoreClient(config.store_path, reply_timeout_s=None)
        self._memory = MachineMemory(hypercalls)
        self._exiting = False
        host = host_of(self._memory.segment("host"))
        self._vcpus = [
            Vcpu(cpu, host["running"][0], host["dirty"][0])
            for cpu in range(config.options.nr_vcpus)
        ]
        for vcpu in self._vcpus:  # booting a domain runs each of its vCPUs once
            vcpu.run()
            vcpu.idle()
        self._vbds: dict[tuple[int, int], BackendVbd] = {}
        self._serial = 0
        # A ring's thread says here that its guest broke the ring; the main thread owns the store.
        self._broken: queue.SimpleQueue[tuple[int, int, str]] = queue.SimpleQueue()
        self._broken_event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def serve(self) -> None:
        """Follow the store until told to exit."""
        self._store.watch(BACKEND_ROOT, "backend")
        self._control.send("ok", None)
        poller = select.poll()
        for end in (self._control, self._store, self._broken_event):
            poller.register(end, select.POLLIN)
        while not self._exiting:
            ready = {fd for fd, _ in poller.poll()}
            if self._broken_event in ready:
                self._close_broken()
            if self._store.fileno() in ready:
                self._handle_store()
            if self._control.fileno() in ready and (message := self._control.receive(0)):
                answer(self._control, message, {"exit": self._exit})

    def _exit(self) -> None:
        self._exiting = True
        self._shut_down()

    def _handle_store(self) -> None:
        for _path, token in self._store.events():
            if token == "backend":
                self._look_for_new()
        for key, vbd in list(self._vbds.items()):
            vbd.handle_store()
            if vbd.finished:
                vbd.close()
                self._memory.forget(key[0])
                del self._vbds[key]

    def _close_broken(self) -> None:
        os.eventfd_read(self._broken_event)
        while not self._broken.empty():
            domid, device, reason = self._broken.get()
            if (domid, device) in self._vbds:
                self._vbds[domid, device].fail(reason)

    def _report_broken(self, domid: int, device: int, reason: str) -> None:
        self._broken.put((domid, device, reason))
        os.eventfd_write(self._broken_event, 1)

    def _look_for_new(self) -> None:
        for domid in self._numbers(BACKEND_ROOT):
            for device in self._numbers(f"{BACKEND_ROOT}/{domid}"):
                if (domid, device) not in self._vbds:
                    self._add(domid, device)

    def _add(self, domid: int, device: int) -> None:
        path = f"{BACKEND_ROOT}/{domid}/{device}"
        try:
            if (
                self._store.read(f"{path}/state") != b"1"
                or self._store.read(f"{path}/online") != b"1"
            ):
                return
            params = self._store.read(f"{path}/params").decode()
        except XenStoreError:
            return  # the toolstack is not done writing: the next event of the watch brings us back
        size_mib = int(params.removeprefix("ram:"))
        vcpu = self._vcpus[self._serial % len(self._vcpus)]
        self._serial += 1
        self._vbds[domid, device] = BackendVbd(
            self._store,
            self._hypercalls,
            self._memory,
            self._config.run_dir,
            domid,
            device,
            RamStore(size_mib * (1 << 20) // SECTOR_SIZE),
            vcpu,
            self._config.options,
            partial(self._report_broken, domid, device),
        )

    def _numbers(self, path: str) -> list[int]:
        try:
            return [int(name) for name in self._store.directory(path) if name.isdigit()]
        except XenStoreError:
            return []

    def _shut_down(self) -> None:
        for vbd in self._vbds.values():
            vbd.stop_serving()
        for vbd in self._vbds.values():
            vbd.close()


def _die_of(failure: threading.ExceptHookArgs) -> None:
    """An exception in a ring's thread is a bug of ours: this process ends, and says why."""
    sys.excepthook(failure.exc_type, failure.exc_value or failure.exc_type(), failure.exc_traceback)
    sys.stderr.flush()
    os._exit(70)


def main(config: dict[str, Any], descriptors: list[int]) -> None:
    """The process's entry. descriptors: control, hypercalls of vCPU 0."""
    logging.basicConfig(level=logging.WARNING, format="dom0: %(message)s")
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    threading.excepthook = _die_of
    control = Control.of_descriptor(descriptors[0])
    hypercalls = Hypercalls(socket.socket(fileno=descriptors[1]))
    options = BackendOptions(**config.pop("options"))
    try:
        Dom0(Dom0Config(**config, options=options), control, hypercalls).serve()
    except (XenStoreError, HypercallError, OSError) as error:
        control.send("error", f"dom0: {error}")
        raise SystemExit(1) from error
