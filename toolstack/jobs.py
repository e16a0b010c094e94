"""Which load runs on which disk.

Owns: how a load's jobs are shared out among the disks of a machine, as fio's job sections are among
files; what is refused; what can be verified.
Rules: a disk has one job at most, and one that no job names is left alone. All of it is known
before anything starts.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from toolstack.disks import Disk
from toolstack.loadspec import GUESTS_MAX, ConfigError, LoadSpec, size_text


class Job(NamedTuple):
    """What runs on a disk. seed: of its own choices; verified: is what it reads checked?"""

    disk: Disk
    spec: LoadSpec

    @property
    def seed(self) -> int:
        """Another for each disk."""
        return self.spec.seed + self.disk.domid + GUESTS_MAX * self.disk.number

    @property
    def verified(self) -> bool:
        """Is what it reads compared? A null disk keeps nothing, and what another guest writes to a
        store is not known to this one."""
        spec = self.disk.spec
        is_another_s = bool(spec.name) and self.disk.read_only
        return self.spec.verify and spec.kind != "null" and not is_another_s


def load_of(load: LoadSpec | Sequence[LoadSpec]) -> LoadSpec:
    """One load, which may be of several jobs. Raises ConfigError."""
    return load if isinstance(load, LoadSpec) else LoadSpec(job=tuple(load))


def jobs_on(load: LoadSpec, disks: Iterable[Disk]) -> list[Job]:
    """The jobs that run, one for each disk that has one. Raises ConfigError."""
    disks, found = list(disks), dict[tuple[int, int], Job]()
    for spec in load.jobs:
        meant = [disk for disk in disks if _means(spec, disk)]
        if not meant:
            of = f" of guest {', '.join(map(str, spec.domid))}" if spec.domid else ""
            raise ConfigError(f"vdev: {', '.join(spec.vdev) or 'any'}{of} is no disk there is")
        for disk in meant:
            if (disk.domid, disk.number) in found:
                raise ConfigError(f"job: {disk} has two; a disk has one at most")
            found[disk.domid, disk.number] = Job(disk, _checked(spec, disk))
    return list(found.values())


def _means(spec: LoadSpec, disk: Disk) -> bool:
    return (not spec.vdev or disk.vdev in spec.vdev) and (
        not spec.domid or disk.domid in spec.domid
    )


def _checked(spec: LoadSpec, disk: Disk) -> LoadSpec:
    """`spec`, if it can run there. Raises ConfigError."""
    if disk.read_only and spec.writes:
        raise ConfigError(
            f"rw: {spec.rw} writes to {disk}, which is access=ro; read and randread are allowed"
        )
    if spec.bs > disk.spec.size:
        raise ConfigError(
            f"bs: {size_text(spec.bs)} is more than all of {disk}, {size_text(disk.spec.size)}"
        )
    return spec
