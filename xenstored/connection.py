"""One connection, sans-I/O: bytes in, bytes out.

Owns: what is read but not served yet, the request in hand, and when to serve.
Rules: `feed` only stores; `step` serves one request, or goes on with one whose watches are still
being told: its answer comes after its events, as on Xen. A client that does not read its answers is
not served until it does. A stream that is broken ends the connection (`finished`).
"""

from collections import deque
from collections.abc import Callable
from typing import Final

from common.xenstore_wire import MessageType, Packet, Parser, pack, pack_strings
from xenstored.refusal import Refusal
from xenstored.requests import answer, first_event
from xenstored.session import Session
from xenstored.store import Store, Telling, go_on

OUTPUT_PAUSE: Final = 16 * 1024  # bytes not read yet, above which nothing more is served
SEND_BYTES: Final = 64 * 1024


class Connection:
    """A client's connection to `store`; the owner moves the bytes."""

    def __init__(self, store: Store, session: Session) -> None:
        self.session = session
        self._store = store
        self._parser = Parser()
        self._inbox: deque[Packet] = deque()
        self._in_hand: tuple[Telling, bytes] | None = None  # and the answer, when all is told

    @property
    def finished(self) -> str | None:
        """Why there is nothing more to do here, or None."""
        if self.session.closed is None and not self._inbox and self._in_hand is None:
            return self._parser.broken
        return self.session.closed

    @property
    def runnable(self) -> bool:
        """Would `step` do something?"""
        if self._in_hand is not None:  # others are to know, whether this client reads or not
            return self.session.closed is None
        return bool(self._inbox) and not self.paused

    @property
    def wants_input(self) -> bool:
        """Should more be read from this client?"""
        return not self._inbox and self._in_hand is None and not self.paused

    @property
    def paused(self) -> bool:
        """Is nothing more taken from this client until it reads?"""
        return self.session.closed is not None or self.session.outbox.size >= OUTPUT_PAUSE

    def feed(self, data: bytes) -> None:
        """Take bytes from the client."""
        self._inbox += self._parser.feed(data)

    def step(self, may_go_on: Callable[[], bool]) -> None:
        """Serve one request, or go on with it; what can be interrupted is, unless `may_go_on`."""
        if not self.runnable:
            return
        if self._in_hand is None:
            self._serve(self._inbox.popleft())
        if self._in_hand is not None and go_on(self._in_hand[0], may_go_on):
            self.session.outbox.reply(self._in_hand[1])
            self._in_hand = None

    def outgoing(self) -> bytes:
        """The next bytes for the client, perhaps none."""
        return self.session.outbox.pending(SEND_BYTES)

    def sent(self, nbytes: int) -> None:
        """The client's socket took the first `nbytes` of `outgoing`."""
        self.session.outbox.sent(nbytes)

    def close(self) -> None:
        """The client is gone. Others are still told of what it did."""
        self._inbox.clear()
        if self._in_hand is not None:
            self._store.announce(self._in_hand[0])
            self._in_hand = None
        self._store.leave(self.session)

    def _serve(self, packet: Packet) -> None:
        kind, telling = packet.type, None
        try:
            payload, telling = answer(self._store, self.session, packet)
        except Refusal as refusal:
            kind, payload = MessageType.ERROR, pack_strings(refusal.name.encode())
        reply = pack(Packet(kind, packet.req_id, packet.tx_id, payload))
        if telling is not None:
            self._in_hand = (telling, reply)
            return
        self.session.outbox.reply(reply)
        if kind == MessageType.WATCH:
            first_event(self.session, packet)
