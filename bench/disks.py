"""Real disks against fio on the same: its io_uring engine on a file, its nbd engine on a server.

Owns: the cases, and pairs of runs of each, in turn, whose ratio is taken pair by pair: these
machines' speed drifts by more than what is to be told apart. 4-KiB random reads.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

from bench.figure import Figure, measure
from bench.peers import fio, nbdkit
from toolstack.loadspec import LoadSpec
from toolstack.topology import Topology

MIB: Final = 64
IODEPTH: Final = 32


class Case(NamedTuple):
    """name: for people; target: of the disk; fio: what names it to fio."""

    name: str
    target: str
    fio: tuple[str, ...]


class Pair(NamedTuple):
    """One run of each; ours has its CPU, too."""

    ours: Figure
    fio_iops: float

    @property
    def ratio(self) -> float:
        """Ours to fio's."""
        return self.ours.iops / self.fio_iops


@contextmanager
def cases(directory: Path) -> Iterator[list[Case]]:
    """What there is to compare: a file in /dev/shm, one in `directory`, a server."""
    temporary = partial(tempfile.TemporaryDirectory, prefix="gl-")
    with temporary(dir="/dev/shm") as memory, temporary(dir=directory) as disk, nbdkit(MIB) as to:
        uri, found = to[0], list[Case]()
        for where, root, direct in (
            ("tmpfs", memory, 0), ("tmpfs", memory, 1), (str(directory), disk, 1),
        ):  # fmt: skip
            path = Path(root, "disk")
            if not path.exists():
                path.write_bytes(os.urandom(1 << 20) * MIB)
            target = f"file:{path},cache={'none' if direct else 'writeback'}"
            uring = ("--ioengine=io_uring", "--iodepth_batch=1", f"--direct={direct}")
            found.append(Case(f"{where}, direct={direct}", target, (*uring, f"--filename={path}")))
        found.append(Case("nbdkit", uri, ("--ioengine=nbd", f"--uri={uri}")))
        yield found


def pairs(case: Case, count: int, seconds: float) -> Iterator[Pair]:
    """fio and ours in turn, the first of each not counted."""
    machine_of: dict[str, Any] = {"guests": 1, "dom0_vcpus": 1, "disks": [case.target]}
    topology = Topology(**machine_of)
    load: dict[str, Any] = {"rw": "randread", "bs": 4096, "iodepth": IODEPTH, "verify": False}
    for at in range(count + 1):
        fio_iops = float(fio("randread", IODEPTH, seconds, MIB, *case.fio)["read"]["iops"])
        # A machine for each: a file has one writer, and fio would be another.
        with topology.start() as machine:
            measure(machine, LoadSpec(**load, runtime_s=seconds / 2))
            ours = measure(machine, LoadSpec(**load, runtime_s=seconds))
        if at:
            yield Pair(ours, fio_iops)
