"""What a guest is asked to do with one of its disks: read, write, flush, discard, judge, versions.

Owns: each command's form. When a disk can be used is the guest's (`machine/guest.py`).
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from frontend.block_device import BlockDevice
from machine.guest_disk import GuestDisk

Use = Callable[[int, Callable[[BlockDevice], Any]], Any]


class DiskCommands:
    """use: has a disk used, by number, once nobody else does; disk: the one of a number."""

    def __init__(self, use: Use, disk: Callable[[int], GuestDisk]) -> None:
        self._use, self._disk = use, disk

    def command_trace(self, disk: int, entries: bytes) -> None:
        """GuestDisk.add_to_trace."""
        self._disk(disk).add_to_trace(entries)

    def command_read(self, disk: int, offset: int, nbytes: int) -> bytes:
        """BlockDevice.read."""
        return bytes(self._use(disk, lambda device: device.read(offset, nbytes)))

    def command_write(self, disk: int, offset: int, data: bytes) -> int:
        """BlockDevice.write."""
        return int(self._use(disk, lambda device: device.write(offset, data)))

    def command_read_many(self, disk: int, offsets: list[int], nbytes: int) -> bytes:
        """BlockDevice.read_many, row after row."""
        return bytes(self._use(disk, lambda device: device.read_many(offsets, nbytes).tobytes()))

    def command_write_many(self, disk: int, offsets: list[int], data: bytes) -> None:
        """BlockDevice.write_many, row after row."""
        rows = np.frombuffer(data, np.uint8).reshape(len(offsets), -1)
        self._use(disk, lambda device: device.write_many(offsets, rows))

    def command_flush(self, disk: int) -> None:
        """BlockDevice.flush."""
        self._use(disk, lambda _: self._disk(disk).flush())

    def command_discard(self, disk: int, offset: int, nbytes: int, secure: bool) -> None:
        """BlockDevice.discard."""
        self._use(disk, lambda device: device.discard(offset, nbytes, secure))

    def command_judge(self, disk: int, sector: int, nr_sectors: int) -> dict[str, Any]:
        """GuestDisk.judged."""
        return dict(self._use(disk, lambda _: self._disk(disk).judged(sector, nr_sectors)))

    def command_versions(self, disk: int, *arguments: Any) -> bytes:
        """GuestDisk.versions."""
        return self._disk(disk).versions(*arguments)
