"""Packets that bring descriptors with them."""

import array
import socket


def receive_with_descriptors(
    sock: socket.socket, nbytes: int, descriptors_max: int
) -> tuple[bytes, list[int]]:
    """The next packet, and at most so many descriptors, close-on-exec and the caller's to close.

    The kernel drops what is more. (socket.recv_fds takes flags and, up to Python 3.13, ignores
    them: what it returns is inherited.) Raises OSError.
    """
    received = array.array("i")
    packet, ancillary, _, _ = sock.recvmsg(
        nbytes, socket.CMSG_LEN(descriptors_max * received.itemsize), socket.MSG_CMSG_CLOEXEC
    )
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            received.frombytes(data[: len(data) - len(data) % received.itemsize])
    return packet, list(received)
