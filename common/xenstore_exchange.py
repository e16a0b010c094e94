"""A client's end of xenstore's protocol, sans-I/O: requests out, answers and watch events in.

Owns: which requests are on their way, whose answer each reply is, and the watch events that came
and that nobody has taken yet.
Rules: who asks is told its answer when it comes, and waits for nobody else's: replies are told
apart by their req_id. At most PIPELINED_MAX requests are on their way; the rest wait here, in
order. What is not the protocol breaks the exchange for good.

A `Talk` is a conversation with the store: a generator that yields requests, to be sent together, is
sent their replies, and returns what came of it (`common/xenstore_talks.py`).
"""

from collections import deque
from collections.abc import Callable, Generator, Sequence
from typing import Final, NamedTuple, TypeVar

from common.xenstore_wire import (
    XENSTORE_PAYLOAD_MAX,
    MessageType,
    Packet,
    Parser,
    pack,
    unpack_strings,
)

PIPELINED_MAX: Final = 16  # requests on their way: what xenstored takes in before it is read from
REQ_IDS: Final = 1 << 32

T = TypeVar("T")
WatchEvent = tuple[str, str]  # path, token


class XenStoreError(Exception):
    """`name` (an errno's: ENOENT, EACCES, ...) is why `operation` failed on `path`."""

    def __init__(self, name: str, path: str, operation: str) -> None:
        super().__init__(name, path, operation)
        self.name, self.path, self.operation = name, path, operation

    def __str__(self) -> str:
        return f"xenstore: {self.operation} {self.path}: {self.name}"


class Request(NamedTuple):
    """One request: the first string of its payload, and what follows that."""

    kind: MessageType
    first: str
    rest: bytes = b""
    tx_id: int = 0

    def payload(self) -> bytes:
        """What goes over the wire. Raises XenStoreError if it cannot."""
        payload = encode(self.first, self.kind.name) + b"\0" + self.rest
        if len(payload) > XENSTORE_PAYLOAD_MAX:
            raise XenStoreError("E2BIG", self.first, self.kind.name)
        return payload


Reply = bytes | XenStoreError
Talk = Generator[Sequence[Request], list[Reply], T]


class Broken(Exception):
    """What came is not xenstore's protocol; the text is what came where."""


def encode(text: str, operation: str) -> bytes:
    """A path or token as it goes over the wire. Raises XenStoreError EINVAL if it cannot."""
    try:
        raw = text.encode("latin-1")
    except UnicodeEncodeError:
        raise XenStoreError("EINVAL", text, operation) from None
    if b"\0" in raw:
        raise XenStoreError("EINVAL", text, operation)
    return raw


class _Batch:
    """Requests that were asked together, until all are answered."""

    def __init__(self, requests: Sequence[Request], then: Callable[[list[Reply]], None]) -> None:
        self.requests, self.then = requests, then
        self.replies: dict[int, Reply] = {}


class Exchange:
    """`out`: bytes for the store; `events`: watch events, oldest first. talks_max: of conversations
    at a time, for who may have only so many transactions open; the rest wait, in order.
    """

    def __init__(self, talks_max: int | None = None) -> None:
        self.out = bytearray()
        self.events: deque[WatchEvent] = deque()
        self._parser = Parser()
        self._req_id = 0
        self._asked: deque[tuple[_Batch, int, bytes]] = deque()  # not on their way yet
        self._on_their_way: dict[int, tuple[_Batch, int]] = {}
        self._talks_left = talks_max
        self._waiting: deque[Callable[[], None]] = deque()  # conversations not begun yet

    def ask(self, requests: Sequence[Request], then: Callable[[list[Reply]], None]) -> None:
        """Send `requests`, so that hardly anybody comes between them; `then` is told the replies.

        Raises XenStoreError, and nothing is sent, if one of them cannot go over the wire.
        """
        payloads = [request.payload() for request in requests]
        batch = _Batch(requests, then)
        self._asked += [(batch, index, payload) for index, payload in enumerate(payloads)]
        self._send()

    def hold(self, talk: Talk[T], then: Callable[[T], None]) -> None:
        """Have a conversation; `then` is told what came of it."""
        self._waiting.append(lambda: self._go_on(talk, None, then))
        self._begin_talks()

    def _begin_talks(self) -> None:
        while self._waiting and self._talks_left != 0:
            if self._talks_left is not None:
                self._talks_left -= 1
            self._waiting.popleft()()

    def _end_talk(self) -> None:
        if self._talks_left is not None:
            self._talks_left += 1
        self._begin_talks()

    def _go_on(self, talk: Talk[T], replies: list[Reply] | None, then: Callable[[T], None]) -> None:
        try:
            requests = next(talk) if replies is None else talk.send(replies)
        except StopIteration as end:
            self._end_talk()
            then(end.value)
            return
        except XenStoreError:
            self._end_talk()
            raise
        self.ask(requests, lambda answers: self._go_on(talk, answers, then))

    def feed(self, data: bytes) -> None:
        """Take bytes from the store, and tell whom they answer. Raises Broken, and what is raised
        by whom it tells."""
        for packet in self._parser.feed(data):
            if packet.type == MessageType.WATCH_EVENT:
                self._keep(packet)
            else:
                self._heed(packet)
        if self._parser.broken is not None:
            raise Broken(self._parser.broken)

    def _send(self) -> None:
        while self._asked and len(self._on_their_way) < PIPELINED_MAX:
            batch, index, payload = self._asked.popleft()
            request = batch.requests[index]
            self._req_id = (self._req_id + 1) % REQ_IDS
            self._on_their_way[self._req_id] = (batch, index)
            self.out += pack(Packet(request.kind, self._req_id, request.tx_id, payload))

    def _heed(self, packet: Packet) -> None:
        batch, index = self._on_their_way.pop(packet.req_id, (None, 0))
        if batch is None:
            raise Broken(f"an answer to {packet.req_id}, which nobody asked")
        kind, first, *_ = batch.requests[index]
        if packet.type == MessageType.ERROR:
            name = packet.payload.rstrip(b"\0").decode("latin-1")
            batch.replies[index] = XenStoreError(name, first, kind.name)
        elif packet.type == kind:
            batch.replies[index] = packet.payload
        else:
            raise Broken(f"a {packet.type} for a {kind.name}")
        self._send()
        if len(batch.replies) == len(batch.requests):
            batch.then([batch.replies[at] for at in range(len(batch.requests))])

    def _keep(self, packet: Packet) -> None:
        strings = unpack_strings(packet.payload)
        if len(strings) < 2:
            raise Broken("a watch event without a path or a token")
        self.events.append((strings[0].decode("latin-1"), strings[1].decode("latin-1")))


def value_of(reply: Reply) -> bytes:
    """What was answered. Raises the error that it is."""
    if isinstance(reply, XenStoreError):
        raise reply
    return reply
