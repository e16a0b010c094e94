"""Segments of POSIX shared memory, and numpy views of them.

Owns: how a segment is made, so that nothing of it can be left behind: its name is removed before
its maker returns, and from then on it lives only in file descriptors.
Rules: every byte is reserved when the segment is made. A tmpfs file that is merely truncated to its
size kills whoever first touches a page that does not fit (SIGBUS).
"""

import ctypes
import errno
import fcntl
import mmap
import os
from typing import Final

import numpy as np
import posix_ipc

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
MADV_POPULATE_WRITE: Final = 23  # since Linux 5.14
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
_MAP_FAILED: Final = ctypes.c_void_p(-1).value

_PROT_NONE: Final = 0  # these three Python's mmap has not, or since 3.13 only
_MAP_FIXED: Final = 0x10
_MAP_NORESERVE: Final = 0x4000

PUNCH_HOLE: Final = 0x02 | 0x01  # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
HUGE_PAGE: Final = 2 << 20
SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


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


def sealed_memory(name: str, nbytes: int, grows: bool = False) -> int:
    """The descriptor of `nbytes` of new memory, zeros, whose size nobody can change: who has it
    mapped need not fear that somebody else who holds a descriptor makes it shorter (SIGBUS). A page
    is taken from the host when it is first used. grows: it may become longer. Raises OSError.
    """
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, nbytes)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS & ~fcntl.F_SEAL_GROW if grows else SEALS)
    except BaseException:
        os.close(fd)
        raise
    return fd


class _Mapping:
    """All of a segment, mapped for as long as a view of it lives; at a multiple of `align`."""

    def __init__(self, fd: int, nbytes: int, align: int = mmap.PAGESIZE) -> None:
        # Not Python's own mmap: that keeps a descriptor for as long as the mapping lives.
        room = nbytes + align - mmap.PAGESIZE
        aside = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        self._room = self._mapped(None, room, _PROT_NONE, aside, -1), room
        address = -(-self._room[0] // align) * align
        protection = mmap.PROT_READ | mmap.PROT_WRITE
        self._mapped(address, nbytes, protection, mmap.MAP_SHARED | _MAP_FIXED, fd)
        self.__array_interface__ = {
            "shape": (nbytes,),
            "typestr": "|u1",
            "data": (address, False),
            "version": 3,
        }

    @staticmethod
    def _mapped(at: int | None, nbytes: int, protection: int, flags: int, fd: int) -> int:
        address = _libc.mmap(at, nbytes, protection, flags, fd, 0)
        if address in (None, _MAP_FAILED):
            raise OSError(ctypes.get_errno(), f"cannot map {nbytes} bytes of shared memory")
        return int(address)

    def __del__(self) -> None:
        if hasattr(self, "_room"):
            _libc.munmap(*self._room)


def map_segment(fd: int) -> np.ndarray:
    """All of the segment `fd`, mapped: u8, shape (nbytes,). `fd` is closed: who holds a descriptor
    of a segment can truncate it, and whoever else has it mapped dies of SIGBUS.
    """
    try:
        return np.asarray(_Mapping(fd, os.fstat(fd).st_size))
    finally:
        os.close(fd)


def map_shared(fd: int, room: int = 0) -> np.ndarray:
    """The same of sealed memory, whose descriptor stays open. Raises OSError.

    Where it is large it lies so that pages of 2 MiB can be had (`backend/huge_pages.py`). room: so
    many bytes, if it is less: what lies beyond the memory's end may be used once that has grown.
    """
    nbytes = max(room, os.fstat(fd).st_size)
    return np.asarray(_Mapping(fd, nbytes, HUGE_PAGE if nbytes >= HUGE_PAGE else mmap.PAGESIZE))


def punch(fd: int, offset: int, nbytes: int) -> None:
    """Give these bytes of memory back to the host: they are zeros from now on. Raises OSError."""
    if _libc.fallocate(fd, PUNCH_HOLE, offset, nbytes) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def touch(memory: np.ndarray) -> None:
    """Have every page of `memory` (u8, shared) now, as it is, and not when it is first used."""
    start = memory.ctypes.data - memory.ctypes.data % mmap.PAGESIZE
    end = memory.ctypes.data + len(memory)
    if _libc.madvise(start, end - start, MADV_POPULATE_WRITE) != 0:
        memory[:: mmap.PAGESIZE].max(initial=0)  # read, which takes a page of shared memory, too
