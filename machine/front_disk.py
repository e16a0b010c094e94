"""A guest's disk in the real runtime: its driver, and its end of the event channel.

Owns: the watch on its backend, and the channel from Initialised until it is closed. All disks of a
guest have one connection to the store, and one for hypercalls.
"""

import itertools
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Final

import numpy as np

from common import abi
from common.event_channel import EventChannel, channel_address
from common.faults import LocalFault
from common.handshake import Answer, Event, Intent, Leave, Op, Stirred
from common.hypercall import HypercallError, Hypercalls
from common.wakeups import Events, carrier_of
from common.xenbus import INIT_WAIT, INITIALISING, frontend_path, parse_state
from common.xenstore import XenStoreClient
from common.xenstore_talks import ask, unwatch, watch
from frontend.frames import Domain
from frontend.vbd import OURS, FrontendVbd
from machine.seat import Seat, Timers

GONE: Final = "/gone"  # no disk has such a directory
FAR_END_S: Final = 5  # it is Connected: its wake-up is on the way


class Line:
    """A guest's hands: its channel. event: its segment (u8); events_dir: for ZeroMQ's sockets."""

    def __init__(
        self, hypercalls: Hypercalls, event: np.ndarray, events: Events, events_dir: str
    ) -> None:
        self.channel: EventChannel | None = None
        self.ended: Callable[[str], None] | None = None  # to be told when the disk is used no more
        self.stopped: Callable[[], None] = lambda: None  # told first: the channel is there yet
        self._is_shown = False
        self._hypercalls, self._event = hypercalls, event
        self._events, self._events_dir = events, events_dir

    def call(self, op: Op, argument: int) -> int:
        """See Hands."""
        if op == Op.ALLOC_UNBOUND:
            return self._allocate(argument)
        assert op == Op.CLOSE and self.channel is not None
        self._hypercalls.event_channel_op(
            "close", abi.EVTCHNOP_CLOSE, abi.EVTCHN_CLOSE, port=argument
        )
        self.channel.close()
        self.channel = None
        return 0

    def _allocate(self, backend_domid: int) -> int:
        try:
            allocated, descriptors = self._hypercalls.event_channel_op(
                "alloc_unbound",
                abi.EVTCHNOP_ALLOC_UNBOUND,
                abi.EVTCHN_ALLOC_UNBOUND,
                dom=abi.DOMID_SELF,
                remote_dom=backend_domid,
            )
        except HypercallError as error:
            raise LocalFault(str(error)) from error
        port = int(allocated["port"][0])
        address = channel_address(self._events_dir, port)
        carrier = carrier_of(self._events, descriptors, address, allocated_here=True)
        own, far = self._event[: abi.XEN_PAGE_SIZE], self._event[abi.XEN_PAGE_SIZE :]
        self.channel = EventChannel(carrier, port, own, far[: abi.XEN_PAGE_SIZE])
        self._is_shown = False
        return port

    def far_end_shows(self, timeout_ms: int = 0) -> bool:
        """Can the far end be woken from now on? Waits for that at most so long."""
        if not self._is_shown and self.channel is not None:
            self._is_shown = self.channel.carrier.await_far_end(timeout_ms)
        return self._is_shown

    def start(self, keeps: bool, ended: Callable[[str], None]) -> None:
        """See Hands."""
        self.ended = ended

    def stop(self) -> None:
        """See Hands. One thread: whoever uses the disk is between two slices of it."""
        self.end("")

    def end(self, why: str) -> None:
        """The disk is used no more."""
        assert self.ended is not None
        self.stopped()
        ended, self.ended = self.ended, None
        ended(why)

    def fail(self, reason: str) -> None:
        """See Hands: who asked for something is told, and the store's `error` node says it."""


class FrontDisk(FrontendVbd):
    """The driver on a guest's own store and channel. timers: the guest's, if it has other disks;
    backend: the other end's directory, if that is known: else it is read at once. Its watch is set
    at once, too; its first event comes then.
    """

    ours = (*OURS, "ring-ref")

    def __init__(
        self,
        store: XenStoreClient,
        domain: Domain,
        line: Line,
        device: int,
        persistent: bool,
        timers: Timers | None = None,
        backend: str = "",
    ) -> None:
        if not backend:
            path = frontend_path(domain.domid, device)
            backend = store.read(f"{path}/backend").decode("latin-1")
        super().__init__(domain, device, persistent, backend, itertools.count(1))
        self.timers = timers or Timers(time.monotonic)
        self._store, self._line = store, line
        self._seat = Seat(self, store, line, self.timers)
        self.token = f"backend-{device}"  # its watch's
        self._watch: tuple[str, str] | None = (f"{backend}/state", self.token)
        store.hold(ask(watch(*self._watch)), lambda _: None)

    @property
    def channel(self) -> EventChannel | None:
        """Its end of it, while there is one."""
        return self._line.channel

    @property
    def usable(self) -> bool:
        """Connected, and not about to be closed."""
        return self._line.ended is not None

    def step(self, values: Mapping[str, bytes]) -> Generator[Intent, Answer, bool]:
        """As any driver. But a new backend beneath a directory without our ring is not dom0 started
        again, and that directory is another disk's: it was made anew before we have looked."""
        theirs = parse_state(values.get(f"{self.other}/state"))
        begins = theirs in (INITIALISING, INIT_WAIT)
        if self.port and begins and f"{self.path}/ring-ref" not in values:
            self.lose_directory()
            return False
        return (yield from super().step(values))

    def handle(self, event: Event) -> list[Intent]:
        """As any driver; and who is finished needs its watch no more."""
        intents = super().handle(event)
        if self.finished and not self.awaited and self._watch is not None:
            self._store.hold(ask(unwatch(*self._watch)), lambda _: None)
            self._watch = None
        return intents

    def far_end_shows(self, timeout_ms: int = 0) -> bool:
        """Can the backend be woken from now on? Who uses the disk waits for that."""
        return self._line.far_end_shows(timeout_ms)

    def when_stopped(self, call: Callable[[], None]) -> None:
        """Have it told whenever the disk is used no more."""
        self._line.stopped = call

    def tell(self, event: Event) -> None:
        """Something has happened."""
        self._seat.tell(event)

    def take_events(self) -> None:
        """The store has something for us."""
        take_events(self._store, [self])

    def detach(self) -> None:
        """Begin to close, as a guest does that unplugs its disk."""
        self.tell(Leave())

    def lose_directory(self) -> None:
        """It was taken away, or is another disk's by now: close, and neither look there again nor
        write there."""
        self.closed_because = self.closed_because or "it was taken away"
        if not self.path.endswith(GONE):
            self.path = self.other = f"{self.path}{GONE}"
        self.tell(Leave())

    def fail(self, reason: str) -> None:
        """The backend broke the ring: say so in the store, and close."""
        self._line.end(reason)

    def settle(self) -> None:
        """For who waits for nothing else: take every step that is due."""
        self.timers.ring()
        self.tell(Stirred())
        while self.awaited:
            self._store.receive(None)
        if self.usable:
            self._line.far_end_shows(FAR_END_S * 1000)


def take_events(store: XenStoreClient, disks: Sequence[FrontDisk]) -> None:
    """The store has something for its guest: each disk whose backend has changed looks."""
    store.receive(0)
    tokens = {token for _, token in store.events()}
    for disk in disks:
        if disk.token in tokens:
            disk.tell(Stirred())
