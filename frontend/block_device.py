"""A guest's disk for Python users: file-like, by offset, one piece or whole arrays at once.

Owns: how bytes get into the guest's I/O buffers and back, and how a large transfer is cut.
Rules: offsets and lengths are bytes, multiples of the sector size (it is a block device without a
cache, as with O_DIRECT); a transfer that fails raises OSError naming its sector; nothing is cached,
so that when a call returns the backend has answered. A backend that knows no flush has every flush
reported done; of one that knows no discard that is an OSError, EOPNOTSUPP.
"""

import errno
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from common.abi import (
    BLKIF_MAX_SECTORS_PER_REQUEST,
    BLKIF_OP_DISCARD,
    BLKIF_OP_FLUSH_DISKCACHE,
    BLKIF_OP_READ,
    BLKIF_OP_WRITE,
    BLKIF_RSP_EOPNOTSUPP,
    BLKIF_RSP_OKAY,
    SECTOR_SIZE,
    XEN_PAGE_SIZE,
)
from common.arena import Arena
from common.compiled import kernel
from frontend import blkfront
from frontend.blkfront_info import NO_ROOM
from frontend.disk import Disk
from frontend.driver import Driver
from frontend.load import no_load
from frontend.stepper import ring_of

ARENA_BYTES: Final = 1 << 16  # of no load
PIECE_BYTES: Final = BLKIF_MAX_SECTORS_PER_REQUEST * SECTOR_SIZE  # a large transfer's I/Os


@kernel
def _enqueue_first(rings: np.ndarray, ring: int, count: int) -> None:
    for io in range(count):
        blkfront.enqueue(ring_of(rings, ring), io)


class BlockDevice:
    """A connected disk of `size` bytes, which is `ring` of `driver`; disk: what its backend says.

    buffers: u8, the guest RAM to transfer through, whole frames from `first_frame` on;
    forget(sector, nr_sectors): told of every write and discard, before it starts; keep_going: see
    Driver.run.
    """

    def __init__(
        self,
        driver: Driver,
        ring: int,
        disk: Disk,
        buffers: np.ndarray,
        first_frame: int,
        forget: Callable[[int, int], None],
        keep_going: Callable[[], None],
    ) -> None:
        self.follow(disk)
        self._driver, self._ring = driver, ring
        self._dev, self._queue = driver.dev(ring), no_load(Arena(ARENA_BYTES))
        self._buffers = buffers
        self._first_frame = first_frame
        self._forget = forget
        self._keep_going = keep_going

    def follow(self, disk: Disk) -> None:
        """What its backend says now."""
        self.size, self.read_only = disk.nr_sectors * SECTOR_SIZE, disk.read_only
        self.sector_size, self._discards_securely = disk.sector_size, disk.discard_secure

    def read(self, offset: int, nbytes: int) -> bytes:
        """`nbytes` bytes at `offset`."""
        self._check(offset, nbytes)
        pieces = self._pieces(offset, nbytes)
        return b"".join(
            self._transfer(BLKIF_OP_READ, [start], length, None).tobytes()
            for start, length in pieces
        )

    def write(self, offset: int, data: bytes | bytearray | memoryview | np.ndarray) -> int:
        """Write `data` at `offset`; returns how many bytes that was."""
        self._check_writable()
        flat = np.frombuffer(data, np.uint8)
        self._check(offset, len(flat))
        for start, length in self._pieces(offset, len(flat)):
            piece = flat[start - offset : start - offset + length]
            self._transfer(BLKIF_OP_WRITE, [start], length, piece.reshape(1, -1))
        return len(flat)

    def read_many(self, offsets: Sequence[int] | np.ndarray, nbytes: int) -> np.ndarray:
        """`nbytes` bytes at each of `offsets`, in flight together: u8, shape (n, nbytes)."""
        self._check_each(offsets, nbytes)
        return self._transfer(BLKIF_OP_READ, offsets, nbytes, None)

    def write_many(self, offsets: Sequence[int] | np.ndarray, data: np.ndarray) -> None:
        """Write row i of `data` (u8, shape (n, nbytes)) at offset i, in flight together.

        Overlapping rows land in no particular order.
        """
        self._check_writable()
        if data.ndim != 2 or len(data) != len(offsets) or data.dtype != np.uint8:
            raise ValueError(
                f"data: u8 of shape ({len(offsets)}, nbytes) is needed,"
                f" not {data.dtype} of shape {data.shape}"
            )
        self._check_each(offsets, data.shape[1])
        self._transfer(BLKIF_OP_WRITE, offsets, data.shape[1], data)

    def flush(self) -> None:
        """Return when everything that was written would survive the backend's end."""
        self._special(BLKIF_OP_FLUSH_DISKCACHE, 0, 0)

    def discard(self, offset: int, nbytes: int, secure: bool = False) -> None:
        """Tell the backend that nobody wants these `nbytes` again: what is read there is anything.

        secure: and nobody is to be able to. Raises OSError, EOPNOTSUPP, where it knows no such.
        """
        self._check_writable()
        self._check(offset, nbytes)
        if secure and not self._discards_securely:
            raise OSError(errno.EOPNOTSUPP, "the backend does not discard securely")
        if nbytes > 0:
            self._forget(offset // SECTOR_SIZE, nbytes // SECTOR_SIZE)
            self._special(BLKIF_OP_DISCARD, offset, nbytes, secure)

    def _special(self, operation: int, offset: int, nbytes: int, secure: bool = False) -> None:
        io = self._dev.ios[:1]
        io["operation"], io["secure"] = operation, secure
        io["sector"], io["nr_sectors"] = offset // SECTOR_SIZE, nbytes // SECTOR_SIZE
        try:
            self._run(1)
        finally:
            io["secure"] = False

    @staticmethod
    def _pieces(offset: int, nbytes: int) -> list[tuple[int, int]]:
        return [
            (start, min(PIECE_BYTES, offset + nbytes - start))
            for start in range(offset, offset + nbytes, PIECE_BYTES)
        ]

    def _check_writable(self) -> None:
        if self.read_only:
            raise OSError(errno.EROFS, "the disk is read-only: nothing is written to it")

    def _check_each(self, offsets: Sequence[int] | np.ndarray, nbytes: int) -> None:
        if not 0 < nbytes <= len(self._buffers):
            raise ValueError(f"nbytes: {nbytes} is not in 1..{len(self._buffers)}")
        for offset in offsets:
            self._check(int(offset), nbytes)

    def _check(self, offset: int, nbytes: int) -> None:
        for name, value in (("offset", offset), ("length", nbytes)):
            if value < 0 or value % self.sector_size:
                raise ValueError(
                    f"{name}: {value} is not a multiple of {self.sector_size} from 0 on, the disk's"
                    " sector size"
                )
        if offset + nbytes > self.size:
            raise ValueError(
                f"offset: {offset} + {nbytes} bytes is past the disk's end at {self.size}"
            )

    def _transfer(
        self,
        operation: int,
        offsets: Sequence[int] | np.ndarray,
        nbytes: int,
        data: np.ndarray | None,
    ) -> np.ndarray:
        """Run one I/O of `nbytes` for each offset, as many at a time as there are buffers."""
        result = np.empty((len(offsets), nbytes), np.uint8)
        frames = -(-nbytes // XEN_PAGE_SIZE)
        stride = frames * XEN_PAGE_SIZE
        batch = min(len(self._dev.ios), len(self._buffers) // stride)
        for start in range(0, len(offsets), batch):
            chosen = np.asarray(offsets[start : start + batch], np.int64)
            count = len(chosen)
            window = self._buffers[: count * stride].reshape(count, stride)[:, :nbytes]
            ios = self._dev.ios[:count]
            ios["operation"], ios["nr_sectors"] = operation, nbytes // SECTOR_SIZE
            ios["sector"] = chosen // SECTOR_SIZE
            ios["frame"] = self._first_frame + np.arange(count) * frames
            if data is not None:
                window[:] = data[start : start + count]
                for sector in ios["sector"]:
                    self._forget(int(sector), nbytes // SECTOR_SIZE)
            self._run(count)
            if data is None:
                result[start : start + count] = window
        return result

    def _run(self, count: int) -> None:
        dev, driver = self._dev, self._driver
        _enqueue_first(driver.rings, self._ring, count)
        driver.run_one(self._ring, self._queue, self._keep_going)
        dev.front["done"] = 0
        failed = np.flatnonzero(dev.ios["status"][:count] != BLKIF_RSP_OKAY)
        if len(failed):
            sector = int(dev.ios["sector"][failed[0]])
            if dev.ios["status"][failed[0]] == BLKIF_RSP_EOPNOTSUPP:
                what = f"the backend does not know what is asked for at sector {sector}"
                raise OSError(errno.EOPNOTSUPP, what)
            if dev.ios["status"][failed[0]] == NO_ROOM:
                raise OSError(
                    errno.EIO,
                    f"I/O at sector {sector}: this guest has too few free pages or grant entries"
                    f" for it ({len(failed)} of {count})",
                )
            raise OSError(errno.EIO, f"I/O error at sector {sector} ({len(failed)} of {count})")
