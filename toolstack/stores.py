"""The memory of ram disks: made and kept by the toolstack, so that it outlives a dom0.

Owns: a sealed memfd for each store, by its key (`toolstack/disks.py`). Sealed, nobody who has its
descriptor can make it shorter, which would kill whoever has it mapped. A page of it is taken from
the host when it is first touched.
"""

import os
from collections.abc import Iterable
from typing import Final

from common.memory import sealed_memory
from toolstack.disks import Disk
from toolstack.failures import MachineError
from toolstack.supervisor import Supervisor

ANSWER_TIMEOUT_S: Final = 60.0


class Stores:
    """Those of one machine."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._kept: dict[str, int] = {}

    def give(self, disks: Iterable[Disk]) -> None:
        """Make the stores of ram disks that have none yet, and give dom0 each one's descriptor:
        before such a disk is plugged in. Raises MachineError."""
        for disk in disks:
            if disk.spec.kind == "ram" and disk.key not in self._kept:
                self._kept[disk.key] = self._memory(disk)
                self._tell("store", disk.key, descriptors=[self._kept[disk.key]])

    def forget(self, disks: Iterable[Disk]) -> None:
        """These are nobody's any more."""
        for disk in disks:
            if (fd := self._kept.pop(disk.key, None)) is not None:
                os.close(fd)
                self._tell("forget-store", disk.key)

    def close(self) -> None:
        """Let go of all. Idempotent."""
        while self._kept:
            os.close(self._kept.popitem()[1])

    @staticmethod
    def _memory(disk: Disk) -> int:
        name, nbytes = f"grantlab-{disk.key}", disk.spec.size
        try:
            return sealed_memory(name, nbytes)
        except OSError as error:
            raise MachineError(
                f"no memory of {nbytes} bytes for {name}: {error.strerror}"
            ) from error

    def _tell(self, *message: str, descriptors: Iterable[int] = ()) -> None:
        self._supervisor.send("dom0", *message, descriptors=list(descriptors))
        self._supervisor.expect("dom0", ANSWER_TIMEOUT_S)
