"""Some disks of a machine that stays, as if they were all of it: what a load on them counts.

Owns: which counters are theirs.
"""

import contextlib
from collections.abc import Generator, Sequence

from toolstack.attached import AttachedMachine
from toolstack.loadspec import LoadSpec
from toolstack.snapshot import Snapshot, only


class Part:
    """Some disks of a machine, by domid and number: what it counts is theirs, as far as there is
    such a thing (`snapshot.only`)."""

    def __init__(self, machine: AttachedMachine, disks: Sequence[tuple[int, int]]) -> None:
        self._machine, self._disks = machine, disks

    def snapshot(self) -> Snapshot:
        """Every counter as it stands."""
        return only(self._machine.snapshot(), self._disks)

    def load(self, load: LoadSpec, every_s: float = 0.5) -> Generator[Snapshot, None, None]:
        """See AttachedMachine.load."""
        with contextlib.closing(self._machine.load(load, every_s)) as running:
            for each in running:
                yield only(each, self._disks)
