"""Bytes through a stream socket from compiled code: one system call each, which never waits.

Owns: how `send` and `recv` of the C library, and its `errno`, are reached without the GIL.
"""

import errno
import socket
from typing import Any, Final

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from common.compiled import kernel

FLAGS: Final = int(socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
AGAIN: Final = -errno.EAGAIN
INTERRUPTED: Final = -errno.EINTR

_send = types.ExternalFunction("send", types.intp(types.intc, types.uintp, types.uintp, types.intc))
_recv = types.ExternalFunction("recv", types.intp(types.intc, types.uintp, types.uintp, types.intc))
_errno_location = types.ExternalFunction("__errno_location", types.uintp())


@intrinsic
def _load_int(typing: Any, address: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load(builder.inttoptr(args[0], ir.IntType(32).as_pointer()))

    return types.int32(types.uintp), codegen


@kernel
def send_some(fd: int, address: int, nbytes: int) -> np.int64:
    """Send what fits of the bytes at `address`: how many, or -errno; AGAIN if there is no room."""
    sent = _send(np.int32(fd), np.uint64(address), np.uint64(nbytes), np.int32(FLAGS))
    return np.int64(sent) if sent >= 0 else -np.int64(_load_int(_errno_location()))


@kernel
def receive_some(fd: int, address: int, nbytes: int) -> np.int64:
    """Receive at most `nbytes` bytes to `address`: how many (0: the other end has ended it), or
    -errno; AGAIN if none are there."""
    got = _recv(np.int32(fd), np.uint64(address), np.uint64(nbytes), np.int32(FLAGS))
    return np.int64(got) if got >= 0 else -np.int64(_load_int(_errno_location()))
