"""The control protocol of a machine that stays: its form, for both ends.

Owns: how a message is written and read (docs/staying.md says it for others). A connection is a
stream of MessagePack values, arrays all: a request is [number, word, argument...], of a number that
the client has not in use; what answers it has the same number at its head:
    [number, "ok", value]            it is done
    [number, "error", kind, text]    it could not be: kind is a name of ERRORS
    [number, "more", value]          it goes on
Rules: values are plain (nothing is unpickled); a message that is longer than MESSAGE_MAX, or no
message, ends the connection.
"""

import socket
from collections.abc import Iterator
from typing import Any, Final

import msgpack

from toolstack.failures import GuestFailed, MachineError
from toolstack.loadspec import ConfigError

MESSAGE_MAX: Final = 64 << 20
CHUNK: Final = 1 << 18

ERRORS: Final[dict[str, type[Exception]]] = {
    "ConfigError": ConfigError,
    "GuestFailed": GuestFailed,
    "MachineError": MachineError,
    "ValueError": ValueError,
    "KeyError": KeyError,
}


class ConnectionLost(MachineError):
    """The other end is gone, or sent what is no message."""


class NoAnswer(ConnectionLost):
    """The other end is there, and does not answer."""


def kind_of(error: Exception) -> str:
    """What an error is called on the wire."""
    return next((name for name, kind in ERRORS.items() if type(error) is kind), "MachineError")


class Reader:
    """Messages out of what has been received."""

    def __init__(self) -> None:
        self._unpacker = msgpack.Unpacker(max_buffer_size=MESSAGE_MAX, ext_hook=_refuse)

    def feed(self, received: bytes) -> Iterator[list[Any]]:
        """The messages that are whole now. Raises ConnectionLost."""
        try:
            self._unpacker.feed(received)
            for message in self._unpacker:
                if not isinstance(message, list) or len(message) < 2:
                    raise ConnectionLost("sent what is no message")
                if not isinstance(message[0], int) or not isinstance(message[1], str):
                    raise ConnectionLost("sent a message without a number and a word at its head")
                yield message
        except (ValueError, msgpack.UnpackException, msgpack.BufferFull) as error:
            raise ConnectionLost(f"sent what is no message: {error}") from error


def packed(*message: Any) -> bytes:
    """A message as bytes."""
    return bytes(msgpack.packb(message))


class Requests:
    """The client's end of a connection: requests, and the answers to each."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket, self._reader = connection, Reader()
        self._next = 0
        self._answers: dict[int, list[list[Any]]] = {}

    def begin(self, word: str, *arguments: Any) -> int:
        """Send a request; its number. Raises ConnectionLost."""
        self._next += 1
        self._answers[self._next] = []
        self._send(self._next, word, *arguments)
        return self._next

    def stop(self, number: int) -> None:
        """What the request `number` began is to end; its answer is still to be awaited."""
        self._next += 1
        self._send(self._next, "stop", number)

    def results(self, number: int) -> Iterator[Any]:
        """What "more" and the final "ok" bring. Raises what the error is, and ConnectionLost."""
        waiting = self._answers[number]
        try:
            while True:
                while not waiting:
                    self._receive()
                word, *values = waiting.pop(0)
                if word == "error":
                    raise ERRORS.get(values[0], MachineError)(values[1])
                yield values[0]
                if word == "ok":
                    return
        finally:
            del self._answers[number]

    def ask(self, word: str, *arguments: Any) -> Any:
        """The answer to a request that has one."""
        *_, answer = self.results(self.begin(word, *arguments))
        return answer

    def _send(self, *message: Any) -> None:
        try:
            self._socket.sendall(packed(*message))
        except OSError as error:
            raise ConnectionLost(f"the machine is gone: {error.strerror}") from None

    def _receive(self) -> None:
        try:
            received = self._socket.recv(CHUNK)
        except TimeoutError:
            raise NoAnswer("its keeper does not answer") from None
        except OSError as error:
            raise ConnectionLost(f"the machine is gone: {error.strerror}") from None
        if not received:
            raise ConnectionLost("the machine is gone")
        for number, *rest in self._reader.feed(received):
            if number in self._answers:
                self._answers[number].append(rest)

    def close(self) -> None:
        """Give the connection up."""
        self._socket.close()


def _refuse(code: int, _: bytes) -> None:
    raise ValueError(f"extension type {code}")
