"""dom0's process: a backend for every virtual disk that the toolstack writes into the store.

Owns: the watch on `backend/vbd`, the devices, which vCPU each ring's thread runs on. What an event
names is looked at, one disk at a time and in turn (`backend/due.py`), and never all there is.
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
import time
from dataclasses import dataclass
from typing import Any, Final

from backend.due import Due, Key
from backend.plug import DEVICE_MAX, PlugError, open_disk, parse_name, read_plug
from backend.ring_thread import Vcpu
from backend.vbd import BackendOptions, BackendVbd, RingEnded
from common.abi import DOMID_FIRST_RESERVED
from common.control import Control, answer
from common.hypercall import HypercallError, Hypercalls
from common.log_limit import log_to_terminal
from common.machine_memory import MachineMemory, host_of
from common.shares import Shares
from common.xenbus import INITIALISING, backend_path
from common.xenbus_writes import write_if_there
from common.xenstore import XenStoreClient, XenStoreError

BACKEND_ROOT: Final = "/local/domain/0/backend/vbd"
TOOLSTACK: Final = "toolstack"  # the token of the watch there; a disk's own is "domid/device"
DOMID_MAX: Final = DOMID_FIRST_RESERVED - 1
LOOKS_BURST_NS: Final = 300_000_000  # ten handshakes and more
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
        self._vbds: dict[Key, BackendVbd] = {}
        self._params: dict[Key, bytes] = {}  # what each was begun with
        self._due, self._shares = Due(), Shares(LOOKS_BURST_NS)
        self._serial = 0
        # A ring's thread says here that it has ended; the main thread owns the store.
        self._ended: queue.SimpleQueue[RingEnded] = queue.SimpleQueue()
        self._ended_event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def serve(self) -> None:
        """Follow the store until told to exit."""
        self._store.watch(BACKEND_ROOT, TOOLSTACK)
        self._control.send("ok", None)
        poller = select.poll()
        for end in (self._control, self._store, self._ended_event):
            poller.register(end, select.POLLIN)
        while not self._exiting:
            # One disk is looked at for each look at what has come, so that no event waits for all.
            pause_ns = self._due.pause_ns(time.monotonic_ns())
            pause_ms = None if pause_ns is None else -(-pause_ns // 1_000_000)
            ready = {fd for fd, _ in poller.poll(pause_ms)}
            if self._ended_event in ready:
                self._take_ended()
            if self._store.fileno() in ready:
                self._take_events()
            if self._control.fileno() in ready and (message := self._control.receive(0)):
                answer(self._control, message, {"exit": self._exit})
            if not self._exiting:
                self._have_a_look()

    def _exit(self) -> None:
        self._exiting = True
        self._shut_down()

    # --- what there is to look at -----------------------------------------------------------

    def _take_events(self) -> None:
        for path, token in self._store.events():
            if token == TOOLSTACK:
                self._heed_toolstack(path)
            else:
                domid, _, device = token.partition("/")
                self._due.add((int(domid), int(device)))  # the token is ours

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
        vbd = self._vbds.get((domid, device))
        changed = names[2] if len(names) > 2 else ""
        if not changed:  # all of it was made, or removed, and the guest does neither
            self._due.hurry(domid)
        if vbd is None or vbd.state == INITIALISING or changed in ("", "state", "online"):
            self._due.add((domid, device))

    def _list(self, only: str) -> None:
        """Everything there is, and everything there was; of one domain, or of all ("")."""
        for key in self._vbds:
            if only in ("", str(key[0])):
                self._due.add(key)
        for domid in [only] if only else self._children(BACKEND_ROOT):
            for device in self._children(f"{BACKEND_ROOT}/{domid}"):
                self._heed_toolstack(f"{BACKEND_ROOT}/{domid}/{device}")

    def _children(self, path: str) -> list[str]:
        try:
            return self._store.directory(path)
        except XenStoreError as error:
            if error.name != "ENOENT":
                raise
            return []

    def _take_ended(self) -> None:
        os.eventfd_read(self._ended_event)
        while not self._ended.empty():
            ended = self._ended.get()
            key = (ended.domid, ended.device)
            if key in self._vbds:
                self._vbds[key].ring_ended(ended)
                self._due.add(key)

    def _report_ended(self, ended: RingEnded) -> None:
        self._ended.put(ended)
        os.eventfd_write(self._ended_event, 1)

    def _have_a_look(self) -> None:
        """At one disk, if one is due whose guest has not had too much of our time."""
        began_ns = time.monotonic_ns()
        key = self._due.take(began_ns)
        if key is None:
            return
        self._look(key)
        now_ns = time.monotonic_ns()
        if rest_ns := self._shares.charge(key[0], now_ns - began_ns, now_ns):
            self._due.rest(key[0], now_ns + rest_ns)

    # --- one look ---------------------------------------------------------------------------

    def _look(self, key: Key) -> None:
        try:
            vbd = self._begun(key)
            if vbd is None:
                return
            again = vbd.handle_store()
            if vbd.finished:
                self._drop(key)
                again = True  # something else may be there by now
        except XenStoreError as error:
            if error.name != "EAGAIN":
                raise
            again = True  # somebody changes it all the time
        if again:
            self._due.add(key)

    def _begun(self, key: Key) -> BackendVbd | None:
        """The disk `key`, begun now if what it needs is there."""
        vbd = self._vbds.get(key)
        if vbd is not None and vbd.state != INITIALISING:
            return vbd
        path = backend_path(*key)
        entries = self._store.read_directory(path) or {}
        try:
            params = read_plug(entries, *key)
            if vbd is not None and params == self._params[key]:
                return vbd
            if vbd is not None:  # nothing has been promised of it yet
                self._drop(key)
            return None if params is None else self._begin(key, params)
        except PlugError as error:
            if vbd is not None:
                self._drop(key)
            if entries.get("error") != str(error).encode():
                log.warning("vbd %d/%d: %s", *key, error)
                write_if_there(self._store, path, {"error": error})
            return None

    def _begin(self, key: Key, params: bytes) -> BackendVbd:
        disk = open_disk(params)
        vcpu = self._vcpus[self._serial % len(self._vcpus)]
        self._serial += 1
        self._params[key] = params
        self._vbds[key] = BackendVbd(
            self._store,
            self._hypercalls,
            self._memory,
            self._config.run_dir,
            *key,
            disk,
            vcpu,
            self._config.options,
            self._report_ended,
        )
        return self._vbds[key]

    def _drop(self, key: Key) -> None:
        self._vbds.pop(key).close()
        del self._params[key]
        if not any(domid == key[0] for domid, _ in self._vbds):
            self._memory.forget(key[0])
            self._shares.forget(key[0])

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
    log_to_terminal("dom0: %(message)s")
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
