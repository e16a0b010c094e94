"""Domains whose guest is the test itself: it holds what the toolstack gives a guest's process, and
plays any frontend there is, well-behaved or not, against real processes.
"""

import socket
import time

import numpy as np

from common import abi
from common.abi import GRANT_ENTRY_V1, XEN_PAGE_SIZE
from common.arena import Arena
from common.event_channel import EventChannel
from common.hypercall import Hypercalls
from common.machine_memory import host_of, stats_of
from common.memory import map_segment
from common.ring import shared_ring_init
from common.spinning import new_spin
from common.wakeups import PipeCarrier, new_poller
from common.xenbus import CONNECTED, backend_path, frontend_path
from common.xenstore import XenStoreClient
from frontend.block_device import BlockDevice
from frontend.driver import Driver
from frontend.frames import disk_frames
from frontend.grants import grant_access, new_grants
from machine.front import guest_disks
from machine.front_disk import FrontDisk, Line
from machine.plug import XVDA
from tests.patience import PATIENCE_S, eventually
from toolstack.birth import Builder
from toolstack.machine import Machine


def await_value(store: XenStoreClient, path: str, value: bytes | None) -> None:
    """Wait until `path` is `value`."""
    eventually(
        lambda: store.read_or_none(path) == value,
        f"{path} = {value!r}; it is {store.read_or_none(path)!r}",
    )


class ScriptedGuest:
    """Domain `domid` of a running machine, made by its `builder`."""

    def __init__(self, builder: Builder, domid: int, events_dir: str = "") -> None:
        hypercalls, store, *segments = builder.create_domain(domid)
        self.domid, self._events_dir = domid, events_dir
        self.hypercalls = Hypercalls(socket.socket(fileno=hypercalls))
        self.store = XenStoreClient(socket.socket(fileno=store))
        self.ram, self.grant, self.event, stats = (map_segment(fd) for fd in segments)
        self.counters = stats_of(stats)["counters"][0]
        self.front = frontend_path(domid, XVDA)
        self.back = backend_path(domid, XVDA)

    # --- a frontend of our own --------------------------------------------------------------

    def vbd(self, persistent: bool = True) -> FrontDisk:
        """blkfront, as a guest's process would run it."""
        spin = new_spin(adaptive=False)
        memory = self.ram, self.grant, self.event
        buffers = len(self.ram) // XEN_PAGE_SIZE - disk_frames(0, 0).end
        (domain,) = guest_disks(self.domid, *memory, self.counters, spin, buffer_frames=buffers)
        line = Line(self.hypercalls, self.event, "pipe", self._events_dir)
        return FrontDisk(self.store, domain, line, XVDA, persistent)

    @staticmethod
    def disk(vbd: FrontDisk) -> BlockDevice:
        """The connected disk, for Python users."""
        assert vbd.dev is not None and vbd.channel is not None and vbd.disk is not None
        driver = Driver(vbd.dev.spin, new_poller("pipe"))
        driver.attach(0, vbd.dev, vbd.channel)
        buffers = vbd.buffers()
        return BlockDevice(
            driver, 0, vbd.disk, buffers, vbd.first_buffer, lambda *_: None, lambda: None
        )

    # --- somebody else's --------------------------------------------------------------------

    def publish(self, state: int, **keys: str | None) -> None:
        """Grant a ring, allocate a channel and write both and `state` in one transaction.

        keys: others than the usual; None: not written.
        """
        shared_ring_init(self.ram[:XEN_PAGE_SIZE].view(np.uint32), 0)
        self.grants = new_grants(Arena(), self.grant)
        ring_ref = grant_access(self.grants, 0, 0, False)
        allocated, wakeups = self.hypercalls.event_channel_op(
            "alloc_unbound",
            abi.EVTCHNOP_ALLOC_UNBOUND,
            abi.EVTCHN_ALLOC_UNBOUND,
            dom=abi.DOMID_SELF,
            remote_dom=0,
        )
        own, far = self.event[:XEN_PAGE_SIZE], self.event[XEN_PAGE_SIZE : 2 * XEN_PAGE_SIZE]
        self.channel = EventChannel(PipeCarrier(*wakeups), int(allocated["port"][0]), own, far)
        values = {
            "ring-ref": str(ring_ref),
            "event-channel": str(allocated["port"][0]),
            "protocol": "x86_64-abi",
            "feature-persistent": "0",
            **{key.replace("_", "-"): value for key, value in keys.items()},
            "state": str(state),
        }
        with self.store.transaction() as transaction:
            for key, value in values.items():
                if value is not None:
                    transaction.write(f"{self.front}/{key}", value.encode())

    def say(self, state: int) -> None:
        """Write our state."""
        self.store.write(f"{self.front}/state", str(state).encode())

    def await_backend(self, state: int) -> None:
        """Wait until the backend is in `state`."""
        await_value(self.store, f"{self.back}/state", str(state).encode())

    def permitted(self) -> int:
        """How many entries of the grant table are not zero."""
        return int(np.count_nonzero(self.grant.view(GRANT_ENTRY_V1)["flags"]))

    def die(self) -> None:
        """Give up the connections, as a process that ends does."""
        self.hypercalls.close()
        self.store.close()


# --- what a toolstack, or a user, writes -----------------------------------------------------


def detach(store: XenStoreClient, domid: int) -> None:
    """As libxl does."""
    with store.transaction() as transaction:
        transaction.write(f"{backend_path(domid, XVDA)}/online", b"0")
        transaction.write(f"{backend_path(domid, XVDA)}/state", b"5")


def plug(domid: int, **changes: str | None) -> dict[str, str]:
    """What a backend's directory needs; changes: None for a key that is left out."""
    keys: dict[str, str | None] = {
        "frontend": frontend_path(domid, XVDA),
        "frontend-id": str(domid),
        "online": "1",
        "params": "ram:2m",
        "mode": "w",
        "state": "1",
        **{key.replace("_", "-"): value for key, value in changes.items()},
    }
    return {key: value for key, value in keys.items() if value is not None}


def write_backend(store: XenStoreClient, domid: int, **changes: str | None) -> None:
    store.mkdir(backend_path(domid, XVDA))
    store.set_perms(backend_path(domid, XVDA), ["n0", f"r{domid}"])
    for key, value in plug(domid, **changes).items():
        store.write(f"{backend_path(domid, XVDA)}/{key}", value.encode())


def write_frontend(store: XenStoreClient, domid: int) -> None:
    """The frontend's directory, as the toolstack makes it: the guest's from then on."""
    front = frontend_path(domid, XVDA)
    store.mkdir(front)
    store.set_perms(front, [f"n{domid}", "r0"])
    for key, value in (("backend", backend_path(domid, XVDA)), ("backend-id", "0"), ("state", "1")):
        store.write(f"{front}/{key}", value.encode())


def connect(guest: ScriptedGuest, persistent: bool = True) -> FrontDisk:
    """blkfront on a guest of ours, Connected."""
    vbd = guest.vbd(persistent)
    follow(guest, vbd, CONNECTED)
    return vbd


def follow(guest: ScriptedGuest, vbd: FrontDisk, state: int) -> None:
    """Let blkfront follow its store until it is in `state`."""
    deadline = time.monotonic() + PATIENCE_S
    vbd.settle()
    while vbd.state != state:
        assert time.monotonic() < deadline, f"it stays in {vbd.state}"
        guest.store.wait_event(0.1)
        vbd.settle()


def mapped(machine: Machine, domid: int) -> int:
    """Pages of `domid` that dom0 has mapped."""
    return int(host_of(machine._memory.segment("host"))["hypervisor"]["grants_mapped"][0, domid])


def make_again(store: XenStoreClient, domid: int) -> None:
    """Another disk in the same place, at once: nobody sees that there was nothing in between."""
    back = backend_path(domid, XVDA)
    with store.transaction() as transaction:
        transaction.rm(back)
        transaction.mkdir(back)
        transaction.set_perms(back, ["n0", f"r{domid}"])
        for key, value in plug(domid, params="ram:3m").items():
            transaction.write(f"{back}/{key}", value.encode())
