"""What a virtual disk's bytes are kept in: a handful of callbacks, and memory where there is some.

A store with `memory` is read and written by compiled copies straight between guest pages and it;
any other has its callbacks called, once a segment, from the thread that serves the ring. A store
raises OSError for what it cannot do, and the guest's request is answered ERROR.

The memory of a ram disk is a sealed memfd. Who makes and keeps it is the toolstack, as a rule, so
that it outlives dom0; dom0 is given its descriptor (`RamStores.give`) before the disk is plugged.
"""

import fcntl
import os
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Final, NamedTuple, Protocol

import numpy as np

from backend.huge_pages import HugePages
from common.abi import SECTOR_SIZE
from common.faults import LocalFault
from common.memory import map_shared, sealed_memory, touch
from common.targets import ram_room


class Features(NamedTuple):
    """What a store can do besides reads and writes: what its backend announces.

    discard_granularity, discard_alignment: bytes, of which 0 says nothing. Nothing here erases, so
    `discard-secure` is never offered.
    """

    flush: bool = False
    barrier: bool = False
    discard: bool = False
    discard_granularity: int = 0
    discard_alignment: int = 0


NO_FEATURES: Final = Features()


class Store(Protocol):
    """`nr_sectors` of 512 bytes, in blocks of `sector_size` bytes; `memory`, u8 of all bytes, or
    None if only the callbacks serve.
    """

    nr_sectors: int
    sector_size: int
    features: Features
    memory: np.ndarray | None

    def read(self, offset: int, into: np.ndarray) -> None:
        """Fill `into` (u8) with the bytes at `offset`."""

    def write(self, offset: int, data: np.ndarray) -> None:
        """Put `data` (u8) at `offset`."""

    def flush(self) -> None:
        """Return when everything written so far would survive."""

    def discard(self, offset: int, nr_bytes: int) -> None:
        """These bytes are not needed any more."""

    def close(self) -> None:
        """Give up what the store holds."""


class RamStore:
    """A ramdisk: zeros at first, taken from the host page by page as it is used.

    fd: the memory, which stays its owner's; without one it is the store's own. `closed` is called
    when it is. whole_sectors: a process that is killed leaves no sector that `write` has written a
    part of, as no disk does: a copy of our own may end anywhere, the kernel's ends with its page.
    """

    features = NO_FEATURES

    def __init__(
        self,
        nr_sectors: int,
        fd: int | None = None,
        sector_size: int = SECTOR_SIZE,
        whole_sectors: bool = False,
    ) -> None:
        if nr_sectors < 1:
            raise ValueError(f"nr_sectors: {nr_sectors} is not at least 1")
        self.nr_sectors, self.sector_size = nr_sectors, sector_size
        self.closed: Callable[[], None] = lambda: None
        self._fd = -1
        own = sealed_memory("grantlab-ram", nr_sectors * SECTOR_SIZE) if fd is None else -1
        room = ram_room(nr_sectors * SECTOR_SIZE) if fd is not None and _grows(fd) else 0
        try:
            self._room = map_shared(own if fd is None else fd, room)
            self.memory: np.ndarray | None = None
            self.resize(nr_sectors)
            if whole_sectors:
                self._fd = os.dup(own if fd is None else fd)
        finally:
            if own >= 0:
                os.close(own)

    def read(self, offset: int, into: np.ndarray) -> None:
        """Fill `into` with the bytes at `offset`."""
        assert self.memory is not None
        into[:] = self.memory[offset : offset + len(into)]

    def write(self, offset: int, data: np.ndarray) -> None:
        """Put `data` at `offset`."""
        assert self.memory is not None
        if self._fd >= 0:
            os.pwrite(self._fd, data.data, offset)
        else:
            self.memory[offset : offset + len(data)] = data

    def resize(self, nr_sectors: int) -> None:
        """It has so many sectors now, at the same addresses: its memory has grown, or is left."""
        self.nr_sectors, self.memory = nr_sectors, self._room[: nr_sectors * SECTOR_SIZE]

    def flush(self) -> None:
        """Nothing to do: a ramdisk survives nothing but dom0."""

    def discard(self, offset: int, nr_bytes: int) -> None:
        """Zeros again."""
        assert self.memory is not None
        self.memory[offset : offset + nr_bytes] = 0

    def close(self) -> None:
        """Unmap it: nobody holds a view any more."""
        self.memory, self._room = None, np.zeros(0, np.uint8)
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self.closed()


def _grows(fd: int) -> bool:
    """May this memory become longer?"""
    return not fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_GROW


class NullStore:
    """A disk that moves nothing: what is written is forgotten, a read leaves what was there."""

    features = NO_FEATURES
    memory: np.ndarray | None = None

    def __init__(self, nr_sectors: int, sector_size: int = SECTOR_SIZE) -> None:
        self.nr_sectors, self.sector_size = nr_sectors, sector_size

    def read(self, offset: int, into: np.ndarray) -> None:
        """Leave `into` as it is."""

    def write(self, offset: int, data: np.ndarray) -> None:
        """Forget `data`."""

    def flush(self) -> None:
        """Nothing to do."""

    def discard(self, offset: int, nr_bytes: int) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to give up."""


class RamStores:
    """The memory of ram disks by key: a store's name, or the disk that it is of alone.

    Disks of one key are one store. Of a key that nobody has given, the memory is made here, and
    goes with the last of its disks.
    """

    def __init__(self) -> None:
        self._given: dict[str, int] = {}
        self._made: dict[str, int] = {}
        self._users, self._huge_pages = Counter[str](), HugePages()
        self._open: dict[int, tuple[str, RamStore]] = {}  # by what HugePages calls it

    def give(self, key: str, fd: int) -> None:
        """From now on disks of that key are this memory, whose descriptor is ours. Raises OSError
        if it is none, or not sealed: whoever could make it shorter could kill dom0.
        """
        if not fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK:
            raise OSError(f"the memory of store {key} is not sealed")
        self.forget(key)
        self._given[key] = fd

    def forget(self, key: str) -> None:
        """A disk that is connected keeps what it has."""
        if (fd := self._given.pop(key, None)) is not None:
            os.close(fd)

    def open(
        self,
        key: str,
        nr_sectors: int,
        sector_size: int = SECTOR_SIZE,
        whole_sectors: bool = False,
    ) -> RamStore:
        """A disk of that key. Raises OSError; LocalFault, if it is there with another size."""
        fd, nbytes = self._given.get(key, self._made.get(key)), nr_sectors * SECTOR_SIZE
        if fd is None:
            fd = self._made[key] = sealed_memory(f"grantlab-{key}", nbytes)
        there = os.fstat(fd).st_size
        if there < nbytes or (there > nbytes and not _grows(fd)):  # else it once had more
            raise LocalFault(f"store {key} has {there} bytes, and not {nbytes}")
        disk = RamStore(nr_sectors, fd, sector_size, whole_sectors)
        assert disk.memory is not None
        watched = self._huge_pages.watch(disk.memory)
        self._open[watched] = key, disk
        disk.closed = partial(self._let_go, key, watched)
        self._users[key] += 1
        return disk

    def touch(self, key: str, offset: int, nbytes: int) -> None:
        """Have these bytes of the key's disks' memory now, and not when they are first used."""
        for its_key, disk in list(self._open.values()):
            if its_key == key and disk.memory is not None:
                touch(disk.memory[offset : offset + nbytes])

    def _let_go(self, key: str, watched: int) -> None:
        del self._open[watched]
        self._huge_pages.forget(watched)
        self._users[key] -= 1
        if self._users[key] == 0 and key in self._made:
            os.close(self._made.pop(key))

    def close(self) -> None:
        """Forget all, once no disk is open."""
        self._huge_pages.close()
        for kept in (self._given, self._made):
            while kept:
                os.close(kept.popitem()[1])
