"""All that is to be seen of a machine that stays, at one moment: what `top` and `metrics` show.

Owns: the questions. A machine is another process's: what answers them is `toolstack/keeper.py`.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from toolstack.attached import AttachedMachine
from toolstack.snapshot import Snapshot


class Seen(NamedTuple):
    """described, status: what the keeper answers (docs/staying.md). Taken one after the other: a
    disk may be in one and not in another."""

    described: Mapping[str, Any]
    status: Mapping[str, Any]
    snapshot: Snapshot

    def row(self, block: str, disk: Mapping[str, Any]) -> np.ndarray | None:
        """What is counted for a disk of `status` in a block of the snapshot that has a row for
        each; None if nothing is."""
        rows = getattr(self.snapshot, block).get(disk["domid"])
        number = disk["number"]
        return rows[number] if rows is not None and number < len(rows) else None


def see(machine: AttachedMachine) -> Seen:
    """Look now. Raises MachineError."""
    return Seen(machine.described, machine.status(), machine.snapshot())
