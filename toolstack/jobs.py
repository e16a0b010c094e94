"""Which load runs on which disk.

Owns: how a load's jobs are shared out among the disks of a machine, as fio's job sections are among
files; what is refused; what can be verified.
Rules: a disk has one job at most, and one that no job names is left alone. All of it is known
before anything starts.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from toolstack.disks import Disk
from toolstack.loadspec import GUESTS_MAX, ConfigError, LoadSpec, size_text

if TYPE_CHECKING:
    from frontend.load import LoadPlan


class Job(NamedTuple):
    """What runs on a disk. verified: is what it reads compared? after: the disk whose writer knows
    what it is to find, if that is another's.
    """

    disk: Disk
    spec: LoadSpec
    verified: bool
    after: Disk | None = None

    @property
    def seed(self) -> int:
        """Another for each disk."""
        return self.spec.seed + self.disk.domid + GUESTS_MAX * self.disk.number


def load_of(load: LoadSpec | Sequence[LoadSpec]) -> LoadSpec:
    """One load, which may be of several jobs. Raises ConfigError."""
    return load if isinstance(load, LoadSpec) else LoadSpec.from_table({"job": tuple(load)})


def jobs_on(load: LoadSpec, disks: Iterable[Disk]) -> list[Job]:
    """The jobs that run, one for each disk that has one. Raises ConfigError."""
    disks, specs = list(disks), dict[Disk, LoadSpec]()
    for spec in load.jobs:
        meant = [disk for disk in disks if _means(spec, disk)]
        if not meant:
            of = f" of guest {', '.join(map(str, spec.domid))}" if spec.domid else ""
            raise ConfigError(f"vdev: {', '.join(spec.vdev) or 'any'}{of} is no disk there is")
        for disk in meant:
            if disk in specs:
                raise ConfigError(f"job: {disk} has two; a disk has one at most")
            _check(spec, disk)
            specs[disk] = spec
    writers = {disk.key: disk for disk in disks if not disk.read_only}
    return [_job(disk, spec, writers.get(disk.key, disk), specs) for disk, spec in specs.items()]


def plan_of(job: Job) -> "LoadPlan":
    """What the guest is told: the same shape as on other disks, its own sequence of choices."""
    return load_plan(job.spec, job.seed, job.verified)


def load_plan(spec: LoadSpec, seed: int, verify: bool) -> "LoadPlan":
    """`spec` for a frontend."""
    from frontend.load import LoadPlan  # noqa: PLC0415 - brings Numba, which `--help` needs not

    return LoadPlan(
        spec.rw,
        spec.bs,
        spec.iodepth,
        spec.rwmixread,
        spec.ios,
        spec.runtime_s,
        seed,
        verify,
        spec.fsync,
    )


def _job(disk: Disk, spec: LoadSpec, writer: Disk, specs: Mapping[Disk, LoadSpec]) -> Job:
    """A null disk keeps nothing. What another writes to a store is known, while nobody does."""
    changes = writer != disk and writer in specs and specs[writer].writes
    verified = spec.verify and disk.spec.kind != "null" and not changes
    return Job(disk, spec, verified, writer if verified and writer != disk else None)


def _means(spec: LoadSpec, disk: Disk) -> bool:
    return (not spec.vdev or disk.vdev in spec.vdev) and (
        not spec.domid or disk.domid in spec.domid
    )


def _check(spec: LoadSpec, disk: Disk) -> None:
    """Can `spec` run there? Raises ConfigError."""
    if disk.read_only and spec.writes:
        raise ConfigError(
            f"rw: {spec.rw} writes to {disk}, which is access=ro; read and randread are allowed"
        )
    if spec.rw.endswith("trim") and disk.spec.kind in ("ram", "null"):
        raise ConfigError(
            f"rw: {spec.rw} discards, and {disk} is {disk.spec.kind}, which cannot; file and nbd"
            " may"
        )
    if spec.bs % disk.spec.sector:
        raise ConfigError(
            f"bs: {size_text(spec.bs)} is no multiple of {disk}'s sector-size, {disk.spec.sector}"
        )
    if disk.spec.size and spec.bs > disk.spec.size:
        raise ConfigError(
            f"bs: {size_text(spec.bs)} is more than all of {disk}, {size_text(disk.spec.size)}"
        )
