"""A connected frontend, as dom0 has it: mapped ring, bound event channel, running thread.

Owns: what exists from the backend's Connected until it has disconnected, and the number that tells
one connection of a disk from the next. Made, asked to stop and closed by dom0's main thread
(`backend/vbd.py`); the ring's thread says itself that it has ended.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from backend.blkback import Blkback, new_blkback, slots_needed
from backend.foreign_memory import Balloon, map_granted, unmap_slots
from backend.ring_thread import RingThread, Vcpu
from backend.stores import Store
from common import abi
from common.copying import address_of
from common.event_channel import EventChannel, channel_address, events_dir
from common.hypercall import HypercallError, Hypercalls
from common.hypercall_gate import Gate, new_gate, no_gate
from common.machine_memory import MachineMemory, host_of
from common.not_done import GNTST_UNFILLED
from common.spinning import new_spin
from common.wakeups import Events, carrier_of

DOM0_OWN_FRAMES: Final = 16

_numbers = itertools.count(1)


class FrontendError(Exception):
    """The frontend's directory, or what it names, cannot be used; the text says why."""


class RingEnded(NamedTuple):
    """What a ring's thread says last: of which connection, and why if it was not asked to end."""

    domid: int
    device: int
    number: int
    reason: str


class Published(NamedTuple):
    """What a frontend has published: its ring and its event channel."""

    ring_ref: int
    port: int
    persistent: bool


@dataclass(frozen=True)
class BackendOptions:
    """What blkback's module parameters are to Linux, and what the machine gives dom0."""

    persistent: bool
    max_persistent_grants: int
    gather_max: int
    grant_copy: bool
    adaptive_spin: bool
    nr_vcpus: int
    events: Events
    threads: int = 1  # see common/spinning.py


@dataclass(frozen=True)
class Place:
    """Where a disk is served: dom0's ways to hypervisor and memory, the frontend, the vCPU."""

    hypercalls: Hypercalls
    memory: MachineMemory
    run_dir: str
    domid: int
    device: int
    vcpu: Vcpu


def bounce_frame_of(frontend_domid: int) -> int:
    """dom0's first frame for a guest's ring, where requests are served by grant copy.

    One past the last guest's is what RAM dom0 then needs.
    """
    per_ring = slots_needed(abi.BLKIF_RING_SIZE, 0)
    return DOM0_OWN_FRAMES + (frontend_domid - 1) * per_ring


class Connection:
    """What exists while a frontend is connected: mapped ring, bound channel, running thread."""

    def __init__(
        self,
        place: Place,
        disk: Store,
        options: BackendOptions,
        published: Published,
        on_end: Callable[[RingEnded], None],
    ) -> None:
        self._place, self._options = place, options
        self.number = next(_numbers)
        try:
            self._ram_fd = place.memory.descriptor("ram", place.domid)
            events = place.memory.segment("event", place.domid)
        except HypercallError as error:  # the toolstack has named a domain that is none
            raise FrontendError(str(error)) from error
        self._hypercalls = place.hypercalls.get_vcpu(place.vcpu.cpu)
        cap = options.max_persistent_grants if published.persistent else 0
        nr_slots = slots_needed(abi.BLKIF_RING_SIZE, cap)
        self._balloon = Balloon(nr_slots + 1)  # the last slot is the ring's
        self._ring_slot = nr_slots
        try:
            self._ring_handle = self._map_ring(published.ring_ref)
            self._channel = self._bind(published.port, events)
        except FrontendError:
            self._balloon.close()
            self._hypercalls.close()
            raise
        self.dev = self._new_device(disk, published.persistent, cap, nr_slots)
        self._asked_to_stop = False
        self._thread = RingThread(
            self.dev,
            disk,
            self._channel,
            self._hypercalls,
            place.vcpu,
            self._gate(),
            self._ram_fd,
            new_spin(options.adaptive_spin, options.threads),
            lambda reason: on_end(RingEnded(place.domid, place.device, self.number, reason)),
        )

    def start(self) -> None:
        """Begin to serve."""
        self._thread.start()

    def ask_to_stop(self) -> None:
        """Have the ring's thread end, without waiting for it."""
        if not self._asked_to_stop:
            self._asked_to_stop = True
            self._thread.ask_to_stop()

    def has_ended(self, wait_s: float | None) -> bool:
        """Has the ring's thread ended? Asks it to; waits, the first time, at most `wait_s`."""
        first = not self._asked_to_stop
        self.ask_to_stop()
        return self._thread.has_ended(wait_s if first or wait_s is None else 0)

    def _gate(self) -> Gate:
        """Who never spins could not wait at the gate: all its calls go by message."""
        if not self._options.adaptive_spin:
            return no_gate()
        return new_gate(self._place.memory.segment("gate"), self._place.vcpu.cpu)

    def _new_device(self, disk: Store, persistent: bool, cap: int, nr_slots: int) -> Blkback:
        domid, segment = self._place.domid, self._place.memory.segment
        host = host_of(segment("host"))
        page_table, bounce_frame = self._balloon.page_table()[:nr_slots], None
        if self._options.grant_copy:
            bounce_frame = bounce_frame_of(domid)
            ram = address_of(segment("ram")) + bounce_frame * abi.XEN_PAGE_SIZE
            page_table = np.uint64(ram) + (page_table - page_table[0])
        return new_blkback(
            self._balloon.view(self._ring_slot),
            page_table,
            segment("accessed").view(np.uint64),
            host["backend"][0, domid : domid + 1],
            remote_domid=domid,
            nr_sectors=disk.nr_sectors,
            store_address=0 if disk.memory is None else address_of(disk.memory),
            balloon=self._balloon.address,
            persistent=persistent,
            max_persistent_grants=cap,
            gather_max=self._options.gather_max,
            cpu=self._place.vcpu.cpu,
            bounce_frame=bounce_frame,
        )

    def _map_ring(self, ring_ref: int) -> int:
        op = np.zeros(1, abi.GNTTAB_MAP_GRANT_REF)
        op["host_addr"] = self._balloon.address + self._ring_slot * abi.XEN_PAGE_SIZE
        op["flags"], op["ref"], op["dom"] = abi.GNTMAP_HOST_MAP, ring_ref, self._place.domid
        op["status"] = GNTST_UNFILLED
        self._hypercalls.grant_table_op(abi.GNTTABOP_MAP_GRANT_REF, op)
        if op["status"][0] != abi.GNTST_OKAY:
            raise FrontendError(f"ring-ref {ring_ref} cannot be mapped: GNTST {op['status'][0]}")
        assert map_granted(self._ram_fd, op, 1) == 0
        return int(op["handle"][0])

    def _unmap_ring(self) -> None:
        op = np.zeros(1, abi.GNTTAB_UNMAP_GRANT_REF)
        op["host_addr"] = self._balloon.address + self._ring_slot * abi.XEN_PAGE_SIZE
        op["handle"], op["status"] = self._ring_handle, GNTST_UNFILLED
        assert unmap_slots(op, 1) == 0
        self._hypercalls.grant_table_op(abi.GNTTABOP_UNMAP_GRANT_REF, op)
        assert op["status"][0] == abi.GNTST_OKAY

    def _bind(self, port: int, events: np.ndarray) -> EventChannel:
        try:
            bound, descriptors = self._hypercalls.event_channel_op(
                f"event-channel {port}",
                abi.EVTCHNOP_BIND_INTERDOMAIN,
                abi.EVTCHN_BIND_INTERDOMAIN,
                remote_dom=self._place.domid,
                remote_port=port,
            )
        except HypercallError as error:
            self._unmap_ring()
            raise FrontendError(str(error)) from error
        self._local_port = int(bound["local_port"][0])
        theirs, ours = events[: abi.XEN_PAGE_SIZE], events[abi.XEN_PAGE_SIZE :]
        address = channel_address(events_dir(self._place.run_dir, self._place.domid), port)
        carrier = carrier_of(self._options.events, descriptors, address, allocated_here=False)
        return EventChannel(carrier, port, ours[: abi.XEN_PAGE_SIZE], theirs)

    def close(self) -> None:
        """Unmap the ring and close the channel, once the thread has ended: nothing is left."""
        self._thread.has_ended(None)
        self._thread.close()
        self._channel.close()
        self._hypercalls.event_channel_op(
            "close", abi.EVTCHNOP_CLOSE, abi.EVTCHN_CLOSE, port=self._local_port
        )
        self._unmap_ring()
        self._hypercalls.close()
        self._balloon.close()
