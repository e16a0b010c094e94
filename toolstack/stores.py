"""The memory of ram disks: made and kept by the toolstack, so that it outlives a dom0.

Owns: a sealed memfd for each store, by its key (`toolstack/disks.py`). Sealed, nobody who has its
descriptor can make it shorter, which would kill whoever has it mapped. A page of it is taken from
the host when it is first touched: before a load, which would else measure that.
"""

import contextlib
import os
from collections.abc import Iterable, Mapping
from typing import Final

from common.memory import punch, sealed_memory
from common.targets import ram_room
from toolstack.config import ConfigError, size_text
from toolstack.disks import Disk
from toolstack.failures import MachineError
from toolstack.host_memory import available_bytes
from toolstack.supervisor import Supervisor

ANSWER_TIMEOUT_S: Final = 60.0


class Stores:
    """Those of one machine."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._kept: dict[str, int] = {}
        self._room: dict[str, int] = {}  # that dom0 has for each
        self._touched: set[tuple[str, tuple[int, int]]] = set()

    def give(self, disks: Iterable[Disk]) -> None:
        """Make the stores of ram disks that have none yet, and give dom0 each one's descriptor:
        before such a disk is plugged in. Raises MachineError."""
        for disk in disks:
            if disk.spec.kind == "ram" and disk.key not in self._kept:
                self._kept[disk.key] = self._memory(disk)
                self._room[disk.key] = ram_room(disk.spec.size)
                self._tell("store", disk.key, descriptors=[self._kept[disk.key]])

    def touch(self, regions: Mapping[Disk, tuple[int, int]]) -> None:
        """Have dom0 touch these regions (offset and length, in bytes) of ram disks, each once; none
        if that would take half of what memory the host has left. Raises MachineError."""
        new = {
            disk: region
            for disk, region in regions.items()
            if disk.key in self._kept and (disk.key, region) not in self._touched
        }
        if 2 * sum(nbytes for _, nbytes in new.values()) > available_bytes():
            return
        for disk, region in new.items():
            self._tell("touch-store", disk.key, *region)
            self._touched.add((disk.key, region))

    def check_room(self, disk: Disk, nbytes: int) -> None:
        """Can a disk's memory grow to so much? Raises ConfigError."""
        if nbytes > self._room.get(disk.key, nbytes):
            room = size_text(self._room[disk.key])
            raise ConfigError(f"size: {disk} may grow to {room}, and not to {size_text(nbytes)}")

    def keeps(self, disk: Disk) -> bool:
        """Is its memory kept here? That of a ram disk that was plugged in by hand is dom0's."""
        return disk.key in self._kept

    def resize(self, disk: Disk, nbytes: int) -> None:
        """A ram disk is to have so much, or has: its memory grows, or the pages beyond the end go.
        Raises MachineError."""
        if (fd := self._kept.get(disk.key)) is None:
            return  # it has gone meanwhile
        there = os.fstat(fd).st_size
        try:
            if nbytes > there:
                os.ftruncate(fd, nbytes)
            elif nbytes < there:
                punch(fd, nbytes, there - nbytes)
        except OSError as error:
            raise MachineError(f"{disk}: its memory stays as it is: {error.strerror}") from error
        self._touched = {each for each in self._touched if each[0] != disk.key}

    def give_again(self) -> None:
        """Give all of them to another dom0. Raises MachineError."""
        for key, fd in self._kept.items():
            self._tell("store", key, descriptors=[fd])

    def forget(self, disks: Iterable[Disk]) -> None:
        """These are nobody's any more."""
        for disk in disks:
            if (fd := self._kept.pop(disk.key, None)) is not None:
                os.close(fd)
                self._room.pop(disk.key, None)
                self._touched = {each for each in self._touched if each[0] != disk.key}
                with contextlib.suppress(MachineError):  # another dom0 has nothing to forget
                    self._tell("forget-store", disk.key)

    def close(self) -> None:
        """Let go of all. Idempotent."""
        while self._kept:
            os.close(self._kept.popitem()[1])

    @staticmethod
    def _memory(disk: Disk) -> int:
        name, nbytes = f"grantlab-{disk.key}", disk.spec.size
        try:
            return sealed_memory(name, nbytes, grows=True)
        except OSError as error:
            raise MachineError(
                f"no memory of {nbytes} bytes for {name}: {error.strerror}"
            ) from error

    def _tell(self, *message: str | int, descriptors: Iterable[int] = ()) -> None:
        self._supervisor.send("dom0", *message, descriptors=list(descriptors))
        self._supervisor.expect("dom0", ANSWER_TIMEOUT_S)
