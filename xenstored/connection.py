"""One connection, sans-I/O: bytes in, bytes out.

Owns: what is read but not served yet, and when to serve it.
Rules: `feed` only stores; `step` serves a few requests, so that no client keeps the others waiting.
A client that does not read its answers is not served until it does; neither is a guest whose events
domain 0 has yet to read. A stream that is broken ends the connection (`finished`).
"""

from collections import deque
from typing import Final

from common.xenstore_wire import MessageType, Packet, Parser, pack, pack_strings
from xenstored.refusal import Refusal
from xenstored.requests import answer, first_event
from xenstored.session import Session
from xenstored.store import Store

OUTPUT_PAUSE: Final = 16 * 1024  # bytes not read yet, above which nothing more is served
SEND_BYTES: Final = 64 * 1024


class Connection:
    """A client's connection to `store`; the owner moves the bytes."""

    def __init__(self, store: Store, session: Session) -> None:
        self.session = session
        self._store = store
        self._parser = Parser()
        self._inbox: deque[Packet] = deque()

    @property
    def finished(self) -> str | None:
        """Why there is nothing more to do here, or None."""
        if self.session.closed is None and not self._inbox:
            return self._parser.broken
        return self.session.closed

    @property
    def runnable(self) -> bool:
        """Would `step` do something?"""
        return bool(self._inbox) and not self._paused()

    @property
    def wants_input(self) -> bool:
        """Should more be read from this client?"""
        return not self._inbox and not self._paused()

    def feed(self, data: bytes) -> None:
        """Take bytes from the client."""
        self._inbox += self._parser.feed(data)

    def step(self, budget: int) -> None:
        """Serve at most `budget` requests."""
        while budget > 0 and self.runnable:
            self._serve(self._inbox.popleft())
            budget -= 1

    def outgoing(self) -> bytes:
        """The next bytes for the client, perhaps none."""
        return self.session.outbox.pending(SEND_BYTES)

    def sent(self, nbytes: int) -> None:
        """The client's socket took the first `nbytes` of `outgoing`."""
        self._store.relieve(self.session.outbox.sent(nbytes))

    def close(self) -> None:
        """The client is gone."""
        self._inbox.clear()
        self._store.leave(self.session)

    def _paused(self) -> bool:
        session = self.session
        full = session.outbox.size >= OUTPUT_PAUSE
        return session.closed is not None or full or self._store.held_back(session)

    def _serve(self, packet: Packet) -> None:
        kind = packet.type
        try:
            payload = answer(self._store, self.session, packet)
        except Refusal as refusal:
            kind, payload = MessageType.ERROR, pack_strings(refusal.name.encode())
        reply = Packet(kind, packet.req_id, packet.tx_id, payload)
        self.session.outbox.reply(pack(reply))
        if kind == MessageType.WATCH:
            first_event(self.session, packet)
