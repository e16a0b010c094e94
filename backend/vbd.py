"""The backend's xenbus driver of one virtual disk: the handshake's steps, as blkback takes them.

Owns: the store keys the backend writes, the mapped ring, its thread. `common/xenbus.py` says when a
step is due. Runs in dom0's main thread; the ring's thread is started and stopped from here.
Rule: everything read from the frontend's directory is the guest's to write: it is parsed, and what
does not parse closes this device with its reason in the store's `error` node, and nothing else.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from backend.blkback import Blkback, new_blkback, slots_needed
from backend.foreign_memory import Balloon, map_granted, unmap_slots
from backend.ring_thread import RingThread, Vcpu
from backend.stores import Store
from common import abi, xenbus
from common.copying import address_of
from common.event_channel import EventChannel, channel_address
from common.hypercall import HypercallError, Hypercalls
from common.hypercall_gate import Gate, new_gate, no_gate
from common.machine_memory import MachineMemory, host_of
from common.spinning import new_spin
from common.xenstore import XenStoreClient, XenStoreError

log = logging.getLogger(__name__)

PROTOCOL: Final = b"x86_64-abi"
SHOWN_MAX: Final = 60
DOM0_OWN_FRAMES: Final = 16


class FrontendError(Exception):
    """The frontend's directory, or what it names, cannot be used; the text says why."""


@dataclass(frozen=True)
class BackendOptions:
    """What blkback's module parameters are to Linux, and what the machine gives dom0."""

    persistent: bool
    max_persistent_grants: int
    gather_max: int
    grant_copy: bool
    adaptive_spin: bool
    nr_vcpus: int


class BackendVbd:
    """One virtual disk of dom0, from Initialising to Closed (and round again)."""

    def __init__(
        self,
        store: XenStoreClient,
        memory: MachineMemory,
        run_dir: str,
        frontend_domid: int,
        device: int,
        disk: Store,
        vcpu: Vcpu,
        options: BackendOptions,
        report_broken: Callable[[str], None],
    ) -> None:
        self._report_broken = report_broken
        self._store, self._memory, self._run_dir = store, memory, run_dir
        self._domid, self._device = frontend_domid, device
        self._disk, self._vcpu, self._options = disk, vcpu, options
        self.path = xenbus.backend_path(frontend_domid, device)
        self.frontend_path = store.read(f"{self.path}/frontend").decode()
        self.state = xenbus.INITIALISING
        self._connection: _Connection | None = None
        self._watch = (f"{self.frontend_path}/state", f"frontend-{frontend_domid}-{device}")
        store.watch(*self._watch)

    @property
    def finished(self) -> bool:
        """Closed, and the toolstack wants it gone."""
        return self.state == xenbus.CLOSED and self._read(f"{self.path}/online") != b"1"

    def handle_store(self) -> None:
        """The other end's state may have changed: take the steps that are due."""
        while True:
            other = xenbus.parse_state(self._read(f"{self.frontend_path}/state"))
            step = xenbus.next_step("backend", self.state, other)
            if step is None:
                return
            try:
                getattr(self, step.action)()
            except FrontendError as error:
                self.fail(str(error))
                return
            self._switch(step.state)

    def fail(self, reason: str) -> None:
        """Close this device for a fault of its frontend, and say why where people look."""
        log.warning("vbd %d/%d: %s", self._domid, self._device, reason)
        self.disconnect()
        self._store.write(f"{self.path}/error", reason.encode())
        self._switch(xenbus.CLOSING)

    def announce(self) -> None:
        """What this backend could do, before it has seen the frontend."""
        for key, value in (
            ("feature-max-indirect-segments", 0),
            ("multi-queue-max-queues", 1),
            ("max-ring-page-order", 0),
        ):
            self._store.write(f"{self.path}/{key}", str(value).encode())

    def connect(self) -> None:
        """Map the ring, bind the channel, announce the disk in one transaction, start serving."""
        ring_ref = self._frontend_number("ring-ref")
        port = self._frontend_number("event-channel")
        protocol = self._read(f"{self.frontend_path}/protocol")
        if protocol != PROTOCOL:
            raise FrontendError(f"protocol {_shown(protocol)} is not '{PROTOCOL.decode()}'")
        frontend_keeps = self._read(f"{self.frontend_path}/feature-persistent") == b"1"
        persistent = self._options.persistent and frontend_keeps
        self._connection = _Connection(self, ring_ref, port, persistent)
        with self._store.transaction() as transaction:
            for key, value in (
                ("feature-flush-cache", 0),
                ("feature-discard", 0),
                ("feature-barrier", 0),
                ("feature-persistent", int(self._options.persistent)),
                ("sectors", self._disk.nr_sectors),
                ("info", 0),
                ("sector-size", abi.SECTOR_SIZE),
                ("physical-sector-size", abi.XEN_PAGE_SIZE),
            ):
                transaction.write(f"{self.path}/{key}", str(value).encode())
        self._connection.thread.start()

    def disconnect(self) -> None:
        """Stop the ring, unmap everything it kept, then the ring itself."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def stop_serving(self) -> None:
        """dom0 is going down: let the ring's thread end, without waiting for it."""
        if self._connection is not None:
            self._connection.thread.ask_to_stop()

    def close(self) -> None:
        """dom0 forgets this device."""
        self.disconnect()
        self._store.unwatch(*self._watch)
        self._disk.close()

    def _frontend_number(self, key: str) -> int:
        value = self._read(f"{self.frontend_path}/{key}")
        if value is None or not value.isdigit() or int(value) > 0xFFFFFFFF:
            raise FrontendError(f"{key} {_shown(value)} is not a number")
        return int(value)

    def _switch(self, state: int) -> None:
        self.state = state
        self._store.write(f"{self.path}/state", str(state).encode())

    def _read(self, path: str) -> bytes | None:
        try:
            return self._store.read(path)
        except XenStoreError:
            return None


def bounce_frame_of(frontend_domid: int) -> int:
    """dom0's first frame for a guest's ring, where requests are served by grant copy.

    One past the last guest's is what RAM dom0 then needs.
    """
    per_ring = slots_needed(abi.BLKIF_RING_SIZE, 0)
    return DOM0_OWN_FRAMES + (frontend_domid - 1) * per_ring


def _shown(value: bytes | None) -> str:
    """What a guest wrote, short enough for the store's `error` node."""
    text = repr(value)
    return text if len(text) <= SHOWN_MAX else f"{text[:SHOWN_MAX]}..."


class _Connection:
    """What exists while a frontend is connected: mapped ring, bound channel, running thread."""

    def __init__(self, vbd: BackendVbd, ring_ref: int, port: int, persistent: bool) -> None:
        options = vbd._options
        self._domid, self._cpu = vbd._domid, vbd._vcpu.cpu
        self._hypercalls = Hypercalls(vbd._run_dir, abi.DOMID_0, self._cpu)
        self._ram_fd = vbd._memory.segment("ram", vbd._domid).fd
        cap = options.max_persistent_grants if persistent else 0
        nr_slots = slots_needed(abi.BLKIF_RING_SIZE, cap)
        self._balloon = Balloon(nr_slots + 1)  # the last slot is the ring's
        self._ring_slot = nr_slots
        try:
            self._ring_handle = self._map_ring(ring_ref)
            self._channel = self._bind(vbd, port)
        except FrontendError:
            self._balloon.close()
            self._hypercalls.close()
            raise
        self.dev = self._new_device(vbd, persistent, cap, nr_slots)
        self.thread = RingThread(
            self.dev,
            vbd._disk,
            self._channel,
            self._hypercalls,
            vbd._vcpu,
            self._gate(vbd),
            self._ram_fd,
            new_spin(options.adaptive_spin),
            vbd._report_broken,
        )

    def _gate(self, vbd: BackendVbd) -> Gate:
        """Who never spins could not wait at the gate: all its calls go by message."""
        if not vbd._options.adaptive_spin:
            return no_gate()
        return new_gate(vbd._memory.segment("gate").bytes, self._cpu)

    def _new_device(self, vbd: BackendVbd, persistent: bool, cap: int, nr_slots: int) -> Blkback:
        host = host_of(vbd._memory.segment("host"))
        memory = vbd._disk.memory
        page_table, bounce_frame = self._balloon.page_table()[:nr_slots], None
        if vbd._options.grant_copy:
            bounce_frame = bounce_frame_of(self._domid)
            ram = address_of(vbd._memory.segment("ram").bytes) + bounce_frame * abi.XEN_PAGE_SIZE
            page_table = np.uint64(ram) + (page_table - page_table[0])
        return new_blkback(
            self._balloon.view(self._ring_slot),
            page_table,
            vbd._memory.segment("accessed").bytes.view(np.uint64),
            host["backend"][0, self._domid : self._domid + 1],
            remote_domid=self._domid,
            nr_sectors=vbd._disk.nr_sectors,
            store_address=0 if memory is None else address_of(memory),
            balloon=self._balloon.address,
            persistent=persistent,
            max_persistent_grants=cap,
            gather_max=vbd._options.gather_max,
            cpu=self._cpu,
            bounce_frame=bounce_frame,
        )

    def _map_ring(self, ring_ref: int) -> int:
        op = np.zeros(1, abi.GNTTAB_MAP_GRANT_REF)
        op["host_addr"] = self._balloon.address + self._ring_slot * abi.XEN_PAGE_SIZE
        op["flags"], op["ref"], op["dom"] = abi.GNTMAP_HOST_MAP, ring_ref, self._domid
        self._hypercalls.grant_table_op(abi.GNTTABOP_MAP_GRANT_REF, op)
        if op["status"][0] != abi.GNTST_OKAY:
            raise FrontendError(f"ring-ref {ring_ref} cannot be mapped: GNTST {op['status'][0]}")
        assert map_granted(self._ram_fd, op, 1) == 0
        return int(op["handle"][0])

    def _unmap_ring(self) -> None:
        op = np.zeros(1, abi.GNTTAB_UNMAP_GRANT_REF)
        op["host_addr"] = self._balloon.address + self._ring_slot * abi.XEN_PAGE_SIZE
        op["handle"] = self._ring_handle
        assert unmap_slots(op, 1) == 0
        self._hypercalls.grant_table_op(abi.GNTTABOP_UNMAP_GRANT_REF, op)
        assert op["status"][0] == abi.GNTST_OKAY

    def _bind(self, vbd: BackendVbd, port: int) -> EventChannel:
        try:
            local = self._hypercalls.event_channel_op(
                f"event-channel {port}",
                abi.EVTCHNOP_BIND_INTERDOMAIN,
                abi.EVTCHN_BIND_INTERDOMAIN,
                remote_dom=self._domid,
                remote_port=port,
            )["local_port"][0]
        except HypercallError as error:
            self._unmap_ring()
            raise FrontendError(str(error)) from error
        self._local_port = int(local)
        events = vbd._memory.segment("event", self._domid).bytes
        theirs, ours = events[: abi.XEN_PAGE_SIZE], events[abi.XEN_PAGE_SIZE :]
        return EventChannel(
            channel_address(vbd._run_dir, self._domid, port),
            port,
            ours[: abi.XEN_PAGE_SIZE],
            theirs,
            allocated_here=False,
        )

    def close(self) -> None:
        self.thread.stop()
        self._channel.close()
        self._hypercalls.event_channel_op(
            "close", abi.EVTCHNOP_CLOSE, abi.EVTCHN_CLOSE, port=self._local_port
        )
        self._unmap_ring()
        self._hypercalls.close()
        self._balloon.close()
