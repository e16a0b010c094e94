"""What load to run on every guest, with fio's names.

Owns: the settings of a load. What is wrong with them is a ConfigError (`toolstack/config.py`).
Rules: a load ends by whichever of `ios`, `runtime_s` and the amount of its region comes first, as
in fio; one of them alone means that there is no limit of the others.
"""

from typing import TYPE_CHECKING, Any, Final, Literal, Self

from pydantic import Field, StrictBool, ValidationInfo, field_validator, model_validator

from common.abi import XEN_PAGE_SIZE
from toolstack.config import Config, ConfigError, allowed, label, shown, size_text
from toolstack.fio_job import read_job_file
from toolstack.load_fields import (
    VDEVS,
    BlockSize,
    Distribution,
    Offset,
    Rates,
    Size,
    Split,
    largest,
)

if TYPE_CHECKING:
    from toolstack.fio_trace import Trace

__all__ = [
    "GUESTS_MAX",
    "VDEVS",
    "Config",
    "ConfigError",
    "LoadSpec",
    "allowed",
    "label",
    "shown",
    "size_text",
]

GUESTS_MAX: Final = 64
RUNTIME_DEFAULT_S: Final = 5.0


def trace_of(path: Any) -> "Trace":
    """Raises ConfigError."""
    from toolstack.fio_trace import TraceError, read_trace  # noqa: PLC0415 - brings NumPy

    try:
        return read_trace(path)
    except TraceError as error:
        raise ConfigError(f"replay: {error}") from None


def _runtime(settings: dict[str, Any]) -> float | None:
    """By default, where nothing else ends a load."""
    others = (settings.get(name) for name in ("ios", "replay"))
    amount = settings.get("size") is not None or settings.get("loops") is not None
    ends = any(others) or (amount and not settings.get("time_based"))
    return None if ends else RUNTIME_DEFAULT_S


class LoadSpec(Config):
    """A load. bs in bytes (or text: 512, 4k, 1m); ios for each disk; None is no limit; fsync: a
    flush after every so many writes, 0 for none.

    offset, size: the region, in bytes, as text, or as a share ("20%"); with size or loops, a load
    ends when it has done as much as that, `loops` times, if it is not time_based. bssplit: as fio
    writes it, in place of bs. rate_iops: a number, or (reads, the rest), 0 for none.
    random_distribution: random, zipf:THETA or pareto:POWER. thinktime in microseconds. ramp_time:
    seconds that are not counted, and that runtime does not count. replay: a trace to be done, by
    its clock or, with replay_no_stall, without. name: what fio's output calls it.

    verify: compare every read with what was last written there. It runs on every disk, or on those
    of vdev and domid (each one or several) alone; or as several jobs at once, which have from here
    what they do not say themselves. Raises ConfigError.
    """

    rw: Literal["read", "write", "rw", "trim", "randread", "randwrite", "randrw", "randtrim"] = (
        "randrw"
    )
    rwmixread: int = Field(70, ge=0, le=100)
    bssplit: Split = ()
    bs: BlockSize = 4096
    iodepth: int = Field(32, ge=1, le=256)
    ios: int | None = Field(None, ge=1, le=10**12)
    offset: Offset = 0
    size: Size = None
    loops: int | None = Field(None, ge=1, le=10**9)
    time_based: StrictBool = False
    replay: str = ""
    replay_no_stall: StrictBool = False
    runtime_s: float | None = Field(default_factory=_runtime, gt=0, le=1_000_000)
    ramp_time_s: float = Field(0.0, ge=0, le=1_000_000)
    startdelay_s: float = Field(0.0, ge=0, le=1_000_000)
    rate_iops: Rates = (0, 0)
    thinktime: int = Field(0, ge=0, le=10**12)
    thinktime_blocks: int = Field(1, ge=1, le=10**9)
    random_distribution: Distribution = "random"
    seed: int = Field(1, ge=0)
    fsync: int = Field(0, ge=0, le=10**9)
    verify: StrictBool = True
    vdev: tuple[str, ...] = ()
    domid: tuple[int, ...] = ()
    name: str = ""
    job: tuple["LoadSpec", ...] = ()

    @classmethod
    def from_job_file(cls, path: str) -> "LoadSpec":
        """What a job file of fio's asks for, if that is one load. Raises ConfigError."""
        stages = cls.stages_of(path)
        if len(stages) > 1:
            raise ConfigError(f"job: '{path}' is of {len(stages)} loads, one after the other")
        return stages[0]

    @classmethod
    def stages_of(cls, path: str) -> list["LoadSpec"]:
        """The loads that a job file asks for, which run one after the other. Raises ConfigError."""
        return read_job_file(path, cls).stages

    @property
    def jobs(self) -> tuple["LoadSpec", ...]:
        """What runs: its jobs, or itself."""
        return self.job or (self,)

    @property
    def trace(self) -> "Trace | None":
        """What it replays, if it does."""
        return trace_of(self.replay) if self.replay else None

    @property
    def pattern(self) -> str:
        """`rw`, or what a trace is like."""
        if (trace := self.trace) is None:
            return self.rw
        return "randrw" if trace.writes else "randread"

    @property
    def writes(self) -> bool:
        """Does it write?"""
        return self.pattern not in ("read", "randread")

    @property
    def discards(self) -> bool:
        """Does it discard?"""
        trace = self.trace
        return self.rw.endswith("trim") if trace is None else trace.trims

    @property
    def lead_s(self) -> float:
        """Seconds before anything of it is counted."""
        return max(job.startdelay_s + job.ramp_time_s for job in self.jobs)

    @property
    def distribution(self) -> tuple[str, float]:
        """Which, and its theta or power."""
        name, _, skew = self.random_distribution.partition(":")
        return name, float(skew or 0)

    @property
    def reach(self) -> int:
        """Bytes that a disk must have for it, at least."""
        offset, size = (each if isinstance(each, int) else 0 for each in (self.offset, self.size))
        trace = 0 if self.trace is None else self.trace.reach
        return offset + max(size, self.bs, trace)

    @property
    def ends_by_amount(self) -> bool:
        """Does it end when it has done a certain amount of its region?"""
        return not self.time_based and (self.size is not None or self.loops is not None)

    @property
    def buffer_mib(self) -> int:
        """The RAM that a disk's I/O buffers take, in MiB: whole pages for each I/O in flight."""
        if self.job:
            return max(job.buffer_mib for job in self.job)
        pages = self.iodepth * -(-self.bs // XEN_PAGE_SIZE)
        return -(-pages * XEN_PAGE_SIZE // (1 << 20))

    @field_validator("vdev", "domid", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any, info: ValidationInfo) -> tuple[Any, ...]:
        found = tuple(value) if isinstance(value, (list, tuple)) else (value,)
        allowed = VDEVS if info.field_name == "vdev" else range(1, GUESTS_MAX + 1)
        if bad := [one for one in found if isinstance(one, bool) or one not in allowed]:
            limits = f"{allowed[0]}..{allowed[-1]}"
            raise ConfigError(f"{info.field_name}: {shown(bad[0])} is not in {limits}")
        return found

    @model_validator(mode="before")
    @classmethod
    def _jobs_have_what_they_do_not_say(cls, settings: dict[str, Any]) -> dict[str, Any]:
        jobs = settings.get("job", ())
        if not isinstance(jobs, (list, tuple)):
            raise ConfigError(f"job: {shown(jobs)} is not a list of tables")
        if jobs and (alone := {"vdev", "domid"} & set(settings)):
            raise ConfigError(f"{min(alone)}: is for a load of no jobs, or for a job")
        common = {name: settings[name] for name in settings if name != "job"}
        return {**settings, "job": tuple(cls._job(common, job) for job in jobs)}

    @classmethod
    def _job(cls, common: dict[str, Any], job: Any) -> Self:
        if isinstance(job, cls):
            job = job.given()
        if not isinstance(job, dict) or job.get("job"):
            raise ConfigError(f"job: {shown(job)} is not a table without jobs of its own")
        if "bs" in job:
            common = {name: value for name, value in common.items() if name != "bssplit"}
        try:
            return cls.from_table({**common, **job})
        except ConfigError as error:
            raise ConfigError(f"job: {error}") from None

    @model_validator(mode="after")
    def _ends(self) -> Self:
        if self.time_based and self.runtime_s is None:
            raise ValueError("time-based: true needs runtime, or the load would never end")
        ends = self.ios, self.runtime_s, self.replay or None
        if ends == (None, None, None) and not self.ends_by_amount:
            raise ValueError("runtime: None needs ios, or the load would never end")
        return self

    @model_validator(mode="before")
    @classmethod
    def _largest_of_a_split(cls, settings: dict[str, Any]) -> dict[str, Any]:
        """bs says how large a buffer is."""
        if path := settings.get("replay"):
            return {**settings, "bs": trace_of(path).largest}
        bs = largest(settings)
        return settings if bs is None else {**settings, "bs": bs}
