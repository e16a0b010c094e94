"""A connection to xenstored, as its client: one request, one reply, and watch events in between.

Owns: the socket, and the watch events that came in on it and that nobody has taken yet.
Rules: blocking, one thread at a time. What is not the protocol, and a reply that does not come in
time (ETIMEDOUT, if there is a limit), end the connection; `open` says so.
"""

import errno
import os
import select
import socket
import time
from collections import deque
from collections.abc import Sequence
from typing import Final

from common.xenstore_wire import (
    XENSTORE_PAYLOAD_MAX,
    MessageType,
    Packet,
    Parser,
    pack,
    unpack_strings,
)

REPLY_TIMEOUT_S: Final = 30.0
RECEIVE_BYTES: Final = 64 * 1024
PIPELINED_MAX: Final = 16  # requests on their way: what xenstored takes in before it is read from

WatchEvent = tuple[str, str]  # path, token
Request = tuple[MessageType, str, bytes]  # the first string of its payload, and what follows


class XenStoreError(Exception):
    """`name` (an errno's: ENOENT, EACCES, ...) is why `operation` failed on `path`."""

    def __init__(self, name: str, path: str, operation: str) -> None:
        super().__init__(name, path, operation)
        self.name, self.path, self.operation = name, path, operation

    def __str__(self) -> str:
        return f"xenstore: {self.operation} {self.path}: {self.name}"


def encode(text: str, operation: str) -> bytes:
    """A path or token as it goes over the wire. Raises XenStoreError EINVAL if it cannot."""
    try:
        raw = text.encode("latin-1")
    except UnicodeEncodeError:
        raise XenStoreError("EINVAL", text, operation) from None
    if b"\0" in raw:
        raise XenStoreError("EINVAL", text, operation)
    return raw


class Connection:
    """A connection to the xenstored at the path `where`, or one that is there already: a socket,
    which is ours from now on. `poller`: readable while events wait.

    `reply_timeout_s`: how long a reply may take; None: as long as xenstored lives.
    """

    def __init__(self, where: str | socket.socket, reply_timeout_s: float | None) -> None:
        self._where = where if isinstance(where, str) else "socket"
        self._reply_timeout_s = reply_timeout_s
        self._parser = Parser()
        self._req_id = 0
        self._replies: deque[Packet] = deque()
        self.events: deque[WatchEvent] = deque()
        self.open = True
        if isinstance(where, str):
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        else:
            self._socket = where
        self._kept = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.poller = select.epoll()
        self.poller.register(self._socket, select.EPOLLIN)
        self.poller.register(self._kept, select.EPOLLIN)
        try:
            if isinstance(where, str):
                self._socket.connect(where)
        except OSError as error:
            raise self._lost("connect", error) from error

    def call(self, kind: MessageType, tx_id: int, first: str, rest: bytes = b"") -> bytes:
        """Send a request whose payload is the string `first`, then `rest`; returns the reply's."""
        (reply,) = self.pipeline([(kind, first, rest)], tx_id)
        if isinstance(reply, XenStoreError):
            raise reply
        return reply

    def pipeline(self, requests: Sequence[Request], tx_id: int) -> list[bytes | XenStoreError]:
        """Send several requests at once, so that hardly anybody comes between them; returns what
        each is answered. At most PIPELINED_MAX.
        """
        assert len(requests) <= PIPELINED_MAX
        message = b""
        for number, (kind, first, rest) in enumerate(requests, 1):
            payload = encode(first, kind.name) + b"\0" + rest
            if len(payload) > XENSTORE_PAYLOAD_MAX:
                raise XenStoreError("E2BIG", first, kind.name)
            req_id = (self._req_id + number) & 0xFFFFFFFF
            message += pack(Packet(kind, req_id, tx_id, payload))
        self._send(message, requests[0][0].name)
        return [self._answer(kind, first) for kind, first, _ in requests]

    def _answer(self, kind: MessageType, first: str) -> bytes | XenStoreError:
        """The reply to the next of the requests that are on their way."""
        self._req_id = (self._req_id + 1) & 0xFFFFFFFF
        reply = self._await_reply(kind.name)
        if reply.type == MessageType.ERROR:
            return XenStoreError(reply.payload.rstrip(b"\0").decode("latin-1"), first, kind.name)
        if reply.type != kind or reply.req_id != self._req_id:
            raise self._broken(kind.name)
        return reply.payload

    def begin(self) -> int:
        """Open a transaction; returns its id."""
        reply = self.call(MessageType.TRANSACTION_START, 0, "").rstrip(b"\0")
        if not reply.isdigit():
            raise self._broken("TRANSACTION_START")
        return int(reply)

    def receive(self, timeout_s: float | None, operation: str) -> None:
        """Take in the next bytes, if some come within `timeout_s` seconds (None: wait)."""
        self._require_open(operation)
        self._socket.settimeout(timeout_s)
        try:
            data = self._socket.recv(RECEIVE_BYTES)
        except (BlockingIOError, TimeoutError):
            return
        except OSError as error:
            raise self._lost(operation, error) from error
        if not data:
            raise self._lost(operation, ConnectionResetError(errno.ECONNRESET, "closed"))
        for packet in self._parser.feed(data):
            if packet.type == MessageType.WATCH_EVENT:
                self._keep(packet, operation)
            else:
                self._replies.append(packet)
        if self._parser.broken is not None:
            raise self._broken(operation)

    def take_event(self) -> WatchEvent:
        """The first of `events`, which is kept no longer."""
        event = self.events.popleft()
        if not self.events:
            os.eventfd_read(self._kept)
        return event

    def close(self) -> None:
        """Close; closing twice is fine."""
        if self.open:
            self.open = False
            self.poller.close()
            os.close(self._kept)
            self._socket.close()

    def _send(self, data: bytes, operation: str) -> None:
        self._require_open(operation)
        self._socket.settimeout(self._reply_timeout_s)
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise self._lost(operation, error) from error

    def _await_reply(self, operation: str) -> Packet:
        limit = self._reply_timeout_s
        deadline = None if limit is None else time.monotonic() + limit
        while not self._replies:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise self._lost(operation, TimeoutError(errno.ETIMEDOUT, "no reply"))
            self.receive(left, operation)
        return self._replies.popleft()

    def _keep(self, packet: Packet, operation: str) -> None:
        strings = unpack_strings(packet.payload)
        if len(strings) < 2:
            raise self._broken(operation)
        if not self.events:
            os.eventfd_write(self._kept, 1)
        self.events.append((strings[0].decode("latin-1"), strings[1].decode("latin-1")))

    def _require_open(self, operation: str) -> None:
        if not self.open:
            raise XenStoreError("EBADF", self._where, operation)

    def _lost(self, operation: str, error: OSError) -> XenStoreError:
        """The connection cannot be used any more: close it, and say why."""
        self.close()
        name = errno.errorcode.get(error.errno or errno.ETIMEDOUT, "EIO")
        return XenStoreError(name, self._where, operation)

    def _broken(self, operation: str) -> XenStoreError:
        """What came is not xenstore's protocol."""
        self.close()
        return XenStoreError("EIO", self._where, operation)
