"""The way to an NBD server: from its address to an export that is agreed on, without waiting.

Owns: the socket until it is handed over (`take`), and what is said if there is none. Whoever dials
polls `fileno()` for `events()`, calls `go_on` when it is ready, and closes when it takes too long.
Rule: nothing waits but `addresses_of`, which resolves names, and `dialled`.
"""

import errno
import os
import select
import socket
import threading
import time
from contextlib import suppress
from typing import Any, Final, NamedTuple

from backend.nbd_negotiation import Export, Negotiation
from common.faults import LocalFault
from common.nbd_uri import NbdUri

CHUNK_BYTES: Final = 4096
CONNECTING: Final = (0, errno.EINPROGRESS)


class Address(NamedTuple):
    """As `socket.socket` and `connect` take it."""

    family: int
    where: Any


def addresses_of(uri: NbdUri, timeout_s: float) -> list[Address]:
    """At least one. Raises LocalFault."""
    if uri.socket:
        return [Address(socket.AF_UNIX, uri.socket)]
    with suppress(socket.gaierror):  # a name: that is looked up below
        return _look_up(uri, socket.AI_NUMERICHOST)
    found: list[list[Address] | socket.gaierror] = []

    def look_up() -> None:
        try:
            found.append(_look_up(uri, 0))
        except socket.gaierror as error:
            found.append(error)

    thread = threading.Thread(target=look_up, name="nbd-name", daemon=True)
    thread.start()
    thread.join(timeout_s)
    if not found:
        raise LocalFault(f"host {uri.host!r} is not found out within {timeout_s:g} s")
    if isinstance(found[0], socket.gaierror):
        raise LocalFault(f"host {uri.host!r}: {found[0].strerror}")
    return found[0]


def _look_up(uri: NbdUri, flags: int) -> list[Address]:
    found = socket.getaddrinfo(
        uri.host, uri.port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP, flags=flags
    )
    return [Address(family, where) for family, _, _, _, where in found]


class Dial:
    """To the server at `address`, for the export `name`. Raises OSError or LocalFault."""

    def __init__(self, address: Address, name: str) -> None:
        self._negotiation = Negotiation(name)
        self._to_send = b""
        kind = socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        self._socket = socket.socket(address.family, kind)
        try:
            if address.family != socket.AF_UNIX:
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            error = self._socket.connect_ex(address.where)
            if error not in CONNECTING:
                raise OSError(error, os.strerror(error))
        except OSError:
            self._socket.close()
            raise
        self._connected = error == 0

    @property
    def export(self) -> Export | None:
        """What has been agreed on, once it is."""
        return self._negotiation.export if not self._to_send else None

    def fileno(self) -> int:
        """What to poll."""
        return self._socket.fileno()

    def events(self) -> int:
        """What to poll for."""
        return select.POLLIN if self._connected and not self._to_send else select.POLLOUT

    def go_on(self) -> None:
        """The socket may be ready. Raises OSError or LocalFault: it has come to nothing."""
        if not self._connected:
            if error := self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                raise OSError(error, os.strerror(error))
            try:
                self._socket.getpeername()
            except OSError:  # it is not there yet
                return
            self._connected = True
        with suppress(BlockingIOError):  # that is all there is for now
            while self._negotiation.export is None:
                self._send()
                data = self._socket.recv(CHUNK_BYTES)
                if not data:
                    raise self._negotiation.ended()
                self._to_send += self._negotiation.take(data)
        with suppress(BlockingIOError):  # POLLOUT will tell
            self._send()

    def _send(self) -> None:
        while self._to_send:
            self._to_send = self._to_send[self._socket.send(self._to_send) :]

    def take(self) -> socket.socket:
        """The socket is the caller's from now on."""
        return self._socket

    def close(self) -> None:
        """Give it up, and say so if the server is listening."""
        if self._connected and not self._to_send and self._negotiation.parting:
            with suppress(OSError):  # it is gone
                self._socket.send(self._negotiation.parting)
        self._socket.close()


def dialled(address: Address, name: str, give_up_ns: int) -> Dial:
    """Dial and wait, until `give_up_ns` (CLOCK_MONOTONIC) at most. Raises OSError, LocalFault."""
    dial = Dial(address, name)
    try:
        while dial.export is None:
            left_ms = (give_up_ns - time.monotonic_ns()) // 1_000_000
            poller = select.poll()
            poller.register(dial.fileno(), dial.events())
            if left_ms <= 0 or not poller.poll(left_ms):
                raise LocalFault("the server does not answer in time")
            dial.go_on()
    except (LocalFault, OSError):
        dial.close()
        raise
    return dial
