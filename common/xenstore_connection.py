"""A connection to xenstored, as its client: the socket, and who waits on it.

Owns: the socket, and what `poller` says. What is asked and answered is the exchange's
(`common/xenstore_exchange.py`).
Rules: one thread at a time. `ask` and `run` wait for their answer, and what else comes meanwhile is
told to whom it is for; `hold` waits for nothing. What is not the protocol, and a reply that does
not come in time (ETIMEDOUT, if there is a limit), end the connection; `open` says so.
"""

import errno
import os
import select
import socket
import time
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from common.xenstore_exchange import (
    Broken,
    Exchange,
    Reply,
    Request,
    Talk,
    WatchEvent,
    XenStoreError,
)

REPLY_TIMEOUT_S: Final = 30.0
RECEIVE_BYTES: Final = 64 * 1024
GUEST_TALKS_MAX: Final = 8  # a domain may have 10 transactions open, as with Xen's xenstored

T = TypeVar("T")


class Connection:
    """A connection to the xenstored at the path `where`, or one that is there already: a socket,
    which is ours from now on. `poller`: readable while there is something to `receive`.

    `reply_timeout_s`: how long a reply may take that is waited for; None: as long as xenstored
    lives.
    """

    def __init__(self, where: str | socket.socket, reply_timeout_s: float | None) -> None:
        self._where = where if isinstance(where, str) else "socket"
        self._reply_timeout_s = reply_timeout_s
        # Who is given a socket is a guest, and has quotas.
        is_guest = isinstance(where, socket.socket)
        self._exchange = Exchange(GUEST_TALKS_MAX if is_guest else None)
        self.open = True
        if isinstance(where, str):
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        else:
            self._socket = where
        self._kept, self._is_kept = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC), False
        self._sending = False
        self.poller = select.epoll()
        self.poller.register(self._socket, select.EPOLLIN)
        self.poller.register(self._kept, select.EPOLLIN)
        try:
            if isinstance(where, str):
                self._socket.connect(where)
        except OSError as error:
            raise self._lost("connect", error) from error

    def call(self, request: Request) -> bytes:
        """Send a request; returns what is answered. Raises XenStoreError."""
        (reply,) = self.ask([request])
        if isinstance(reply, XenStoreError):
            raise reply
        return reply

    def ask(self, requests: Sequence[Request]) -> list[Reply]:
        """Send requests together; returns what each is answered."""
        operation = requests[0].kind.name
        self._require_open(operation)
        answered: list[list[Reply]] = []
        self._exchange.ask(requests, answered.append)
        limit = self._reply_timeout_s
        deadline = None if limit is None else time.monotonic() + limit
        while not answered:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise self._lost(operation, TimeoutError(errno.ETIMEDOUT, "no reply"))
            self._send(left, operation)
            self.receive(left, operation)
        return answered[0]

    def run(self, talk: Talk[T]) -> T:
        """Have a conversation; returns what came of it."""
        try:
            requests = next(talk)
            while True:
                requests = talk.send(self.ask(requests))
        except StopIteration as end:
            result: T = end.value
            return result
        except Broken as error:
            raise self._broken("run") from error

    def hold(self, talk: Talk[T], then: Callable[[T], None]) -> None:
        """Have a conversation and wait for none of it: `then` is told, from `receive`."""
        self._require_open("hold")
        self._exchange.hold(talk, then)
        self._send_some("hold")

    @property
    def events(self) -> Sequence[WatchEvent]:
        """The watch events that nobody has taken yet."""
        return self._exchange.events

    def take_event(self) -> WatchEvent:
        """The first of `events`, which is kept no longer."""
        event = self._exchange.events.popleft()
        self._show_kept()
        return event

    def receive(self, timeout_s: float | None, operation: str) -> None:
        """Take in the next bytes, if some come within `timeout_s` seconds (None: wait)."""
        self._require_open(operation)
        self._send_some(operation)
        self._socket.settimeout(timeout_s)
        try:
            data = self._socket.recv(RECEIVE_BYTES)
        except (BlockingIOError, TimeoutError):
            return
        except OSError as error:
            raise self._lost(operation, error) from error
        if not data:
            raise self._lost(operation, ConnectionResetError(errno.ECONNRESET, "closed"))
        try:
            self._exchange.feed(data)
        except Broken as error:
            raise self._broken(operation) from error
        if self.open:  # whom it was told to may have closed it
            self._show_kept()
            self._send_some(operation)

    def close(self) -> None:
        """Close; closing twice is fine."""
        if self.open:
            self.open = False
            self.poller.close()
            os.close(self._kept)
            self._socket.close()

    def _show_kept(self) -> None:
        """Have the poller say whether there are events."""
        if self._is_kept != bool(self._exchange.events):
            self._is_kept = not self._is_kept
            if self._is_kept:
                os.eventfd_write(self._kept, 1)
            else:
                os.eventfd_read(self._kept)

    def _send(self, timeout_s: float | None, operation: str) -> None:
        """Send all there is, however long the store takes to read it."""
        out = self._exchange.out
        self._socket.settimeout(timeout_s)
        try:
            self._socket.sendall(out)
        except OSError as error:
            raise self._lost(operation, error) from error
        out.clear()

    def _send_some(self, operation: str) -> None:
        """Send what the store takes now; the poller says when it takes more."""
        out = self._exchange.out
        self._socket.settimeout(0)
        try:
            while out:
                del out[: self._socket.send(out)]
        except BlockingIOError:
            pass  # the rest when there is room
        except OSError as error:
            raise self._lost(operation, error) from error
        if self._sending != bool(out):
            self._sending = bool(out)
            interest = select.EPOLLIN | (select.EPOLLOUT if self._sending else 0)
            self.poller.modify(self._socket, interest)

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
