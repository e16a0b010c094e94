"""A connection to xenstored, as its client: one request, one reply, and watch events in between.

Owns: the socket, and the watch events that came in on it and that nobody has taken yet.
Rules: blocking, one thread at a time. What is not the protocol, and a reply that does not come, end
the connection; `open` says so.
"""

import errno
import os
import select
import socket
import time
from collections import deque
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

WatchEvent = tuple[str, str]  # path, token


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
    """A connection to the xenstored at `socket_path`. `poller`: readable while events wait."""

    def __init__(self, socket_path: str) -> None:
        self._socket_path = socket_path
        self._parser = Parser()
        self._req_id = 0
        self._replies: deque[Packet] = deque()
        self.events: deque[WatchEvent] = deque()
        self.open = True
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._kept = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.poller = select.epoll()
        self.poller.register(self._socket, select.EPOLLIN)
        self.poller.register(self._kept, select.EPOLLIN)
        try:
            self._socket.connect(socket_path)
        except OSError as error:
            raise self._lost("connect", error) from error

    def call(self, kind: MessageType, tx_id: int, first: str, rest: bytes = b"") -> bytes:
        """Send a request whose payload is the string `first`, then `rest`; returns the reply's."""
        raw = encode(first, kind.name)
        payload = raw + b"\0" + rest
        if len(payload) > XENSTORE_PAYLOAD_MAX:
            raise XenStoreError("E2BIG", first, kind.name)
        self._req_id = (self._req_id + 1) & 0xFFFFFFFF
        self._send(pack(Packet(kind, self._req_id, tx_id, payload)), kind.name)
        reply = self._await_reply(kind.name)
        if reply.type == MessageType.ERROR:
            name = reply.payload.rstrip(b"\0").decode("latin-1")
            raise XenStoreError(name, first, kind.name)
        if reply.type != kind or reply.req_id != self._req_id:
            raise self._broken(kind.name)
        return reply.payload

    def begin(self) -> int:
        """Open a transaction; returns its id."""
        reply = self.call(MessageType.TRANSACTION_START, 0, "").rstrip(b"\0")
        if not reply.isdigit():
            raise self._broken("TRANSACTION_START")
        return int(reply)

    def receive(self, timeout_s: float, operation: str) -> None:
        """Take in the next bytes, if some come within `timeout_s` seconds."""
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
        self._socket.settimeout(REPLY_TIMEOUT_S)
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise self._lost(operation, error) from error

    def _await_reply(self, operation: str) -> Packet:
        deadline = time.monotonic() + REPLY_TIMEOUT_S
        while not self._replies:
            left = deadline - time.monotonic()
            if left <= 0:
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
            raise XenStoreError("EBADF", self._socket_path, operation)

    def _lost(self, operation: str, error: OSError) -> XenStoreError:
        """The connection cannot be used any more: close it, and say why."""
        self.close()
        name = errno.errorcode.get(error.errno or errno.ETIMEDOUT, "EIO")
        return XenStoreError(name, self._socket_path, operation)

    def _broken(self, operation: str) -> XenStoreError:
        """What came is not xenstore's protocol."""
        self.close()
        return XenStoreError("EIO", self._socket_path, operation)
