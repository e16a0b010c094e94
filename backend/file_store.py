"""A disk that is a file of the host, or a block device.

Owns: which files can be one, one line for each that cannot, and its descriptor. Requests go through
`open_queue`, to io_uring or, where the host refuses that, to threads of ours; who keeps what is
written himself (`volatile:`) calls the callbacks.
Rules
1. A disk that is written has the file's write lock, one that is only read its read lock (OFD locks,
   as QEMU and others take them): so nobody else writes it meanwhile.
2. A writable block device is opened exclusively: the host has it mounted, or we have it.
3. The file's size is what it is when it is opened. Who makes it shorter later makes errors.
"""

import ctypes
import errno
import fcntl
import logging
import mmap
import os
import stat
import struct
from contextlib import suppress
from pathlib import Path
from typing import Final

import numpy as np

from backend.file_pool import NR_THREADS, FilePool
from backend.io_uring import IoUring
from backend.store_queue import PUNCH_HOLE
from backend.stores import Features
from common.abi import SECTOR_SIZE
from common.faults import LocalFault

FileQueue = IoUring | FilePool
BLKGETSIZE64: Final = 0x80081272
MEMORY: Final = (0x01021994, 0x858458F6)  # TMPFS_MAGIC, RAMFS_MAGIC
PAGE: Final = mmap.PAGESIZE
KINDS: Final = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a character device",
    stat.S_IFSOCK: "a socket",
}

log = logging.getLogger(__name__)

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
_said: set[str] = set()  # why io_uring was refused, as far as the log has it


class FileStore:
    """Takes over `fd`, open and locked. unit: what O_DIRECT's addresses are multiples of, or 1."""

    memory: np.ndarray | None = None

    def __init__(self, fd: int, nr_bytes: int, sector_size: int, features: Features, unit: int):
        self.nr_sectors = nr_bytes // SECTOR_SIZE
        self.sector_size, self.features = sector_size, features
        self._fd, self._unit = fd, unit

    def open_queue(self, nr_slots: int, *, uring: bool = True) -> FileQueue:
        """What takes so many jobs at once to the file: the caller's to close, before the store.

        uring: not to be tried, if False. Raises LocalFault.
        """
        try:
            if uring:
                return IoUring(self._fd, nr_slots)
            reason = "it is not wanted"
        except OSError as error:
            reason = error.strerror or str(error)
        if reason not in _said:
            _said.add(reason)
            log.warning("no io_uring (%s): %d threads for each such disk", reason, NR_THREADS)
        try:
            return FilePool(self._fd, nr_slots)
        except (OSError, RuntimeError) as error:
            raise LocalFault(f"no threads for a disk on a file: {error}") from error

    def read(self, offset: int, into: np.ndarray) -> None:
        """Fill `into` with the bytes at `offset`. Raises OSError."""
        at, room = 0, self._aligned(into)
        while at < len(room):
            done = os.preadv(self._fd, [room[at:].data], offset + at)
            if done == 0:
                raise OSError(errno.EIO, "the file has become shorter")
            at += done
        if room is not into:
            into[:] = room

    def write(self, offset: int, data: np.ndarray) -> None:
        """Put `data` at `offset`. Raises OSError."""
        at, room = 0, self._aligned(data)
        if room is not data:
            room[:] = data
        while at < len(room):
            done = os.pwritev(self._fd, [room[at:].data], offset + at)
            if done == 0:
                raise OSError(errno.EIO, "nothing of it was written")
            at += done

    def _aligned(self, data: np.ndarray) -> np.ndarray:
        """`data`, or as much memory where O_DIRECT takes it from."""
        if data.ctypes.data % self._unit == 0:
            return data
        return np.frombuffer(mmap.mmap(-1, len(data)), np.uint8)

    def flush(self) -> None:
        """fdatasync. Raises OSError."""
        os.fdatasync(self._fd)

    def discard(self, offset: int, nr_bytes: int) -> None:
        """Punch a hole. Raises OSError."""
        _punch(self._fd, offset, nr_bytes)

    def close(self) -> None:
        """Unlock and close it. (A ring that the kernel has not done with holds it open longer.)"""
        with suppress(OSError):  # what is closed is closed, and nobody waits for an answer
            fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, _lock_of(fcntl.F_UNLCK))
        with suppress(OSError):
            os.close(self._fd)


def open_file(path: str, read_only: bool, cache: str, sector_size: int) -> FileStore:
    """The disk at `path`; cache: "none" (O_DIRECT) or "writeback". Raises LocalFault, with one line
    that names the path and what is allowed.
    """
    direct = cache == "none"
    fd = _open(path, read_only, direct)
    try:
        nr_bytes = _size(path, fd, sector_size)
        _lock(path, fd, read_only)
        unit = _direct_unit(path, fd, nr_bytes, sector_size) if direct else 1
        if unit > sector_size:
            raise LocalFault(
                f"{path}: cache=none needs sectors of {unit} bytes there:"
                f" sector-size={unit} or cache=writeback"
            )
        features = _features(fd, nr_bytes, sector_size, read_only)
        return FileStore(fd, nr_bytes, sector_size, features, unit)
    except OSError as error:
        os.close(fd)
        raise LocalFault(f"{path}: {error.strerror}") from error
    except BaseException:
        os.close(fd)
        raise


def check_file(path: str, read_only: bool, cache: str, sector_size: int) -> int:
    """Could it be opened now? How many bytes it has. Raises LocalFault as `open_file` does."""
    store = open_file(path, read_only, cache, sector_size)
    store.close()
    return store.nr_sectors * SECTOR_SIZE


def _open(path: str, read_only: bool, direct: bool) -> int:
    """Its descriptor: of a file or a block device, without waiting for anybody."""
    try:
        kind = _checked_kind(path, os.stat(path).st_mode)
        # A pipe that has come there since cannot hold us up.
        flags = os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
        flags |= os.O_RDONLY if read_only else os.O_RDWR
        flags |= os.O_DIRECT if direct else 0
        flags |= os.O_EXCL if kind == stat.S_IFBLK and not read_only else 0
        fd = os.open(path, flags)
    except (OSError, ValueError) as error:
        raise LocalFault(f"{path}: {_reason(error, read_only, direct)}") from error
    try:
        _checked_kind(path, os.fstat(fd).st_mode)
        os.set_blocking(fd, not _is_memory(fd))
    except BaseException:
        os.close(fd)
        raise
    return fd


def _is_memory(fd: int) -> bool:
    """Is it on a tmpfs? io_uring has threads do each job there, unless this is not blocking."""
    status = ctypes.create_string_buffer(256)  # `struct statfs`, some 120 bytes; f_type is first
    return _libc.fstatfs(fd, status) == 0 and struct.unpack_from("=q", status)[0] in MEMORY


def _reason(error: OSError | ValueError, read_only: bool, direct: bool) -> str:
    if isinstance(error, ValueError):
        return "no path"
    reason = error.strerror or str(error)
    match error.errno:
        case errno.EINVAL if direct:
            return "its file system has no O_DIRECT: cache=writeback is allowed"
        case errno.EROFS:
            return f"{reason}: a read-only disk is allowed"
        case errno.EACCES | errno.EPERM if not read_only:
            return f"{reason}: it is to be readable and writable"
        case errno.EACCES | errno.EPERM:
            return f"{reason}: it is to be readable"
        case errno.EBUSY:
            return f"{reason}: a device that the host uses may only be read"
        case errno.ENOENT:
            return f"{reason}: the file is to be there, with the disk's size"
    return reason


def _checked_kind(path: str, mode: int) -> int:
    kind = stat.S_IFMT(mode)
    if kind not in (stat.S_IFREG, stat.S_IFBLK):
        what = KINDS.get(kind, "no file")
        raise LocalFault(f"{path} is {what}: a file or a block device is needed")
    return kind


def _size(path: str, fd: int, sector_size: int) -> int:
    status = os.fstat(fd)
    nr_bytes = status.st_size
    if stat.S_ISBLK(status.st_mode):
        (nr_bytes,) = struct.unpack("<Q", fcntl.ioctl(fd, BLKGETSIZE64, bytes(8)))
    if nr_bytes < sector_size:
        needed = f"at least a sector of {sector_size}"
    elif nr_bytes % sector_size:
        needed = f"a multiple of its sectors of {sector_size}"
    else:
        return int(nr_bytes)
    raise LocalFault(f"{path} has {nr_bytes} bytes: {needed} is needed")


def _lock_of(kind: int) -> bytes:
    """`struct flock` of all of a file."""
    return struct.pack("=hh4xqqi4x", kind, os.SEEK_SET, 0, 0, 0)


def _lock(path: str, fd: int, read_only: bool) -> None:
    try:
        lock = _lock_of(fcntl.F_RDLCK if read_only else fcntl.F_WRLCK)
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, lock)
    except OSError as error:
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            raise
        others = "many readers" if read_only else "one writer alone"
        who = "writes it" if read_only else "has it open"
        raise LocalFault(f"{path} is locked by another who {who}: {others} may") from error


def _direct_unit(path: str, fd: int, nr_bytes: int, sector_size: int) -> int:
    """The least size, from a sector up, of which O_DIRECT takes addresses and offsets."""
    with mmap.mmap(-1, 2 * PAGE) as room, memoryview(room) as all_of_it:
        unit = sector_size
        while unit <= PAGE:
            # At a multiple of the unit, and of nothing larger: in memory, and in the file.
            offset = unit if nr_bytes >= 2 * unit else 0
            with all_of_it[unit : 2 * unit] as piece:
                try:
                    os.preadv(fd, [piece], offset)
                    return unit
                except OSError as error:
                    if error.errno != errno.EINVAL:
                        raise
            unit *= 2
    raise LocalFault(f"{path}: O_DIRECT takes nothing there: cache=writeback is allowed")


def _features(fd: int, nr_bytes: int, sector_size: int, read_only: bool) -> Features:
    can_all = Features(flush=True, barrier=True)
    if read_only:
        return can_all
    status = os.fstat(fd)
    if stat.S_ISBLK(status.st_mode):
        return _device_features(status.st_rdev, sector_size)
    granularity = max(status.st_blksize, sector_size)
    try:
        _punch(fd, nr_bytes, granularity)  # behind the end: nothing is lost
    except OSError:
        return can_all
    return can_all._replace(discard=True, discard_granularity=granularity)


def _device_features(device: int, sector_size: int) -> Features:
    """A hole in a block device is zeros that it writes itself, and mostly a discard to it."""
    place = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}")
    queue = place / "queue" if (place / "queue").exists() else place.resolve().parent / "queue"
    discard = _number(queue / "write_zeroes_max_bytes") > 0
    return Features(
        flush=True,
        barrier=True,
        discard=discard,
        discard_granularity=(_number(queue / "discard_granularity") or sector_size) * discard,
        discard_alignment=_number(place / "discard_alignment") * discard,
    )


def _number(path: Path) -> int:
    """0, if it is not there."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return 0


def _punch(fd: int, offset: int, nr_bytes: int) -> None:
    if _libc.fallocate(fd, PUNCH_HOLE, offset, nr_bytes) < 0:
        raise OSError(code := ctypes.get_errno(), os.strerror(code))
