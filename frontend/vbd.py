"""The frontend's xenbus driver of one virtual disk: the handshake's steps, as blkfront takes them.

Owns: the store keys the frontend writes, the ring's frame and its grant, the event channel.
`common/xenbus.py` says when a step is due. Runs in the guest's main thread.
Rule: what is read from the backend's directory is parsed; what does not parse closes this device,
and says why in the frontend's `error` node.
"""

import errno
import logging
from dataclasses import dataclass
from typing import Final

import numpy as np

from common import abi, xenbus
from common.event_channel import EventChannel, channel_address
from common.hypercall import Hypercalls
from common.wakeups import Events, carrier_of
from common.xenbus_writes import write_if_there
from common.xenstore import XenStoreClient, XenStoreError
from frontend.blkfront import end_every_access
from frontend.blkfront_info import PER_REQUEST, PERSISTENT, REUSE, Blkfront, new_blkfront
from frontend.grants import NO_GREF, Grants, end_access, grant_access, new_grants
from frontend.page_pool import new_pool

log = logging.getLogger(__name__)

# The guest's RAM: the ring, the pool, and the rest for I/O buffers.
RING_FRAME: Final = 0
POOL_FRAME: Final = 1
POOL_PAGES: Final = abi.BLKIF_RING_SIZE * abi.BLKIF_MAX_SEGMENTS_PER_REQUEST
BUFFER_FRAME: Final = POOL_FRAME + POOL_PAGES

NR_IOS: Final = 256
FAR_END_TIMEOUT_MS: Final = 5_000  # it is Connected: its wake-up is on the way
SECTORS_MAX: Final = 1 << 54  # whose bytes a signed 64-bit offset reaches


class BackendError(Exception):
    """The backend's directory cannot be used; the text says why."""


@dataclass(frozen=True)
class Disk:
    """What the backend says of its disk when it is Connected."""

    nr_sectors: int
    sector_size: int
    backend_persistent: bool


@dataclass(frozen=True)
class Domain:
    """What a disk needs of its guest. ram, grant, event: its segments (u8); counters:
    FRONTEND_COUNTERS (1,); events_dir: for ZeroMQ's sockets.
    """

    domid: int
    hypercalls: Hypercalls
    ram: np.ndarray
    grant: np.ndarray
    event: np.ndarray
    counters: np.ndarray
    events: Events
    events_dir: str


class FrontendVbd:
    """One virtual disk of a guest, from Initialising to Closed."""

    def __init__(
        self, store: XenStoreClient, domain: Domain, device: int, persistent: bool
    ) -> None:
        self._store, self._domain, self._device = store, domain, device
        self._persistent = persistent
        self._hypercalls, domid = domain.hypercalls, domain.domid
        self._ring_ref = NO_GREF
        self.path, self.name = xenbus.frontend_path(domid, device), xenbus.disk_name(device)
        self.backend_path = store.read(f"{self.path}/backend").decode("latin-1")
        self.state = xenbus.INITIALISING
        self.dev: Blkfront | None = None
        self.channel: EventChannel | None = None
        self.disk: Disk | None = None
        self.stuck_grants = 0  # after closing: still mapped, so not ended yet
        self.closed_because = ""
        self._watch: tuple[str, str] | None = (f"{self.backend_path}/state", f"backend-{device}")
        store.watch(*self._watch)

    def handle_store(self) -> None:
        """The other end's state may have changed: take the steps that are due."""
        while True:
            other = xenbus.parse_state(self._read(f"{self.backend_path}/state"))
            step = xenbus.next_step("frontend", self.state, other)
            if step is None:
                break
            if step == xenbus.CLOSE and not self.closed_because:
                self.closed_because = self._why(other)
            try:
                getattr(self, step.action)()
            except BackendError as error:
                self._begin_to_close(str(error))
            else:
                self._switch(step.state)
        if self.stuck_grants:
            self.end_accesses()

    def detach(self) -> None:
        """Begin to close, as a guest does that unplugs its disk."""
        if self.state not in (xenbus.CLOSING, xenbus.CLOSED):
            self._switch(xenbus.CLOSING)
        self.handle_store()

    def fail(self, reason: str) -> None:
        """The backend broke the protocol: say so in the store, and close."""
        self._begin_to_close(reason)
        self.handle_store()

    def _begin_to_close(self, reason: str) -> None:
        self.closed_because = reason
        write_if_there(self._store, self.path, {"error": reason})
        self._switch(xenbus.CLOSING)

    def _why(self, other: int) -> str:
        """Why this end closes, seeing the backend `other`."""
        if other == xenbus.UNKNOWN:
            return "its backend is gone"
        error = self._read(f"{self.backend_path}/error")
        said = f" ({error.decode('latin-1')})" if error else ""
        return f"its backend is {xenbus.STATE_NAMES[other]}{said}"

    def in_flight(self) -> int:
        """How many I/Os are queued or on the ring."""
        if self.dev is None:
            return 0
        front, ios = self.dev.front[0], self.dev.ios
        queued = (int(front["queue_first"]) + np.arange(front["queued"])) % len(self.dev.queue)
        busy = ios["outstanding"] > 0
        busy[self.dev.queue[queued]] = True
        return int(busy.sum())

    def publish_ring(self) -> None:
        """Grant the ring, allocate the channel, and tell the backend of both in one transaction."""
        backend_domid = self._number(f"{self.path}/backend-id", abi.DOMID_FIRST_RESERVED - 1)
        grants = self._new_device(backend_domid)
        self._ring_ref = grant_access(grants, backend_domid, RING_FRAME, False)
        if self._ring_ref == NO_GREF:
            raise OSError(errno.ENOSPC, f"{self.path}: no grant entry is free for the ring")
        self.channel = self._new_channel(backend_domid)
        with self._store.transaction() as transaction:
            for key, value in (
                ("ring-ref", str(self._ring_ref)),
                ("event-channel", str(self.channel.port)),
                ("protocol", "x86_64-abi"),
                ("feature-persistent", str(int(self._persistent))),
            ):
                transaction.write(f"{self.path}/{key}", value.encode())

    def _new_channel(self, backend_domid: int) -> EventChannel:
        domain = self._domain
        allocated, descriptors = self._hypercalls.event_channel_op(
            "alloc_unbound",
            abi.EVTCHNOP_ALLOC_UNBOUND,
            abi.EVTCHN_ALLOC_UNBOUND,
            dom=abi.DOMID_SELF,
            remote_dom=backend_domid,
        )
        port = int(allocated["port"][0])
        address = channel_address(domain.events_dir, port)
        carrier = carrier_of(domain.events, descriptors, address, allocated_here=True)
        own, far = domain.event[: abi.XEN_PAGE_SIZE], domain.event[abi.XEN_PAGE_SIZE :]
        return EventChannel(carrier, port, own, far[: abi.XEN_PAGE_SIZE])

    def _new_device(self, backend_domid: int) -> Grants:
        grants = new_grants(self._domain.grant)
        ring_page = self._domain.ram[: abi.XEN_PAGE_SIZE]
        self.dev = new_blkfront(
            ring_page,
            self._domain.ram.ctypes.data,
            grants,
            new_pool(POOL_FRAME, POOL_PAGES),
            self._domain.counters,
            nr_ios=NR_IOS,
            backend_domid=backend_domid,
            handle=self._device,
        )
        return grants

    def read_disk(self) -> None:
        """The backend is Connected: learn its disk, and settle how grants are used."""
        assert self.dev is not None and self.channel is not None
        sectors = self._number(f"{self.backend_path}/sectors", SECTORS_MAX)
        sector_size = self._number(f"{self.backend_path}/sector-size", abi.XEN_PAGE_SIZE)
        if not self.channel.carrier.await_far_end(FAR_END_TIMEOUT_MS):
            log.warning("%s: the backend's end of the event channel does not show", self.path)
        announced = (self._read(f"{self.backend_path}/feature-persistent") or b"0").strip()
        kept = announced == b"1"
        self.dev.front["grant_mode"] = (
            PER_REQUEST if not self._persistent else PERSISTENT if kept else REUSE
        )
        self.disk = Disk(sectors, sector_size, kept)

    def close(self) -> None:
        """Use the disk no more: give the channel up, and end every access that can be ended.

        Whose backend was told to close by its toolstack still has pages mapped now, and unmaps them
        when it sees this end Closed: what is refused here is tried again (Linux: by a timer).
        """
        if self.channel is not None:
            self._hypercalls.event_channel_op(
                "close", abi.EVTCHNOP_CLOSE, abi.EVTCHN_CLOSE, port=self.channel.port
            )
            self.channel.close()
            self.channel, self.disk = None, None
        self.end_accesses()

    def end_accesses(self) -> None:
        """End what access is left; `stuck_grants` says of how many pages that was refused."""
        self.stuck_grants = 0
        if self.dev is not None:
            self.stuck_grants = end_every_access(self.dev)
            if self._ring_ref != NO_GREF:
                if end_access(self.dev.grants, self._ring_ref):
                    self._ring_ref = NO_GREF
                else:
                    self.stuck_grants += 1
        if not self.stuck_grants and self._watch is not None:
            self._store.unwatch(*self._watch)
            self._watch = None

    def _read(self, path: str) -> bytes | None:
        """None also where we may not look: the store says no more of what is removed (EACCES)."""
        try:
            return self._store.read_or_none(path)
        except XenStoreError as error:
            if error.name != "EACCES":
                raise
            return None

    def _number(self, path: str, maximum: int) -> int:
        value = self._read(path)
        number = xenbus.parse_number(value, maximum)
        if number is None:
            raise BackendError(f"{path} is {xenbus.shown(value)}, and no number up to {maximum}")
        return number

    def buffers(self) -> np.ndarray:
        """The guest RAM that I/O buffers lie in, u8, from frame BUFFER_FRAME on."""
        return self._domain.ram[BUFFER_FRAME * abi.XEN_PAGE_SIZE :]

    def _switch(self, state: int) -> None:
        self.state = state
        write_if_there(self._store, self.path, {"state": state})
