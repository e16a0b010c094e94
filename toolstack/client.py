"""One client of a machine that stays, as the keeper has it.

Owns: what is read of it and what is still to be written to it. A client is the machine's own user,
but may be slow, or stuck: nobody waits for it, and what is kept for it is bounded.
"""

import contextlib
import socket
from collections.abc import Iterator
from typing import Any, Final

from toolstack.wire import CHUNK, ConnectionLost, Reader, kind_of, packed

UNSENT_MAX: Final = 64 << 20


class Client:
    """`connection` is this object's from now on."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket, self._reader = connection, Reader()
        self._unsent = bytearray()
        connection.setblocking(False)

    def fileno(self) -> int:
        """For pollers."""
        return self._socket.fileno()

    @property
    def wants_to_write(self) -> bool:
        """Is there something that it has not taken yet?"""
        return bool(self._unsent)

    def receive(self) -> Iterator[list[Any]]:
        """The requests that have come. Raises ConnectionLost."""
        try:
            received = self._socket.recv(CHUNK)
        except BlockingIOError:
            return iter(())
        except OSError as error:
            raise ConnectionLost(str(error)) from error
        if not received:
            raise ConnectionLost("is gone")
        return self._reader.feed(received)

    def answer(self, number: int, value: Any) -> None:
        """It is done."""
        self._send(number, "ok", value)

    def more(self, number: int, value: Any) -> None:
        """It goes on."""
        self._send(number, "more", value)

    def refuse(self, number: int, error: Exception) -> None:
        """It could not be."""
        self._send(number, "error", kind_of(error), " ".join(map(str, error.args)))

    def _send(self, *message: Any) -> None:
        if self.fileno() < 0:  # it has gone: nobody is left to be told
            return
        if len(self._unsent) < UNSENT_MAX:  # else it is lost: `flush` says so
            self._unsent += packed(*message)
        with contextlib.suppress(ConnectionLost):  # noticed when it is next looked at
            self.flush()

    def flush(self) -> None:
        """Write what it takes now. Raises ConnectionLost if it is gone, or takes too little."""
        while self._unsent:
            try:
                sent = self._socket.send(self._unsent)
            except BlockingIOError:
                break
            except OSError as error:
                raise ConnectionLost(str(error)) from error
            del self._unsent[:sent]
        if len(self._unsent) >= UNSENT_MAX:
            raise ConnectionLost("does not read what it has asked for")

    def close(self) -> None:
        """Give the connection up."""
        self._socket.close()
