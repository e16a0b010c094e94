"""Which load runs on which disk.

Owns: how a load's jobs are shared out among the disks of a machine, as fio's job sections are among
files; what is refused; what can be verified.
Rules: a disk has one job at most, and one that no job names is left alone. All of it is known
before anything starts.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from toolstack.disks import Disk
from toolstack.loadspec import GUESTS_MAX, ConfigError, LoadSpec, size_text

LOOPS_MAX: Final = 10**9  # of a trace, which its time ends

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

    name, skew = spec.distribution
    return LoadPlan(
        rw=spec.pattern,
        bs=spec.bs,
        iodepth=spec.iodepth,
        read_percent=spec.rwmixread,
        ios=spec.ios,
        runtime_s=spec.runtime_s,
        seed=seed,
        verify=verify,
        fsync=spec.fsync,
        offset=spec.offset,
        size="100%" if spec.size is None else spec.size,
        loops=_loops(spec),
        bssplit=spec.bssplit,
        distribution=name,
        skew=skew,
        rate_iops=spec.rate_iops,
        thinktime_us=spec.thinktime,
        thinktime_blocks=spec.thinktime_blocks,
        startdelay_s=spec.startdelay_s,
        ramp_s=spec.ramp_time_s,
        replay="" if not spec.replay else "at once" if spec.replay_no_stall else "timed",
    )


def _loops(spec: LoadSpec) -> int:
    if spec.replay and spec.time_based:
        return LOOPS_MAX
    return spec.loops or 1 if spec.replay or spec.ends_by_amount else 0


def region_of(job: Job) -> tuple[int, int]:
    """Where on a disk of known size it runs: offset and length in bytes."""
    size = job.disk.spec.size

    def nbytes(said: int | str) -> int:
        return said if isinstance(said, int) else int(size * float(said.removesuffix("%")) / 100)

    offset = min(nbytes(job.spec.offset), size)
    return offset, min(size - offset, nbytes("100%" if job.spec.size is None else job.spec.size))


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
            f"rw: {spec.pattern} writes to {disk}, which is access=ro; read and randread are"
            " allowed"
        )
    if spec.discards and disk.spec.kind in ("ram", "null"):
        raise ConfigError(
            f"rw: {spec.pattern} discards, and {disk} is {disk.spec.kind}, which cannot; file and"
            " nbd may"
        )
    for size in (spec.bs, *(size for way in spec.bssplit for size, _ in way)):
        if size % disk.spec.sector and not spec.replay:
            raise ConfigError(
                f"bs: {size_text(size)} is no multiple of {disk}'s sector-size, {disk.spec.sector}"
            )
    if disk.spec.size and spec.bs > disk.spec.size:
        raise ConfigError(
            f"bs: {size_text(spec.bs)} is more than all of {disk}, {size_text(disk.spec.size)}"
        )
    _check_region(spec, disk)


def _check_region(spec: LoadSpec, disk: Disk) -> None:
    """Does what `spec` is of lie on the disk, as far as its size is known? Raises ConfigError."""
    for name, value in (("offset", spec.offset), ("size", spec.size)):
        if isinstance(value, int) and value % disk.spec.sector:
            raise ConfigError(
                f"{name}: {value} is no multiple of {disk}'s sector-size, {disk.spec.sector}"
            )
    offset, size = (value if isinstance(value, int) else 0 for value in (spec.offset, spec.size))
    if disk.spec.size and offset + max(size, spec.bs) > disk.spec.size:
        raise ConfigError(
            f"size: {size_text(size or spec.bs)} from {size_text(offset)} on is more than {disk}"
            f" has, {size_text(disk.spec.size)}"
        )
    if spec.trace is not None:
        room = disk.spec.size - offset if disk.spec.size else 0
        if why := spec.trace.unfit(disk.spec.sector, room, disk):
            raise ConfigError(f"replay: '{spec.replay}': {why}")
