"""A client of a real xenstored core in virtual time, and the clock that this goes by.

Owns: how long what is sent is on its way. Rule: it comes in order, as from a socket.
"""

import heapq
import itertools
from collections.abc import Callable
from functools import partial
from typing import Final, TypeVar

from common.xenstore_exchange import Exchange, Talk
from xenstored.connection import Connection
from xenstored.session import Session
from xenstored.store import Store, go_on

STORE_NS: Final = 20_000  # one way, and what it takes to serve

T = TypeVar("T")


class Clock:
    """What is to come, in the order of its time. `now_ns`: the time."""

    def __init__(self) -> None:
        self.now_ns = 0
        self._serial = itertools.count()
        self._coming: list[tuple[int, int, Callable[[], None]]] = []

    def at(self, ns: int, then: Callable[[], None]) -> None:
        """Call `then` at `ns`."""
        heapq.heappush(self._coming, (ns, next(self._serial), then))

    def after(self, seconds: float, then: Callable[[], None]) -> None:
        """Call `then` after so many seconds: what a Seat's timers are."""
        self.at(self.now_ns + int(seconds * 1e9), then)

    def run(self) -> None:
        """Until nothing is to come."""
        while self._coming:
            self.now_ns, _, then = heapq.heappop(self._coming)
            then()


class VirtualStore:
    """A xenstored, and its clients. delay: what becomes of a time (ns); heed: called before it
    takes what it was sent. Both are a test's to replace.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock, self.store = clock, Store()
        self.delay: Callable[[int], int] = lambda ns: ns
        self.heed: Callable[[], None] = lambda: None
        self._clients: dict[Session, Client] = {}

    def join(self, domid: int, heed: Callable[[str, str], None]) -> "Client":
        """A client of domain `domid`. heed: told the path and token of each event."""
        session = self.store.join(domid)
        self._clients[session] = Client(self, session, heed)
        return self._clients[session]

    def introduce(self, domid: int) -> None:
        """A domain is born."""
        self.store.announce(self.store.introduce(domid))
        self.flush()

    def release(self, domid: int) -> None:
        """It is gone: so is all it had here."""
        self.store.announce(self.store.release(domid))
        self.flush()

    def flush(self) -> None:
        """Tell what there is to tell, and send what there is to send."""
        while self.store.announcements:
            go_on(self.store.announcements.popleft(), lambda: True)
        while touched := self.store.take_touched():
            for session in touched:
                if not self._clients[session].closed:
                    self._clients[session].receive()


class Client:
    """One connection, from both ends."""

    def __init__(
        self, behind: VirtualStore, session: Session, heed: Callable[[str, str], None]
    ) -> None:
        self._connection = Connection(behind.store, session)
        self._behind, self._session, self._heed = behind, session, heed
        self._exchange = Exchange()
        self._last_ns = [0, 0]  # when the last bytes are there; each way has its order
        self.closed = False

    def hold(self, talk: Talk[T], then: Callable[[T], None]) -> None:
        """See Storing."""
        self._exchange.hold(talk, then)
        self.send()

    def send(self) -> None:
        """Send the store what there is to send."""
        if self._exchange.out:
            data = bytes(self._exchange.out)
            self._exchange.out.clear()
            self._later(0, partial(self._serve, data))

    def receive(self) -> None:
        """Receive what the store has sent."""
        if data := self._connection.outgoing():
            self._connection.sent(len(data))
            self._later(1, partial(self._take, data))

    def close(self) -> None:
        """Its domain, or the driver whose it is, is gone."""
        if not self.closed:
            self.closed = True
            self._connection.close()
            self._behind.flush()

    def _later(self, way: int, then: Callable[[], None]) -> None:
        clock = self._behind.clock
        self._last_ns[way] = max(self._last_ns[way], clock.now_ns + self._behind.delay(STORE_NS))
        clock.at(self._last_ns[way], then)

    def _serve(self, data: bytes) -> None:
        self._behind.heed()
        if self.closed:
            return
        self._connection.feed(data)
        while self._connection.runnable:
            self._connection.step(lambda: True)
            self._behind.store.touch([self._session])
            self._behind.flush()

    def _take(self, data: bytes) -> None:
        if self.closed:
            return
        self._exchange.feed(data)
        while self._exchange.events:
            self._heed(*self._exchange.events.popleft())
        self.send()
