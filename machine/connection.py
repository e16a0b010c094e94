"""dom0's hands for one disk: the mapped ring, the bound channel, the ring that has turns.

Owns: what a backend's handshake (`backend/vbd.py`) has in this process while its frontend is
connected. Used by dom0's main thread; the vCPU's thread says itself when the ring has ended.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np

from backend.blkback import Blkback
from backend.file_store import FileQueue, FileStore
from backend.foreign_memory import Balloon, map_granted, unmap_slots
from backend.ring_hands import RingHands
from backend.ring_numbers import RingNumbers
from backend.store_jobs import LaterStore
from backend.stores import Store
from backend.vcpu_thread import VcpuThread
from common import abi
from common.arena import Arena
from common.event_channel import EventChannel, channel_address, events_dir
from common.faults import LocalFault, PeerFault
from common.handshake import Op
from common.hypercall import HypercallError, Hypercalls
from common.hypercall_gate import Gate, new_gate, no_gate
from common.machine_memory import MachineMemory
from common.wakeups import Events, carrier_of
from machine.back import build_back, mapped, own_frames, slots_of
from machine.ring_ops import map_ring_op, unmap_ring_op

DOM0_OWN_FRAMES: Final = 16
NODES_A_LOOK: Final = 2048  # what an answer has room for

log = logging.getLogger(__name__)


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
    """Where a disk is served: dom0's ways to hypervisor and memory, the frontend, the vCPU.

    hypercalls: the main thread's, of that vCPU; numbers: of dom0's rings.
    """

    hypercalls: Hypercalls
    memory: MachineMemory
    run_dir: str
    domid: int
    device: int
    vcpu: VcpuThread
    numbers: RingNumbers


def dom0_frames(nr_rings: int) -> int:
    """Of RAM that dom0 needs to serve so many rings at once by grant copy."""
    return DOM0_OWN_FRAMES + nr_rings * slots_of(0)


def bounce_frame_of(ring: int, ram: np.ndarray) -> int:
    """dom0's first frame for a ring where requests are served by grant copy. Raises LocalFault."""
    if dom0_frames(ring + 1) * abi.XEN_PAGE_SIZE > len(ram):
        raise LocalFault("dom0 has no frames left to copy to and from")
    return dom0_frames(ring)


class Connection:
    """What exists while a frontend is connected. `report`: has something called in the main thread;
    stall: see `StoreWatch.add`, to be called there.

    ring, port and turns each come and go as the handshake says: see `machine/seat.py`'s Hands.
    """

    def __init__(
        self,
        place: Place,
        disk: Store | LaterStore,
        options: BackendOptions,
        report: Callable[[Callable[[], None]], None],
        read_only: bool = False,
        stall: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._place, self._disk, self._options = place, disk, options
        self._report, self._read_only, self._stall = report, read_only, stall
        self._queue: FileQueue | None = None  # of a file, while there is a ring
        self._number: int | None = None  # of the ring that has turns
        self._kept: Balloon | None = None  # where its pages are mapped
        self._dev: Blkback | None = None

    def call(self, op: Op, argument: int) -> int:
        """See Hands."""
        match op:
            case Op.MAP_RING:
                return self._map_ring(argument)
            case Op.BIND_INTERDOMAIN:
                return self._bind(argument)
            case Op.CLOSE:
                self._close_channel(argument)
            case Op.UNMAP_RING:
                self._unmap_ring()
        return 0

    def start(self, keeps: bool, ended: Callable[[str], None]) -> None:
        """See Hands."""
        cap = self._options.max_persistent_grants if keeps else 0
        try:
            self._kept = Balloon(slots_of(cap))
            number, counters = self._place.numbers.take(self._place.domid, self._place.device)
            self._number = number
            dev = self._dev = self._new_device(self._kept, number, counters, keeps, cap)
            hands = RingHands(
                dev,
                self._disk,
                self._channel,
                self._place.vcpu.hypercalls,
                f"vbd {self._place.domid}/{self._place.device}",
                -1 if self._queue is None else self._queue.polled_fd,
            )
            self._place.vcpu.add(number, hands, partial(self._tell, ended), self._tell_stall)
        except (OSError, RuntimeError) as error:  # no thread can be started
            raise LocalFault(f"the ring cannot be served: {error}") from error

    def stop(self) -> None:
        """See Hands."""
        assert self._number is not None
        self._place.vcpu.end(self._number)

    def fail(self, reason: str) -> None:
        """See Hands."""
        log.warning("vbd %d/%d: %s", self._place.domid, self._place.device, reason)

    def resize(self, nr_sectors: int) -> None:
        """The store has so many now: what lies beyond is answered ERROR from now on."""
        if self._dev is not None:
            self._dev.back["nr_sectors"] = nr_sectors

    def kept(self, first: int) -> list[bytes] | None:
        """For who looks in: the head of the tree of kept pages, and some nodes from `first` on."""
        if self._dev is None:
            return None
        nodes = self._dev.nodes[first : first + NODES_A_LOOK]
        return [self._dev.tree.tobytes(), nodes.tobytes()]

    def _tell(self, ended: Callable[[str], None], reason: str) -> None:
        self._report(partial(ended, reason))

    def _tell_stall(self, seconds: int) -> None:
        self._report(partial(self._stall, seconds))

    def _gate(self) -> Gate:
        """Who never spins could not wait at the gate: all its calls go by message."""
        if not self._options.adaptive_spin:
            return no_gate()
        return new_gate(self._place.memory.segment("gate"), self._place.vcpu.cpu)

    def _new_device(
        self, kept: Balloon, number: int, counters: np.ndarray, keeps: bool, cap: int
    ) -> Blkback:
        domid, segment, options = self._place.domid, self._place.memory.segment, self._options
        reach = mapped(kept, self._ram_fd)
        if options.grant_copy:
            ram = segment("ram")
            reach = own_frames(kept.nr_slots, ram, bounce_frame_of(number, ram))
        if isinstance(self._disk, FileStore):
            self._queue = self._disk.open_queue(abi.BLKIF_RING_SIZE)
        return build_back(
            Arena(),
            self._ring.view(0),
            reach,
            self._disk,
            segment("accessed").view(np.uint64),
            counters,
            self._channel.words,
            self._place.vcpu.spin,
            self._gate(),
            None if self._queue is None else self._queue.queue,
            remote_domid=domid,
            persistent=keeps,
            read_only=self._read_only,
            max_persistent_grants=cap,
            gather_max=options.gather_max,
            cpu=self._place.vcpu.cpu,
        )

    def _map_ring(self, ring_ref: int) -> int:
        place = self._place
        try:
            self._ram_fd = place.memory.descriptor("ram", place.domid)
            self._events = place.memory.segment("event", place.domid)
        except HypercallError as error:  # the toolstack has named a domain that is none
            raise PeerFault(str(error)) from error
        try:
            self._ring = Balloon(1)
        except OSError as error:
            raise LocalFault(f"the ring has no room: {error}") from error
        op = map_ring_op(self._ring.address, ring_ref, place.domid)
        place.hypercalls.grant_table_op(abi.GNTTABOP_MAP_GRANT_REF, op)
        if op["status"][0] != abi.GNTST_OKAY:
            self._forget_ring()
            raise PeerFault(f"ring-ref {ring_ref} cannot be mapped: GNTST {op['status'][0]}")
        assert map_granted(self._ram_fd, op, 0, 1) == 0
        self._ring_op = op
        return 0

    def _unmap_ring(self) -> None:
        op = unmap_ring_op(self._ring_op)
        assert unmap_slots(op, 1) == 0
        self._place.hypercalls.grant_table_op(abi.GNTTABOP_UNMAP_GRANT_REF, op)
        assert op["status"][0] == abi.GNTST_OKAY
        self._forget_ring()

    def _forget_ring(self) -> None:
        if self._number is not None:
            self._place.numbers.give_back(self._number)
        if self._kept is not None:
            self._kept.close()
        if self._queue is not None:
            self._queue.close()
        self._number = self._kept = self._dev = self._queue = None
        self._ring.close()

    def _bind(self, port: int) -> int:
        try:
            bound, descriptors = self._place.hypercalls.event_channel_op(
                f"event-channel {port}",
                abi.EVTCHNOP_BIND_INTERDOMAIN,
                abi.EVTCHN_BIND_INTERDOMAIN,
                remote_dom=self._place.domid,
                remote_port=port,
            )
        except HypercallError as error:
            raise PeerFault(str(error)) from error
        theirs, ours = self._events[: abi.XEN_PAGE_SIZE], self._events[abi.XEN_PAGE_SIZE :]
        address = channel_address(events_dir(self._place.run_dir, self._place.domid), port)
        carrier = carrier_of(self._options.events, descriptors, address, allocated_here=False)
        self._channel = EventChannel(carrier, port, ours[: abi.XEN_PAGE_SIZE], theirs)
        return int(bound["local_port"][0])

    def _close_channel(self, port: int) -> None:
        self._channel.close()
        self._place.hypercalls.event_channel_op(
            "close", abi.EVTCHNOP_CLOSE, abi.EVTCHN_CLOSE, port=port
        )
