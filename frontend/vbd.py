"""The frontend's xenbus driver of one virtual disk: the handshake's steps, as blkfront takes them.

Owns: the store keys the frontend writes, the ring's frame and its grant, the event channel.
`common/xenbus.py` says when a step is due. Runs in the guest's main thread.
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
        self.path = xenbus.frontend_path(domid, device)
        self.backend_path = store.read(f"{self.path}/backend").decode()
        self.state = xenbus.INITIALISING
        self.dev: Blkfront | None = None
        self.channel: EventChannel | None = None
        self.disk: Disk | None = None
        self.stuck_grants = 0
        self._watch = (f"{self.backend_path}/state", f"backend-{device}")
        store.watch(*self._watch)

    def handle_store(self) -> None:
        """The other end's state may have changed: take the steps that are due."""
        while True:
            other = xenbus.parse_state(self._read(f"{self.backend_path}/state"))
            step = xenbus.next_step("frontend", self.state, other)
            if step is None:
                return
            getattr(self, step.action)()
            self._switch(step.state)

    def detach(self) -> None:
        """Begin to close, as a guest does that unplugs its disk."""
        self._switch(xenbus.CLOSING)
        self.handle_store()

    def fail(self, reason: str) -> None:
        """The backend broke the protocol: say so in the store, and close."""
        self._store.write(f"{self.path}/error", reason.encode())
        self.detach()

    def publish_ring(self) -> None:
        """Grant the ring, allocate the channel, and tell the backend of both in one transaction."""
        backend_domid = int(self._store.read(f"{self.path}/backend-id"))
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
        if not self.channel.carrier.await_far_end(FAR_END_TIMEOUT_MS):
            log.warning("%s: the backend's end of the event channel does not show", self.path)
        announced = (self._read(f"{self.backend_path}/feature-persistent") or b"0").strip()
        kept = announced == b"1"
        self.dev.front["grant_mode"] = (
            PER_REQUEST if not self._persistent else PERSISTENT if kept else REUSE
        )
        self.disk = Disk(
            int(self._store.read(f"{self.backend_path}/sectors")),
            int(self._store.read(f"{self.backend_path}/sector-size")),
            kept,
        )

    def close(self) -> None:
        """The backend has let go: end every access, give the channel up."""
        self._store.unwatch(*self._watch)
        if self.dev is None or self.channel is None:
            return
        self.stuck_grants = end_every_access(self.dev)
        if self._ring_ref != NO_GREF:
            self.stuck_grants += not end_access(self.dev.grants, self._ring_ref)
            self._ring_ref = NO_GREF
        self._hypercalls.event_channel_op(
            "close", abi.EVTCHNOP_CLOSE, abi.EVTCHN_CLOSE, port=self.channel.port
        )
        self.channel.close()
        self.channel, self.disk = None, None

    def buffers(self) -> np.ndarray:
        """The guest RAM that I/O buffers lie in, u8, from frame BUFFER_FRAME on."""
        return self._domain.ram[BUFFER_FRAME * abi.XEN_PAGE_SIZE :]

    def _switch(self, state: int) -> None:
        self.state = state
        self._store.write(f"{self.path}/state", str(state).encode())

    def _read(self, path: str) -> bytes | None:
        try:
            return self._store.read(path)
        except XenStoreError:
            return None
