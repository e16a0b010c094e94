"""Segments of POSIX shared memory, and numpy views of them.

Owns: how a segment is made, so that nothing of it can be left behind: its name is removed before
its maker returns, and from then on it lives only in file descriptors.
Rules: every byte is reserved when the segment is made. A tmpfs file that is merely truncated to its
size kills whoever first touches a page that does not fit (SIGBUS).
"""

import errno
import mmap
import os

import numpy as np
import posix_ipc

from common.abi import XEN_PAGE_SIZE


class SharedMemoryError(Exception):
    """A segment could not be made; the text names it, the cause and what would help."""


def create_segment(name: str, nbytes: int) -> int:
    """Make a zeroed segment of `nbytes` and return its file descriptor; no name is left.

    `name` is what an error, or a listing in the blink before it is unlinked, shows.
    Raises SharedMemoryError where shared memory is full, forbidden or taken.
    """
    path = f"/dev/shm/{name}"
    try:
        segment = posix_ipc.SharedMemory(f"/{name}", posix_ipc.O_CREX, mode=0o600)
    except (posix_ipc.Error, OSError) as error:
        raise SharedMemoryError(f"cannot create shared memory {path}: {error}") from error
    segment.unlink()
    try:
        os.posix_fallocate(segment.fd, 0, nbytes)
    except OSError as error:
        segment.close_fd()
        if error.errno in (errno.ENOSPC, errno.ENOMEM):
            free = os.statvfs("/dev/shm")
            raise SharedMemoryError(
                f"shared memory is full: {path} needs {nbytes} bytes,"
                f" /dev/shm has {free.f_bavail * free.f_frsize} free"
            ) from error
        raise SharedMemoryError(f"cannot reserve {nbytes} bytes for {path}: {error}") from error
    os.set_inheritable(segment.fd, False)
    return int(segment.fd)


class Segment:
    """A segment mapped into this process: `bytes` is all of it, u8, shape (nbytes,).

    Takes over `fd` and keeps it (dom0 maps single frames through it); `close` gives both up.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.nbytes = os.fstat(fd).st_size
        self._map = mmap.mmap(fd, self.nbytes)
        self.bytes = np.frombuffer(self._map, np.uint8)

    def frames(self, first: int, count: int) -> np.ndarray:
        """`count` 4-KiB frames from frame `first` on, u8, shape (count * 4096,)."""
        return self.bytes[first * XEN_PAGE_SIZE : (first + count) * XEN_PAGE_SIZE]

    def close(self) -> None:
        """Give the descriptor up; the mapping goes when the last numpy view of it does."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
