"""What a hostile guest has: all that any guest is born with, and the honest way to a disk.

Owns: the count of its strokes, which is the `ios` word of its stats, so that whoever runs it sees
that it attacks; and one honest handshake, by the real frontend, for attacks that need a disk.
Never knows: what the attack is.
"""

import select
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from common import xenbus
from common.hypercall import Hypercalls
from common.machine_memory import stats_of
from common.spinning import new_spin
from common.xenstore import XenStoreClient
from machine.front import guest_disks
from machine.front_disk import FrontDisk, Line
from machine.guest_config import GuestConfig

ANSWER_TIMEOUT_S: Final = 10.0
POLL_S: Final = 0.05
PAUSE_S: Final = 0.002


@dataclass
class Attacker:
    """control, hypercalls, store: its connections, raw; ram, grant, event, stats: its segments
    (u8)."""

    config: GuestConfig
    control: socket.socket
    hypercalls: socket.socket
    store: socket.socket
    ram: np.ndarray
    grant: np.ndarray
    event: np.ndarray
    stats: np.ndarray
    wanted: Callable[[], bool]  # has nobody told it to stop?

    def __post_init__(self) -> None:
        self.frontend_path = xenbus.frontend_path(self.config.domid, self.config.disks[0])
        self.hypercall_client = Hypercalls(self.hypercalls)
        self._store_client: XenStoreClient | None = None
        for sock in (self.hypercalls, self.store):
            sock.settimeout(ANSWER_TIMEOUT_S)

    def stroke(self, count: int = 1) -> None:
        """So many more."""
        self.stats[:8].view(np.uint64)[0] += np.uint64(count)

    @property
    def store_client(self) -> XenStoreClient:
        """The honest client; who uses it leaves `store` alone."""
        if self._store_client is None:
            self._store_client = XenStoreClient(self.store, None)
        return self._store_client

    def plug(self) -> FrontDisk:
        """The real frontend of its disk, before its first step."""
        config = self.config
        counters = stats_of(self.stats)["counters"][0]
        memory = (self.ram, self.grant, self.event)
        (domain,) = guest_disks(config.domid, *memory, counters, new_spin(config.adaptive_spin))
        line = Line(self.hypercall_client, self.event, config.events, config.events_dir)
        return FrontDisk(self.store_client, domain, line, config.disks[0], config.persistent)

    def follow(self, vbd: FrontDisk, *states: int) -> Iterator[None]:
        """Take honest steps until `vbd` is in one of `states`."""
        vbd.settle()
        poller = select.poll()
        poller.register(self.store_client, select.POLLIN)
        while vbd.state not in states:
            if poller.poll(POLL_S * 1000):
                vbd.take_events()
            vbd.settle()
            yield

    def connected(self) -> Iterator[FrontDisk]:
        """Connected disks, one after the other: the last is closed first. Ends when told to stop;
        whoever uses one looks at `wanted`, too.
        """
        while self.wanted():
            vbd = self.plug()
            if not self._reaches(vbd, xenbus.CONNECTED, xenbus.CLOSED):
                return
            if vbd.state == xenbus.CONNECTED:
                yield vbd
            if not self._close(vbd):
                return

    def _reaches(self, vbd: FrontDisk, *states: int) -> bool:
        """Honest steps until it is there; False if told to stop before."""
        return all(self.wanted() for _ in self.follow(vbd, *states))

    def _close(self, vbd: FrontDisk) -> bool:
        """Let the disk be closed, and begin anew; False if told to stop meanwhile."""
        if vbd.state == xenbus.CONNECTED:
            vbd.detach()
        if not self._reaches(vbd, xenbus.CLOSED):
            return False
        while self.wanted():
            if self.store_client.read(f"{vbd.other}/state") == b"6":
                self.store_client.write(f"{self.frontend_path}/state", b"1")
                return True
            time.sleep(PAUSE_S)
        return False
