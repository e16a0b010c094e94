"""Bytes through a stream socket from compiled code: one system call each, which never waits.

Owns: how `send` and `recv` of the C library are reached without the GIL.
"""

import errno
import socket
from typing import Final

import numpy as np
from numba import types

from common.compiled import kernel
from common.libc import last_errno

FLAGS: Final = int(socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
AGAIN: Final = -errno.EAGAIN
INTERRUPTED: Final = -errno.EINTR

IOVEC: Final = np.dtype([("address", "<u8"), ("nbytes", "<u8")])  # of readv(2) and writev(2)

_send = types.ExternalFunction("send", types.intp(types.intc, types.uintp, types.uintp, types.intc))
_recv = types.ExternalFunction("recv", types.intp(types.intc, types.uintp, types.uintp, types.intc))
_readv = types.ExternalFunction("readv", types.intp(types.intc, types.uintp, types.intc))
_writev = types.ExternalFunction("writev", types.intp(types.intc, types.uintp, types.intc))


@kernel
def send_some(fd: int, address: int, nbytes: int) -> np.int64:
    """Send what fits of the bytes at `address`: how many, or -errno; AGAIN if there is no room."""
    sent = _send(np.int32(fd), np.uint64(address), np.uint64(nbytes), np.int32(FLAGS))
    return np.int64(sent) if sent >= 0 else -last_errno()


@kernel
def receive_some(fd: int, address: int, nbytes: int) -> np.int64:
    """Receive at most `nbytes` bytes to `address`: how many (0: the other end has ended it), or
    -errno; AGAIN if none are there."""
    got = _recv(np.int32(fd), np.uint64(address), np.uint64(nbytes), np.int32(FLAGS))
    return np.int64(got) if got >= 0 else -last_errno()


@kernel
def receive_into(fd: int, iovecs: int, count: int) -> np.int64:
    """`receive_some` into the `count` parts that the IOVECs at an address name, one after the
    other. The socket does not block."""
    got = _readv(np.int32(fd), np.uint64(iovecs), np.int32(count))
    return np.int64(got) if got >= 0 else -last_errno()


@kernel
def send_from(fd: int, iovecs: int, count: int) -> np.int64:
    """`send_some` from such parts. The socket does not block, and SIGPIPE is ignored."""
    sent = _writev(np.int32(fd), np.uint64(iovecs), np.int32(count))
    return np.int64(sent) if sent >= 0 else -last_errno()
