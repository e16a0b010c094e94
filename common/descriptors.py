"""Packets that bring descriptors with them.

(Python's own socket.send_fds and recv_fds take flags and, up to 3.13 at least, ignore them: the one
blocks whatever it is told, what the other returns is inherited.)
"""

import array
import socket
from collections.abc import Sequence


def send_with_descriptors(
    sock: socket.socket, packet: bytes, descriptors: Sequence[int], flags: int = 0
) -> None:
    """Send one packet and `descriptors`, which stay the caller's. Raises OSError."""
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))
    sock.sendmsg([packet], [rights], flags)


def receive_with_descriptors(
    sock: socket.socket, nbytes: int, descriptors_max: int
) -> tuple[bytes, list[int]]:
    """The next packet, and at most so many descriptors, close-on-exec and the caller's to close.

    The kernel drops what is more. Raises OSError.
    """
    received = array.array("i")
    packet, ancillary, _, _ = sock.recvmsg(
        nbytes, socket.CMSG_LEN(descriptors_max * received.itemsize), socket.MSG_CMSG_CLOEXEC
    )
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            received.frombytes(data[: len(data) - len(data) % received.itemsize])
    return packet, list(received)
