"""A control connection: the toolstack's line to one process of its machine.

Owns: the form of a message, and both ends' way to send and receive one. A message is a list of
plain values in MessagePack, one SOCK_SEQPACKET packet, and may bring descriptors with it.
Rules: an end believes nothing of what comes but that it is plain values: nothing is unpickled, no
message is longer than MESSAGE_MAX, and descriptors are taken only by who waits for some (the kernel
drops them otherwise). What is no message is ControlLost, as is an end that is gone.

A process answers each command with ("ok", value) or ("error", text), in order; in between it may
send ("log", text) and the like.
"""

import inspect
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgpack

from common.descriptors import receive_with_descriptors, send_with_descriptors

MESSAGE_MAX: Final = 160 * 1024  # what a unix socket's default buffer holds as one packet
DATA_MAX: Final = 128 * 1024  # bytes of a disk in one message
TEXT_MAX: Final = 4000  # of a log line, or the errors of 16 disks: the other end may be a guest
DESCRIPTORS_MAX: Final = 32  # a guest is born with 7, and a state file for each disk
SEND_TIMEOUT_S: Final = 10.0  # the other end does not read: it is stuck, or means ill

Message = list[Any]
CommandTable = Mapping[str, Callable[..., Any]]


class ControlLost(Exception):
    """The other end is gone, does not read, or sent what is no message; the text says which."""


class Control:
    """One end. `sock` (SOCK_SEQPACKET) is this object's from now on."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        sock.settimeout(SEND_TIMEOUT_S)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * MESSAGE_MAX)

    @classmethod
    def of_descriptor(cls, fd: int) -> "Control":
        """The end that a process is born with."""
        return cls(socket.socket(fileno=fd))

    def fileno(self) -> int:
        """For pollers."""
        return self._socket.fileno()

    def send(self, *message: Any, descriptors: Sequence[int] = ()) -> None:
        """Send one message of plain values. Raises ControlLost."""
        packed = msgpack.packb(message)
        assert len(packed) <= MESSAGE_MAX, f"a message of {len(packed)} bytes"
        try:
            if descriptors:
                send_with_descriptors(self._socket, packed, descriptors)
            else:
                self._socket.send(packed)
        except OSError as error:
            raise ControlLost(f"cannot be told anything: {error}") from error

    def receive(self, timeout_s: float | None = None) -> Message | None:
        """The next message, or None if none came in time (0: looks only). Raises ControlLost."""
        try:
            self._socket.settimeout(timeout_s)
            packed = self._socket.recv(MESSAGE_MAX + 1)
        except (TimeoutError, BlockingIOError):
            return None
        except ConnectionResetError:  # it had not read all when it went
            packed = b""
        except OSError as error:
            raise ControlLost(str(error)) from error
        finally:
            self._socket.settimeout(SEND_TIMEOUT_S)
        return self._parsed(packed)

    def receive_with_descriptors(self) -> tuple[Message, list[int]]:
        """Wait for a message and what came with it (close-on-exec). Raises ControlLost."""
        try:
            self._socket.settimeout(None)
            packed, descriptors = receive_with_descriptors(
                self._socket, MESSAGE_MAX + 1, DESCRIPTORS_MAX
            )
        except OSError as error:
            raise ControlLost(str(error)) from error
        finally:
            self._socket.settimeout(SEND_TIMEOUT_S)
        try:
            return self._parsed(packed), descriptors
        except ControlLost:
            for fd in descriptors:
                os.close(fd)
            raise

    @staticmethod
    def _parsed(packed: bytes) -> Message:
        if not packed:
            raise ControlLost("is gone")
        if len(packed) > MESSAGE_MAX:
            raise ControlLost(f"sent a message of more than {MESSAGE_MAX} bytes")
        try:
            message = msgpack.unpackb(packed, ext_hook=_refuse)
        except (ValueError, msgpack.UnpackException) as error:
            raise ControlLost(f"sent what is no message: {error}") from error
        if not isinstance(message, list) or not message or not isinstance(message[0], str):
            raise ControlLost("sent a message that is no list with a word at its head")
        return message

    @property
    def closed(self) -> bool:
        """Has it been given up?"""
        return self._socket.fileno() < 0

    def close(self) -> None:
        """Give the connection up."""
        self._socket.close()


def control_pair() -> tuple[Control, socket.socket]:
    """Our end, and the other, to be handed to whom it is for."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * MESSAGE_MAX)
    return Control(ours), theirs


def _refuse(code: int, _: bytes) -> None:
    raise ValueError(f"extension type {code}")


def answer(control: Control, message: Message, commands: CommandTable) -> None:
    """Carry a command out and answer it. An error to be told is one of CommandError's kind."""
    word, *arguments = message
    command = commands.get(word)
    if command is None:
        allowed = ", ".join(sorted(commands))
        control.send(
            "error", one_line(f"no such command {word[:TEXT_MAX]!r}; allowed are {allowed}")
        )
        return
    try:
        inspect.signature(command).bind(*arguments)
    except TypeError as error:
        control.send("error", one_line(f"{word}: {error}"))
        return
    try:
        result = command(*arguments)
    except CommandError as error:
        control.send("error", one_line(str(error)))
    else:
        control.send("ok", result)


def carry_out(control: Control, message: Message, commands: CommandTable) -> bool:
    """Answer ("order", number, word, argument...) with ("done", number, value, why not): nobody
    waits for that in its place among other answers. False if the message is no order."""
    if message[0] != "order":
        return False
    _, number, word, *arguments = message
    try:
        control.send("done", number, commands[word](*arguments), "")
    except CommandError as error:
        control.send("done", number, None, one_line(str(error)))
    return True


class CommandError(Exception):
    """What was asked cannot be done; the text goes to the user."""


def one_line(text: object) -> str:
    """What another process says, fit for a terminal: printable, one line, not long.

    What is no text is not shown: lists in lists would recurse in us.
    """
    words = " ".join(text.split()) if isinstance(text, str) else f"(a {type(text).__name__})"
    shown = "".join(char if char.isprintable() else "?" for char in words)
    return shown if len(shown) <= TEXT_MAX else f"{shown[:TEXT_MAX]}..."
